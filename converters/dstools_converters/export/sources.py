"""Sources of the bytes of exported tensors: ranges of the checkpoint, copied or converted.

Everything here is known from headers; no weight is read. The experts of a layer are one tensor of
the graph and hundreds of the checkpoint, the halves of kv_b_proj are some rows of each head: so a
tensor is a list of pieces, end to end.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.checkpoint.header import ITEM_BITS, TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import BLOCK_SIZE
from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Dtype, Making
from dstools_converters.export.graph import MAP, Form
from dstools_converters.export.ranges import Piece
from dstools_converters.export.ranks import Part
from dstools_converters.families.shapes import MLA
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.rotary import rotary
from dstools_converters.runtime.weights import STACKS

DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
}
TORCH = {name: dtype for dtype, name in DTYPES.items()}
ROUTER = ("router", "e_score_correction_bias")  # F32 in each export
SCALES = "weight_scale_inv"  # in the graph, whatever they are called in the checkpoint


class Source(NamedTuple):
    """The pieces that a tensor of the graph is made of."""

    shape: tuple[int, ...]
    dtype: Dtype
    pieces: tuple[Piece, ...]  # none: made here, without the checkpoint
    is_copy: bool  # bytes as they are

    @property
    def numel(self) -> int:
        """Return the number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Return its bytes."""
        return self.numel * ITEM_BITS[self.dtype] // 8

    @property
    def making(self) -> Making:
        """Return how it is made, as export.json says it."""
        if not self.pieces:
            return "make"
        return "copy" if self.is_copy else "convert"


def sources(inventory: Inventory, form: Form, rank: int) -> dict[str, Source]:
    """Return the source of each tensor that a rank's graphs may have, by its name there."""
    return dict(_sources(inventory, form, rank))


def _sources(inventory: Inventory, form: Form, rank: int) -> Iterator[tuple[str, Source]]:
    model, dtype = inventory.model, DTYPES[form.dtype]
    attention = model.attention
    assert isinstance(attention, MLA)
    angles = Source((form.positions, attention.qk_rope_head_dim // 2), "F32", (), False)
    yield from (("rotary.cos", angles), ("rotary.sin", angles))
    for name, shape, count in model.kinds():
        prefix = model.spell(name).removesuffix(name.part)
        infos = [inventory.info(name)]
        part = form.ranks.part(name, shape, rank)
        lead: tuple[int, ...] = ()
        if name.expert is not None:
            held = form.ranks.experts(count, rank)
            infos = [inventory.info(name._replace(expert=expert)) for expert in held]
            experts = model.spelling.experts_of(name.layer or 0)
            prefix, lead = f"{experts}.{STACKS[name.role]}.", (len(held),)
            yield f"{experts}.{MAP}", Source((count,), "I32", (), False)
        if name.role == "kv_b_proj":
            yield from _halves(infos[0], attention, part, prefix.removesuffix("kv_b_proj."), dtype)
        elif name in form.codes:
            yield f"{prefix}weight", _source(infos, shape, part, lead, "F8_E4M3")
            scales = [inventory.storage[info.name].scale for info in infos]
            blocks = part and Part(part.dim, part.begin // BLOCK_SIZE, -(-part.end // BLOCK_SIZE))
            made = _source(scales, scales[0].shape, blocks, lead, "F32")
            pieces = zip(made.pieces, infos, strict=True)
            named = tuple(piece._replace(weight=info) for piece, info in pieces)
            yield f"{prefix}{SCALES}", made._replace(pieces=named)
        else:
            is_router = name.role in ROUTER
            yield (
                f"{prefix}{name.part}",
                _source(infos, shape, part, lead, "F32" if is_router else dtype),
            )


def _source(
    infos: list[TensorInfo],
    shape: tuple[int, ...],
    part: Part | None,
    lead: tuple[int, ...],
    dtype: Dtype,
) -> Source:
    """Return the source of tensors of one shape, or of a part of each, one after another."""
    spans = [(0, size) for size in (shape if len(shape) == 2 else (1, *shape))]
    if part is not None:
        spans[part.dim] = (part.begin, part.end)
    pieces = tuple(Piece(info, spans[0], spans[1]) for info in infos)
    own = tuple(end - begin for begin, end in spans)[-len(shape) :]
    return Source((*lead, *own), dtype, pieces, all(info.dtype == dtype for info in infos))


def _halves(
    info: TensorInfo, attention: MLA, part: Part | None, prefix: str, dtype: Dtype
) -> Iterator[tuple[str, Source]]:
    """Yield the two parts of kv_b_proj, each some rows of every head of this rank."""
    sizes = (attention.qk_nope_head_dim, attention.v_head_dim)
    rows = (part.begin, part.end) if part else (0, attention.num_heads * sum(sizes))
    heads, rank = range(rows[0], rows[1], sum(sizes)), attention.kv_lora_rank
    first = 0
    for name, size in zip(("w_k", "w_v"), sizes, strict=True):
        spans = [(head + first, head + first + size) for head in heads]
        pieces = tuple(Piece(info, span, (0, rank)) for span in spans)
        yield (
            f"{prefix}{name}",
            Source((len(heads), size, rank), dtype, pieces, info.dtype == dtype),
        )
        first += size


def made(inventory: Inventory, form: Form, rank: int, name: str) -> Tensor:
    """Return the values of a tensor that has no pieces.

    These are a table of angles, or int32 [E]: which of a rank's experts is each of the model's,
    -1 for none of them.
    """
    model = inventory.model
    if name.endswith(f".{MAP}"):
        assert model.moe is not None
        held = form.ranks.experts(model.moe.n_routed_experts, rank)
        places = torch.full((model.moe.n_routed_experts,), -1, dtype=torch.int32)
        places[held.start : held.stop] = torch.arange(len(held), dtype=torch.int32)
        return places
    architecture = replace(read_architecture(inventory.checkpoint.config), model=model)
    angles = rotary(architecture, torch.arange(form.positions))
    table: Tensor = getattr(angles, name.rpartition(".")[2])
    return table.float()


def require_same(name: str, source: Source, shape: tuple[int, ...], dtype: str) -> None:
    """Raise DstoolsError where the graph's tensor is not the one that was planned."""
    if (source.shape, source.dtype) != (shape, dtype):
        raise DstoolsError(
            f"{name}: the graph has {dtype} {list(shape)}, the checkpoint {source.dtype} "
            f"{list(source.shape)}",
            "report it: the exporter is wrong about this model",
        )
