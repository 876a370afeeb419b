"""What SGLang 0.5.23 lacks to run block FP8 on a CPU from its wheel: stubs, and torch for kernels.

There is no wheel of its kernels (`sgl_kernel`) for CPUs. `install()` must run before SGLang is
imported, in each process.
"""

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from matrices import compare, load_folder, restore, scale_of
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import linear, scaled_dot_product_attention, silu

STUBBED = {"sgl_kernel", "torchvision", "torchcodec", "decord"}


class Stub(ModuleType):
    """A module that has whatever is asked of it; nothing of it is called when text is generated."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=f"{self.__name__}.{name}"))
        return getattr(self, name)


class Finder:
    """An importer of stubs for the packages of STUBBED."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec for a stub."""
        if name.partition(".")[0] in STUBBED:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stub has no code."""


def install() -> None:
    """Import SGLang over stubs and replace what has no kernel."""
    from transformers.utils import import_utils

    # each remembers its answer: transformers must not take stubs for packages
    import_utils.is_torchvision_available()
    import_utils.is_torchcodec_available()
    import_utils.is_decord_available()
    sys.meta_path.insert(0, Finder())
    use_torch()
    attend_in_full()
    compare_after_loading()


def use_torch() -> None:
    """Replace the products of FP8 layers by torch: code * scale in F32, rounded to BF16."""
    from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors, schemes
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod

    def apply(method: Any, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, restore(layer.weight, scale_of(held(layer), "weight")), bias)

    def experts(method: Any, layer: Any, dispatch_output: Any) -> Any:
        from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput

        return StandardCombineInput(hidden_states=routed(layer, dispatch_output))

    # it asks for the compute capability of a GPU
    compressed_tensors.CompressedTensorsConfig._check_scheme_supported = lambda *_, **__: True
    for kind, function in (
        (Fp8LinearMethod, apply), (schemes.CompressedTensorsW8A8Fp8, apply),
        (Fp8MoEMethod, experts), (schemes.CompressedTensorsW8A8Fp8MoE, experts),
    ):  # fmt: skip
        setattr(kind, "apply" if "Method" in kind.__name__ else "apply_weights", function)
        kind.process_weights_after_loading = lambda method, layer: None  # it repacks for kernels


def held(layer: Module) -> dict[str, Tensor]:
    """Return the parameters of a layer itself."""
    return dict(layer.named_parameters(recurse=False))


def routed(layer: Module, dispatched: Any) -> Tensor:
    """Return the weighted sum [tokens, hidden] of the experts that each token was sent to."""
    weights, ids, _ = dispatched.topk_output
    w13_scale, w2_scale = (scale_of(held(layer), name) for name in ("w13_weight", "w2_weight"))
    x = dispatched.hidden_states
    output = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        token, slot = (ids == expert).nonzero(as_tuple=True)
        gate, up = linear(x[token], restore(layer.w13_weight[expert], w13_scale[expert])).chunk(
            2, -1
        )
        down = linear(silu(gate) * up, restore(layer.w2_weight[expert], w2_scale[expert]))
        output.index_add_(0, token, (down * weights[token, slot, None]).to(x.dtype))
    return output


def attend_in_full() -> None:
    """Let a prompt of an MLA model attend to the keys and values that the model hands over.

    The torch backend takes them from the cache, which holds the latents, of another width. Without
    a prefix cache and in one chunk, a prompt needs no others.
    """
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    extend = TorchNativeAttnBackend.forward_extend

    def forward_extend(
        backend: Any, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any,
        save_kv_cache: bool = True,
    ) -> Any:  # fmt: skip
        cached = backend.token_to_kv_pool.get_key_buffer(layer.layer_id)
        if cached.shape[-1] == layer.qk_head_dim:
            return extend(backend, q, k, v, layer, forward_batch, save_kv_cache)
        lengths, heads = forward_batch.extend_seq_lens.tolist(), layer.tp_q_head_num
        split = [
            x.view(sum(lengths), heads, -1).transpose(0, 1).split(lengths, 1) for x in (q, k, v)
        ]
        outputs = [
            scaled_dot_product_attention(*qkv, is_causal=True, scale=layer.scaling)
            for qkv in zip(*split, strict=True)
        ]
        return torch.cat(outputs, 1).transpose(0, 1).reshape(sum(lengths), -1)

    TorchNativeAttnBackend.forward_extend = forward_extend


def compare_after_loading() -> None:
    """Write the comparison of the model's weights to the file DSTOOLS_COMPARISON."""
    from sglang.srt.model_loader.loader import DefaultModelLoader

    load = DefaultModelLoader.load_weights_only

    def load_and_compare(model: Module, weights: Any, target_device: Any) -> None:
        load(model, weights, target_device)
        wanted = load_folder(Path(os.environ["DSTOOLS_DEQUANTIZED"]))
        equal = compare(model.named_modules(), wanted)
        Path(os.environ["DSTOOLS_COMPARISON"]).write_text(json.dumps(equal))

    DefaultModelLoader.load_weights_only = staticmethod(load_and_compare)
