"""Rounding of the inputs of FP8 weights, as engines do it before each product.

The inputs of a weight in block FP8 are rounded by `act_quant`: groups as wide as the weight's
blocks, scales as powers of two where `scale_fmt` says so. Weights that are kept have the inputs
they have in BF16: the router, the head, and whatever a recipe kept.

kv_b_proj has its inputs unrounded, too. While they generate, engines multiply queries and latents
with its dequantized halves (absorption): DeepSeek's inference/model.py (attn_impl "absorb"), vLLM's
mla_attention (W_UK, W_UV), SGLang's deepseek_v2 (w_kc, w_vc, in BF16 for blocks of 128);
TensorRT-LLM keeps it in BF16. Only the prefill of vLLM and SGLang multiplies it in FP8.
"""

from torch import Tensor, nn

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import QuantScheme
from dstools_converters.families.names import Role, TensorName
from dstools_kernels.ops import act_quant

ABSORBED: frozenset[Role] = frozenset({"kv_b_proj"})


def has_rounded_input(inventory: Inventory, name: TensorName) -> bool:
    """Return whether engines round the input of this weight, which must be in the checkpoint."""
    is_weight = name.part == "weight" and name.role not in ABSORBED
    return is_weight and inventory.is_quantized(inventory.info(name))


def rounded(x: Tensor, scheme: QuantScheme) -> Tensor:
    """Return activations [..., K] as a product with a weight of this scheme sees them, float32."""
    return act_quant.rounded(x, scheme.scale_format, scheme.block_size[1])


class InputRounding:
    """A forward pre-hook that rounds the input of a linear map.

    One hook for several maps rounds an input once for all that get it one after the other.
    """

    def __init__(self, scheme: QuantScheme) -> None:
        self.scheme = scheme
        self._input: Tensor | None = None
        self._rounded: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor | None]:
        """Return the arguments of the map, rounded."""
        if args[0] is not self._input:
            self._input, self._rounded = args[0], rounded(args[0], self.scheme)
        return (self._rounded,)
