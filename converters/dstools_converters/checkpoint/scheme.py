"""The quantization scheme of a checkpoint, read from and written to `quantization_config`.

Sources: DeepSeek-V3, README_WEIGHTS.md (native: `weight_scale_inv`, F32, despite its name the
factor that codes are multiplied by); V3.1's config.json (`scale_fmt`); compressed-tensors 0.20,
FP8_BLOCK in quant_scheme.py.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from dstools_converters.checkpoint.foreign import HINT, quantization_name
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role
from dstools_kernels.fp8 import ScaleFormat

Format = Literal["native", "compressed-tensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
SCALE_FORMATS: tuple[ScaleFormat, ...] = get_args(ScaleFormat)
# transformers writes "float" where DeepSeek has no scale_fmt
SCALE_FMTS: dict[str, ScaleFormat] = {"None": "float32", "float": "float32", "ue8m0": "ue8m0"}
# Of kept modules in a native config. vLLM and SGLang look for them in this order; transformers,
# TensorRT-LLM and this writer know the second alone.
KEPT_LISTS = ("ignored_layers", "modules_to_not_convert")
MIN_BLOCK = 32  # elements; of fewer, scales are not small beside the weights
BLOCK_SIZE = 128  # DeepSeek's; other sizes are read, and kept where codes are kept

# The roles that DeepSeek ships in FP8. Source: README_WEIGHTS.md, convert.py.
QUANTIZED_ROLES: frozenset[Role] = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj",
    "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
    "indexer_wq_b", "indexer_wk",
    "dense_gate", "dense_up", "dense_down",
    "routed_gate", "routed_up", "routed_down", "shared_gate", "shared_up", "shared_down",
})  # fmt: skip


@dataclass(frozen=True)
class QuantScheme:
    """Block FP8: E4M3 codes, one scale per block."""

    format: Format
    scale_format: ScaleFormat
    block_size: tuple[int, int]
    kv_cache: bool = False  # there are scales of an FP8 KV cache too

    @property
    def scale_part(self) -> str:
        """Return the last part of the name of a scale tensor."""
        return "weight_scale_inv" if self.format == "native" else "weight_scale"

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the shape of the scales of a weight [rows, cols]; ragged blocks count as one."""
        rows, cols = shape
        return -(-rows // self.block_size[0]), -(-cols // self.block_size[1])

    def to_config(
        self, kept: tuple[str, ...] = (), base: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the `quantization_config` for engines; `base` keeps its other keys.

        `kept` names the modules that are not quantized; verify/readings.py reads such lists.
        """
        if self.format == "native":
            config = {key: value for key, value in (base or {}).items() if key not in KEPT_LISTS}
            config |= {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": list(self.block_size),
            }
            config.pop("scale_fmt", None)
            if self.scale_format == "ue8m0":
                config["scale_fmt"] = "ue8m0"
            if kept:
                config["modules_to_not_convert"] = list(kept)
            return config
        # per layer one static scale for keys, one for values
        cache = _fp8("tensor", is_dynamic=False) if self.kv_cache else None
        if base is not None:
            groups = {
                name: group | {"targets": ["Linear"]}
                for name, group in base["config_groups"].items()
            }
            named: dict[str, Any] = {"config_groups": groups, "ignore": list(kept)}
            if cache and not base.get("kv_cache_scheme"):
                named["kv_cache_scheme"] = cache
            return base | named
        weights = _fp8("block", is_dynamic=False) | {"block_structure": list(self.block_size)}
        inputs = _fp8("group", is_dynamic=True) | {"group_size": self.block_size[1]}
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": inputs,
                    "output_activations": None,
                    "format": "float-quantized",
                }
            },
            "ignore": list(kept),
            "kv_cache_scheme": cache,
        }


def _fp8(strategy: str, *, is_dynamic: bool) -> dict[str, Any]:
    """Return the arguments of a compressed-tensors quantization, in its order of keys."""
    return {
        "num_bits": 8,
        "type": "float",
        "strategy": strategy,
        "symmetric": True,
        "dynamic": is_dynamic,
    }


def read_scheme(config: dict[str, Any]) -> QuantScheme | None:
    """Return the scheme that `config` names, None where it names none.

    Raises DstoolsError for a quantization that is not read, by its name.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise DstoolsError("config.json: quantization_config is not an object", "download it again")
    method = quantization.get("quant_method")
    if method == "fp8":
        block = quantization.get("weight_block_size")
        if block is None:
            raise DstoolsError(
                "config.json: per-tensor FP8 is not supported",
                f"{HINT}; block FP8 names weight_block_size",
            )
        scale_format = SCALE_FMTS.get(str(quantization.get("scale_fmt")))
        if scale_format is None:
            raise DstoolsError(
                f"config.json: scale_fmt {quantization['scale_fmt']!r} is not supported",
                'supported are "ue8m0", "float" and none',
            )
        return QuantScheme("native", scale_format, _block(block))
    if method == "compressed-tensors":
        return _read_compressed_tensors(quantization)
    name = quantization_name(quantization)
    if name:
        raise DstoolsError(
            f"config.json: {name} is not supported",
            f'{HINT}; supported are "fp8" with weight_block_size, and "compressed-tensors" with '
            "block FP8",
        )
    fault = "has no quant_method" if quantization else "is empty"
    raise DstoolsError(
        f"config.json: quantization_config {fault}, so the quantization is unknown", HINT
    )


def _read_compressed_tensors(quantization: dict[str, Any]) -> QuantScheme:
    groups = quantization.get("config_groups")
    weights = [
        group.get("weights")
        for group in (groups.values() if isinstance(groups, dict) else [])
        if isinstance(group, dict)
    ]
    if len(weights) == 1 and isinstance(weights[0], dict):
        given = weights[0]
        wanted = {"num_bits": 8, "type": "float", "strategy": "block"}
        if all(given.get(key) == value for key, value in wanted.items()):
            block = _block(given.get("block_structure"))
            return QuantScheme("compressed-tensors", "float32", block)
    raise DstoolsError(
        "config.json: these compressed-tensors are not block FP8",
        "only one config group of 8-bit float weights with the block strategy is read",
    )


def _block(value: Any) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(size) is int and 0 < size <= 1 << 20 for size in value)
    ):
        raise DstoolsError(
            f"config.json: the block size {value!r} is not two natural numbers",
            "weight_block_size or block_structure holds the rows and columns of a block",
        )
    if value[0] * value[1] < MIN_BLOCK:
        raise DstoolsError(
            f"config.json: the block size {value!r} is of fewer than {MIN_BLOCK} elements",
            "its scales would be about as large as the weights, and no engine runs such blocks; "
            "download config.json again",
        )
    return value[0], value[1]
