"""Rules of inference engines for block FP8 checkpoints, checked on headers, without a GPU.

"Seen" in a message: vLLM 0.32, SGLang 0.5.23 or transformers 5.23 was run on a CPU with a tiny
model of that kind; docs/status.md has the table. All else was read in the engine's source or in the
named thread. Nothing was run on a GPU, and TensorRT-LLM not at all.
Sources: vLLM, fp8.py, vllm-project/vllm#42384; SGLang, fp8.py and llama.py; TensorRT-LLM,
modeling_utils and NVIDIA/TensorRT-LLM#18659.
"""

from collections.abc import Iterator
from typing import Literal, get_args

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding
from dstools_converters.families.names import Role
from dstools_converters.families.shapes import MLA
from dstools_converters.plan.merged import keeping
from dstools_converters.verify.engine_shapes import check_shapes
from dstools_converters.verify.engine_transformers import check_transformers
from dstools_converters.verify.kept import check_kept_by
from dstools_converters.verify.readings import Module, reading_of
from dstools_converters.verify.roles import check_experts

Engine = Literal["vllm", "sglang", "trtllm", "transformers"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
# that were run with tiny models, on a CPU; of others the rules were only read
SEEN: dict[Engine, str] = {"vllm": "0.32", "sglang": "0.5.23", "transformers": "5.23"}

MLA_WIDTHS = (320, 512, 576)  # vLLM 0.32, of its MLA backends
# SGLang's DeepSeek model merges these in one module, whose name it looks for in `ignore`.
GATE_UP: frozenset[Role] = frozenset({"dense_gate", "dense_up", "shared_gate", "shared_up"})


def check_engine(inventory: Inventory, engine: Engine, tp: int) -> Iterator[Finding]:
    """Yield what `engine` on `tp` GPUs would refuse or misread, one finding for each role."""
    if inventory.scheme is None:
        yield Finding.note("engine", "config.json", "is not quantized: no FP8 rules apply")
        yield from _check_heads(inventory, tp)
        if engine == "vllm":
            yield from _check_mla(inventory)
        return
    yield from check_kept_by(inventory, engine)
    if engine == "transformers":
        yield from check_transformers(inventory)
        return
    yield from check_experts(inventory, engine)
    if engine == "trtllm":
        yield from _check_trtllm(inventory)
    else:
        yield from _check_config(inventory, engine)
        yield from _check_mla(inventory) if engine == "vllm" else _check_sglang(inventory)
    yield from _check_heads(inventory, tp)
    yield from check_shapes(inventory, engine, tp)


def _check_config(inventory: Inventory, engine: Engine) -> Iterator[Finding]:
    quantization = inventory.checkpoint.config["quantization_config"]
    scheme = inventory.scheme
    assert scheme is not None
    if scheme.format == "native" and quantization.get("activation_scheme") != "dynamic":
        yield Finding.error(
            "engine-activations",
            "config.json",
            f'{engine} takes block FP8 only with activation_scheme "dynamic"',
            'set quantization_config.activation_scheme to "dynamic"',
        )
    for info in (storage.scale for storage in inventory.quantized().values()):
        if info.dtype != "F32":
            yield Finding.warning(
                "engine-scale-dtype",
                info.where,
                f"is {info.dtype}; {engine} allocates float32 scales",
                "quantize this folder into another: codes are copied, scales become float32",
            )
            return


def _check_heads(inventory: Inventory, tp: int) -> Iterator[Finding]:
    attention = inventory.model.attention
    if attention.num_heads % tp:
        yield Finding.error(
            "engine-heads",
            "config.json",
            f"{attention.num_heads} attention heads cannot be shared out over {tp} GPUs",
            "choose a --tp that divides the heads",
        )
    if (
        not isinstance(attention, MLA)
        and attention.num_kv_heads % tp
        and tp % attention.num_kv_heads
    ):
        yield Finding.error(
            "engine-heads",
            "config.json",
            f"{attention.num_kv_heads} key-value heads and {tp} GPUs do not divide one another",
            "choose another --tp",
        )


def _check_mla(inventory: Inventory) -> Iterator[Finding]:
    attention = inventory.model.attention
    if not isinstance(attention, MLA):
        return
    width = attention.latent_width
    if width not in MLA_WIDTHS:
        yield Finding.warning(
            "engine-mla",
            "config.json",
            f"kv_lora_rank + qk_rope_head_dim is {width}; vLLM's MLA takes "
            f"{', '.join(map(str, MLA_WIDTHS))} and stops at the first request (seen in 0.32)",
            "set VLLM_MLA_DISABLE=1 for the server",
        )


def _check_sglang(inventory: Inventory) -> Iterator[Finding]:
    scheme, model = inventory.scheme, inventory.model
    assert scheme is not None
    if scheme.format == "native" and model.model_type == "llama":
        yield Finding.error(
            "engine-scales",
            "config.json",
            "SGLang does not load the scales of a native FP8 Llama, and answers NaN, silently "
            "(seen in 0.5.23; sgl-project/sglang#30234)",
            "run dstools quantize --format compressed-tensors on this folder, or on its source",
        )
    if scheme.format == "compressed-tensors" and isinstance(model.attention, MLA):
        yield from _check_gate_up(inventory)


def _check_gate_up(inventory: Inventory) -> Iterator[Finding]:
    read = reading_of("sglang", inventory.checkpoint.config["quantization_config"])
    for name, parsed in inventory.names.items():
        if parsed is None or parsed.role not in GATE_UP or parsed.part != "weight":
            continue
        module = inventory.model.spelling.module(parsed)
        merged = Module(f"{module.rpartition('.')[0]}.gate_up_proj", (), "")
        info = inventory.tensors[name]
        if not (inventory.is_quantized(info) or parsed.is_mtp or read(merged)):
            yield Finding.error(
                "engine-kept",
                info.where,
                "is not quantized; SGLang looks for gate_up_proj in `ignore`, and runs it as FP8: "
                "NaN of a dense layer, an AttributeError of shared experts (seen in 0.5.23)",
                "run dstools quantize --format native on this folder, or on its source",
            )
            return


def _check_trtllm(inventory: Inventory) -> Iterator[Finding]:
    scheme, attention = inventory.scheme, inventory.model.attention
    assert scheme is not None
    if scheme.format != "native" or scheme.block_size != (128, 128):
        yield Finding.error(
            "engine-format",
            "config.json",
            "TensorRT-LLM reads FP8_BLOCK_SCALES from quant_method fp8 with blocks of 128 x 128",
            "dstools quantize --format native",
        )
    if isinstance(attention, MLA):
        per_head = attention.qk_nope_head_dim + attention.v_head_dim
        if per_head % 128:
            yield Finding.warning(
                "engine-kv-b",
                "config.json",
                f"kv_b_proj has {per_head} rows a head, not a multiple of 128: TensorRT-LLM splits "
                "it by head and would cut blocks (NVIDIA/TensorRT-LLM#18659)",
                f"quantize from BF16 with a recipe that keeps it: {keeping('kv_b_proj')}",
            )
