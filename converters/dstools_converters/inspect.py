"""The figures of a checkpoint: parameters, bytes, layers, cache, and the size after quantizing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, check
from dstools_converters.errors import DstoolsError, Finding
from dstools_converters.families.shapes import MLA, Model
from dstools_converters.plan.plan import plan_tensor, scheme_after
from dstools_converters.plan.recipe import Recipe

CACHE_ITEM_BYTES = 2  # BF16


@dataclass(frozen=True)
class Report:
    """Figures from headers and config alone. Parameters do not count scales."""

    folder: str
    model_type: str
    quantization: str  # "none", "native FP8, 128x128, ue8m0"
    shards: int
    tensors: int
    bytes: int
    parameters: int  # without the MTP layers
    parameters_active: int  # used by one token, embedding and head included
    parameters_mtp: int
    layers_dense: int
    layers_moe: int
    layers_mtp: int
    experts: str  # "256 routed, 8 active, 1 shared"; empty for a dense model
    attention: str
    cache_bytes_per_token: int  # of keys and values, or of the latent, over all layers, in BF16
    cache_bytes_per_token_mha: int  # the same model with one key and value a head
    bytes_by_dtype: dict[str, int]
    bytes_by_role: dict[str, int]
    quantized_bytes: int  # of the tensors that `dstools quantize` would write
    quantized_kept: dict[str, int]  # bytes that it would not quantize, by role
    unknown_tensors: list[str]
    disagreements: list[Finding]  # for which quantize refuses it; `dstools verify` says more


@dataclass
class _Totals:
    """Sums over the weights of an inventory."""

    bytes_by_dtype: Counter[str] = field(default_factory=Counter)
    bytes_by_role: Counter[str] = field(default_factory=Counter)
    parameters: int = 0  # without the MTP layers
    parameters_routed: int = 0  # of these, those of routed experts
    parameters_mtp: int = 0
    quantized_bytes: int = 0
    quantized_kept: Counter[str] = field(default_factory=Counter)
    refused: list[Finding] = field(default_factory=list)  # what `quantize` would not take


def inspect(inventory: Inventory) -> Report:
    """Return the figures of an inventory, and its disagreements with the config."""
    model, checkpoint, moe = inventory.model, inventory.checkpoint, inventory.model.moe
    kinds = list(_kinds(inventory))
    totals = _total(inventory, kinds)
    layers_moe = sum(model.is_moe(layer) for layer in range(model.num_hidden_layers))
    attention, cache, cache_mha = _cache(model)
    experts, idle = "", totals.parameters_routed
    if moe is not None:
        experts = (
            f"{moe.n_routed_experts} routed, {moe.num_experts_per_tok} active, "
            f"{moe.n_shared_experts} shared"
        )
        # routed experts are of equal size
        idle -= totals.parameters_routed * moe.num_experts_per_tok // moe.n_routed_experts
    return Report(
        folder=checkpoint.folder.name,
        model_type=model.model_type,
        quantization=describe_quantization(inventory),
        shards=len(checkpoint.shards),
        tensors=len(checkpoint.tensors),
        bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        parameters=totals.parameters,
        parameters_active=totals.parameters - idle,
        parameters_mtp=totals.parameters_mtp,
        layers_dense=model.num_hidden_layers - layers_moe,
        layers_moe=layers_moe,
        layers_mtp=model.num_mtp_layers,
        experts=experts,
        attention=attention,
        cache_bytes_per_token=cache,
        cache_bytes_per_token_mha=cache_mha,
        bytes_by_dtype=dict(totals.bytes_by_dtype.most_common()),
        bytes_by_role=dict(totals.bytes_by_role.most_common()),
        quantized_bytes=totals.quantized_bytes,
        quantized_kept=dict(totals.quantized_kept.most_common()),
        unknown_tensors=[info.name for info in inventory.unknown],
        disagreements=_disagreements(inventory, kinds) + totals.refused,
    )


def _total(inventory: Inventory, kinds: list[tuple[TensorInfo, int]]) -> _Totals:
    scheme = scheme_after(inventory.scheme, "native", None)
    totals = _Totals()
    for info, count in kinds:
        parsed = inventory.names[info.name]
        role = parsed.role if parsed else "unknown"
        for part in inventory.storage[info.name].parts:
            totals.bytes_by_dtype[part.dtype] += count * part.nbytes
            totals.bytes_by_role[role] += count * part.nbytes
        if parsed is not None and parsed.is_activation_scale:
            continue
        if parsed is not None and parsed.is_mtp:
            totals.parameters_mtp += count * info.numel
        else:
            totals.parameters += count * info.numel
            if parsed is not None and parsed.expert is not None:
                totals.parameters_routed += count * info.numel
        try:
            target = plan_tensor(info, parsed, inventory, None, Recipe(), scheme).target
        except DstoolsError as error:
            message = str(error).removeprefix(f"{info.where}: ")
            totals.refused.append(Finding.error("refused", info.where, message, error.hint))
            continue
        totals.quantized_bytes += count * target.nbytes
        if not target.is_quantized:
            totals.quantized_kept[role] += count * info.nbytes
    return totals


def _disagreements(inventory: Inventory, kinds: list[tuple[TensorInfo, int]]) -> list[Finding]:
    """Return why `dstools quantize` refuses the folder.

    Of an FP8 release only where counts of tensors by kind say so, which is cheap to find.
    """
    if inventory.scheme is not None and not _counts_differ(inventory, kinds):
        return []
    return [finding for finding in check(inventory) if finding.level == "error"]


def _counts_differ(inventory: Inventory, kinds: list[tuple[TensorInfo, int]]) -> bool:
    """Return whether config and shards have other numbers of weights of some role and shape."""
    wanted: dict[tuple[str, tuple[int, ...], bool], int] = {}
    for name, shape, count in inventory.model.kinds():
        kind = (f"{name.role}.{name.part}", shape, name.is_mtp)
        wanted[kind] = wanted.get(kind, 0) + count
    optional = {(n.role, shape) for n, shape in inventory.model.optional_weights()}
    for info, count in kinds:
        parsed = inventory.names[info.name]
        if parsed is None or parsed.is_activation_scale:
            continue
        if (parsed.role, info.shape) not in optional:
            kind = (f"{parsed.role}.{parsed.part}", info.shape, parsed.is_mtp)
            wanted[kind] = wanted.get(kind, 0) - count
    return any(wanted.values())


def _kinds(inventory: Inventory) -> Iterator[tuple[TensorInfo, int]]:
    """Yield one weight of each kind and how many there are: V3's 46,183 are of 46 kinds."""
    counts: dict[object, int] = {}
    first: dict[object, TensorInfo] = {}
    for info, parsed in inventory.weights():
        name = parsed and (parsed.role, parsed.part, parsed.is_mtp)
        dtypes = tuple(part.dtype for part in inventory.storage[info.name].parts)
        kind = (name, info.shape, dtypes)
        counts[kind] = counts.get(kind, 0) + 1
        first.setdefault(kind, info)
    yield from ((first[kind], counts[kind]) for kind in first)


