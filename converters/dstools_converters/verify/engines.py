"""Rules of inference engines for block FP8 checkpoints, checked on headers, without a GPU.

Each rule was read in the engine's source or in the named thread; none was run on a GPU.
Sources: vLLM, fp8.py and fp8_utils.py (validate_fp8_block_shape), vllm-project/vllm#42384;
SGLang, fp8.py, sgl-project/sglang#3345; TensorRT-LLM, modeling_utils and NVIDIA/TensorRT-LLM#18659;
transformers 5.23, integrations/finegrained_fp8.py, huggingface/transformers#36026.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import Finding
from dstools_converters.families.names import Role
from dstools_converters.families.shapes import MLA

Engine = Literal["vllm", "sglang", "trtllm", "transformers"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

# How tensor parallelism cuts a weight [out, in]: its rows, its columns, or not at all.
CUT_ROWS: frozenset[Role] = frozenset({
    "q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "dense_gate", "dense_up",
    "routed_gate", "routed_up", "shared_gate", "shared_up",
})  # fmt: skip
CUT_COLUMNS: frozenset[Role] = frozenset({"o_proj", "dense_down", "routed_down", "shared_down"})
# Of weights that run as one matrix, all but the last part must end on a block.
MERGED_BUT_LAST: frozenset[Role] = frozenset(
    {"q_proj", "k_proj", "q_a_proj", "dense_gate", "routed_gate", "shared_gate"}
)


def check_engine(inventory: Inventory, engine: Engine, tp: int) -> Iterator[Finding]:
    """Yield what `engine` on `tp` GPUs would refuse or misread, one finding for each role."""
    if inventory.scheme is None:
        yield Finding.note("engine", "config.json", f"is not quantized; {engine} has no FP8 rules")
        yield from _check_heads(inventory, tp)
        return
    if engine == "transformers":
        yield from _check_transformers(inventory)
        return
    if engine == "trtllm":
        yield from _check_trtllm(inventory)
    else:
        yield from _check_config(inventory, engine)
    yield from _check_heads(inventory, tp)
    yield from _check_cuts(inventory, engine, tp)


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
                "dstools quantize with the same SOURCE writes float32 scales, codes unchanged",
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


def _check_cuts(inventory: Inventory, engine: Engine, tp: int) -> Iterator[Finding]:
    scheme = inventory.scheme
    assert scheme is not None
    rows, cols = scheme.block_size

    def fault(role: Role, info: TensorInfo) -> str:
        out, inputs = info.shape
        kv_heads = 0
        if role in ("k_proj", "v_proj") and not isinstance(inventory.model.attention, MLA):
            kv_heads = inventory.model.attention.num_kv_heads
        parts = min(tp, kv_heads) if kv_heads else tp  # fewer heads than GPUs: they are repeated
        if role in CUT_COLUMNS and tp > 1 and inputs % (tp * cols):
            return f"its {inputs} columns cut in {tp} do not end on blocks of {cols}"
        if role in CUT_ROWS and tp > 1 and out % (parts * rows):
            return f"its {out} rows cut in {parts} do not end on blocks of {rows}"
        is_alone = role == "q_proj" and isinstance(inventory.model.attention, MLA)
        if role in MERGED_BUT_LAST and not is_alone and out % rows:
            return f"its {out} rows do not end on a block of {rows}, and another weight follows it"
        return ""

    for finding in _by_role(inventory, fault):
        keep = "quantize from BF16 with a recipe that keeps this role"
        yield Finding.error(
            "engine-shape",
            finding.where,
            f"{engine} refuses it: {finding.message}",
            f"choose a --tp that divides the blocks, or {keep}" if tp > 1 else keep,
        )


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
                'keep it: [[rule]] role = "kv_b_proj", scheme = "keep"',
            )


def _check_transformers(inventory: Inventory) -> Iterator[Finding]:
    scheme = inventory.scheme
    assert scheme is not None
    rows, cols = scheme.block_size

    def fault(role: Role, info: TensorInfo) -> str:
        return f"{list(info.shape)}" if info.shape[0] % rows or info.shape[1] % cols else ""

    if scheme.format == "native":
        for finding in _by_role(inventory, fault):
            yield Finding.error(
                "engine-shape",
                finding.where,
                f"transformers takes rows // rows of scales for the block size, and so misreads "
                f"{finding.message} silently (5.23; huggingface/transformers#36026)",
                "load `dstools dequantize`'s output there; other engines read this one",
            )
    if scheme.format == "compressed-tensors" and inventory.model.moe is not None:
        yield Finding.error(
            "engine-format",
            "config.json",
            "transformers 5.23 multiplies codes of experts by scales not spread over blocks",
            "dstools quantize --format native, or load `dstools dequantize`'s output",
        )
    if inventory.model.num_mtp_layers:
        yield Finding.note(
            "engine-mtp", "config.json", "transformers leaves the MTP layers out when it loads"
        )


def _by_role(inventory: Inventory, fault: Callable[[Role, TensorInfo], str]) -> Iterator[Finding]:
    """Yield a finding for the first tensor of each role and fault, with the number of others."""
    faulty: dict[tuple[Role, str], list[TensorInfo]] = {}
    for name in inventory.quantized():
        parsed, info = inventory.names[name], inventory.tensors[name]
        if parsed is not None and (message := fault(parsed.role, info)):
            faulty.setdefault((parsed.role, message), []).append(info)
    for (_, message), infos in faulty.items():
        more = f" (and {len(infos) - 1} more like it)" if len(infos) > 1 else ""
        yield Finding.error("engine-shape", infos[0].where, message + more)
