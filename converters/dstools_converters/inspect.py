"""What a checkpoint is, in numbers: parameters, bytes, layers, cache, and what quantizing would make."""

from collections.abc import Iterator
from dataclasses import dataclass

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError
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
    parameters_active: int  # that one token passes through, embedding and head included
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
    quantized_kept: dict[str, int]  # bytes that would stay as they are, by role
    unknown_tensors: list[str]
    disagreements: list[str]  # between config and shards; `dstools verify` says more


def inspect(inventory: Inventory) -> Report:
    """Return the figures of an inventory, and what in it does not add up."""
    model, checkpoint = inventory.model, inventory.checkpoint
    scheme = scheme_after(inventory.scheme, "native", None)
    by_dtype: dict[str, int] = {}
    by_role: dict[str, int] = {}
    kept: dict[str, int] = {}
    refused: list[str] = []
    total = active = mtp = quantized = 0
    kinds = list(_kinds(inventory))
    for info, count in kinds:
        parsed, scale = inventory.names[info.name], inventory.scales.get(info.name)
        role = parsed.role if parsed else "unknown"
        for part in (info, scale) if scale else (info,):
            by_dtype[part.dtype] = by_dtype.get(part.dtype, 0) + count * part.nbytes
            by_role[role] = by_role.get(role, 0) + count * part.nbytes
        if parsed is not None and parsed.is_mtp:
            mtp += count * info.numel
        else:
            total += count * info.numel
            # of the routed experts, of equal size, a token passes num_experts_per_tok
            active += count * info.numel if parsed is None or parsed.expert is None else 0
        try:
            outputs = plan_tensor(info, parsed, inventory, None, Recipe(), scheme).outputs
        except DstoolsError as error:
            refused.append(str(error))
            continue
        quantized += count * sum(output.nbytes for output in outputs)
        if len(outputs) == 1:
            kept[role] = kept.get(role, 0) + count * info.nbytes
    moe = model.moe
    layers_moe = sum(model.is_moe(layer) for layer in range(model.num_hidden_layers))
    attention, cache, cache_mha = _cache(model)
    experts = ""
    if moe is not None:
        experts = (
            f"{moe.n_routed_experts} routed, {moe.num_experts_per_tok} active, "
            f"{moe.n_shared_experts} shared"
        )
    return Report(
        folder=checkpoint.folder.name,
        model_type=model.model_type,
        quantization=describe_quantization(inventory),
        shards=len(checkpoint.shards),
        tensors=len(checkpoint.tensors),
        bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        parameters=total,
        parameters_active=active + _routed_active(inventory, total - active),
        parameters_mtp=mtp,
        layers_dense=model.num_hidden_layers - layers_moe,
        layers_moe=layers_moe,
        layers_mtp=model.num_mtp_layers,
        experts=experts,
        attention=attention,
        cache_bytes_per_token=cache,
        cache_bytes_per_token_mha=cache_mha,
        bytes_by_dtype=_largest_first(by_dtype),
        bytes_by_role=_largest_first(by_role),
        quantized_bytes=quantized,
        quantized_kept=_largest_first(kept),
        unknown_tensors=[info.name for info in inventory.unknown],
        disagreements=_disagreements(inventory, kinds) + refused,
    )


def _disagreements(inventory: Inventory, kinds: list[tuple[TensorInfo, int]]) -> list[str]:
    """Say where config and shards do not have the same weights: by kind, so that it costs nothing.

    `dstools verify` names each; this keeps the figures from being taken for those of a whole model.
    """
    wanted: dict[tuple[str, tuple[int, ...], bool], int] = {}
    for name, shape, count in inventory.model.kinds():
        kind = (f"{name.role}.{name.part}", shape, name.is_mtp)
        wanted[kind] = wanted.get(kind, 0) + count
    optional = {(n.role, shape) for n, shape in inventory.model.optional_weights()}
    for info, count in kinds:
        parsed = inventory.names[info.name]
        if parsed is not None and (parsed.role, info.shape) not in optional:
            kind = (f"{parsed.role}.{parsed.part}", info.shape, parsed.is_mtp)
            wanted[kind] = wanted.get(kind, 0) - count
    return [
        f"{abs(count)} {role} {list(shape)}{' of MTP layers' if is_mtp else ''} "
        f"{'missing' if count > 0 else 'too many'}"
        for (role, shape, is_mtp), count in wanted.items()
        if count
    ]


def _kinds(inventory: Inventory) -> Iterator[tuple[TensorInfo, int]]:
    """Yield one weight of each kind and how many there are: V3's 46,183 are of 46 kinds."""
    counts: dict[object, int] = {}
    first: dict[object, TensorInfo] = {}
    scales = inventory.scales
    for info, parsed in inventory.weights():
        name = parsed and (parsed.role, parsed.part, parsed.is_mtp)
        scale = scales.get(info.name)
        kind = (name, info.dtype, info.shape, scale and scale.dtype)
        counts[kind] = counts.get(kind, 0) + 1
        first.setdefault(kind, info)
    yield from ((first[kind], counts[kind]) for kind in first)


def describe_quantization(inventory: Inventory) -> str:
    """Name the quantization in a few words."""
    scheme = inventory.scheme
    if scheme is None:
        return "none"
    rows, cols = scheme.block_size
    return f"{scheme.format} FP8, blocks of {rows}x{cols}, {scheme.scale_format} scales"


def _routed_active(inventory: Inventory, routed: int) -> int:
    moe = inventory.model.moe
    return routed * moe.num_experts_per_tok // moe.n_routed_experts if moe else 0


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
        latent = attention.kv_lora_rank + attention.qk_rope_head_dim
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


def _largest_first(found: dict[str, int]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