def describe_quantization(inventory: Inventory) -> str:
    """Return the name of the quantization in a few words."""
    scheme = inventory.scheme
    if scheme is None:
        return "none"
    rows, cols = scheme.block_size
    return f"{scheme.format} FP8, blocks of {rows}x{cols}, {scheme.scale_format} scales"


def _cache(model: Model) -> tuple[str, int, int]:
    """Return (what the attention is, cache bytes a token, the same with plain multi-head)."""
    attention, layers = model.attention, model.num_hidden_layers
    if isinstance(attention, MLA):
        query = "none" if attention.q_lora_rank is None else attention.q_lora_rank
        text = (
            f"MLA, {attention.num_heads} heads of {attention.qk_nope_head_dim} + "
            f"{attention.qk_rope_head_dim} rope, values {attention.v_head_dim}, "
            f"latent {attention.kv_lora_rank}, query rank {query}"
        )
        latent = attention.latent_width
        if attention.indexer is not None:
            latent += attention.indexer[1]  # its own keys, one head
            text += f", indexer {attention.indexer[0]} x {attention.indexer[1]}"
        per_head = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        heads = attention.num_heads * per_head
        return text, layers * latent * CACHE_ITEM_BYTES, layers * heads * CACHE_ITEM_BYTES
    kind = "multi-head" if attention.num_kv_heads == attention.num_heads else "grouped-query"
    text = (
        f"{kind}, {attention.num_heads} heads of {attention.head_dim}, {attention.num_kv_heads} kv"
    )
    item = layers * 2 * attention.head_dim * CACHE_ITEM_BYTES
    return text, attention.num_kv_heads * item, attention.num_heads * item
