"""Division of a model among ranks: heads and widths by tp, experts by ep.

With tp, each rank has some heads and a slice of every MLP, and the ranks' results are summed after
attention and after the MLP. With ep alone, each has some experts and all of the rest, and only what
the experts give is summed. With both, which are then equal, attention, dense MLPs and shared
experts are divided by tp, and the routed ones by ep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dstools_converters.checkpoint.scheme import BLOCK_SIZE
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.families.shapes import MLA, Model

COUNTS = range(2, 65)  # of ranks, that a hint names
SLICED: dict[Role, int] = {  # by tp, in this dimension; all others are whole on each rank
    "q_proj": 0,
    "q_b_proj": 0,
    "kv_b_proj": 0,
    "o_proj": 1,
    "dense_gate": 0,
    "dense_up": 0,
    "dense_down": 1,
    "shared_gate": 0,
    "shared_up": 0,
    "shared_down": 1,
    "routed_gate": 0,
    "routed_up": 0,
    "routed_down": 1,
}


class Part(NamedTuple):
    """The slice of a weight that a rank holds: [begin, end) of a dimension."""

    dim: int
    begin: int
    end: int


@dataclass(frozen=True)
class Ranks:
    """The number of ranks that share heads and widths, and of those that share experts."""

    tp: int = 1
    ep: int = 1

    @property
    def count(self) -> int:
        """Return the number of ranks."""
        return max(self.tp, self.ep)

    def part(self, name: TensorName, shape: tuple[int, ...], rank: int) -> Part | None:
        """Return what `rank` holds of a weight; None: all of it, or nothing of another's expert."""
        is_divided = name.role in SLICED and name.part == "weight" and self.tp > 1
        if not is_divided or (name.expert is not None and self.ep > 1):
            return None
        size = shape[SLICED[name.role]] // self.tp
        return Part(SLICED[name.role], rank * size, (rank + 1) * size)

    def experts(self, count: int, rank: int) -> range:
        """Return which of `count` experts `rank` holds."""
        own = count // self.ep
        return range(rank * own, (rank + 1) * own) if self.ep > 1 else range(count)


WHOLE = Ranks()


def require_divisible(model: Model, ranks: Ranks, codes: frozenset[TensorName]) -> None:
    """Raise DstoolsError where heads, widths or experts of a model cannot be divided.

    codes: the weights that stay FP8, a slice of which has whole blocks of scales.
    """
    attention, moe, tp, ep = model.attention, model.moe, ranks.tp, ranks.ep
    assert isinstance(attention, MLA)
    if 1 not in (tp, ep) and tp != ep:
        raise DstoolsError(
            f"--tp {tp} --ep {ep}: they must be equal, or one of them 1", f"--tp {tp} --ep {tp}"
        )
    if ep > 1 and moe is None:
        raise DstoolsError(f"--ep {ep}: the model has no experts", "leave it out")
    if tp > 1 and attention.bias:
        raise DstoolsError(
            "config.json: attention_bias: every rank would add the bias of o_proj", "leave --tp out"
        )
    if fault := _undivided(model, ranks, codes):
        raise DstoolsError(fault, _advice(model, ranks, codes))


def _undivided(model: Model, ranks: Ranks, codes: frozenset[TensorName]) -> str:
    """Return what of a model some ranks do not divide, "" where they divide it all."""
    assert isinstance(model.attention, MLA)
    tp, heads = ranks.tp, model.attention.num_heads
    experts = model.moe.n_routed_experts if model.moe is not None else 0
    if experts % ranks.ep:
        return f"--ep {ranks.ep}: does not divide n_routed_experts, {experts}"
    if heads % tp:
        return f"--tp {tp}: does not divide num_attention_heads, {heads}"
    for name, shape, _ in model.kinds():
        part = ranks.part(name, shape, 0)
        if part is None:
            continue
        if shape[part.dim] % tp:
            return f"--tp {tp}: does not divide {model.spell(name)}, {list(shape)}"
        if name in codes and part.end % BLOCK_SIZE:
            return (
                f"--tp {tp}: a slice of {model.spell(name)}, {part.end} of dimension {part.dim}, "
                f"does not consist of blocks of {BLOCK_SIZE}, each of which has one scale"
            )
    return ""


def _advice(model: Model, ranks: Ranks, codes: frozenset[TensorName]) -> str:
    """Return which numbers of ranks divide a model, with --tp and --ep as they were given."""

    def by_ep(count: int) -> bool:
        return not _undivided(model, Ranks(ep=count), codes)

    def as_given(count: int) -> bool:
        both = Ranks(count if ranks.tp > 1 else 1, count if ranks.ep > 1 else 1)
        return not _undivided(model, both, codes)

    given = " and ".join(
        option for option, count in (("--tp", ranks.tp), ("--ep", ranks.ep)) if count > 1
    )
    advice = dividing(given, as_given)
    if ranks.tp > 1 and model.moe is not None and not any(map(as_given, COUNTS)):
        return f"{advice}; with --ep alone, {dividing('--ep', by_ep)}"
    return advice


def dividing(option: str, divides: Callable[[int], bool]) -> str:
    """Return a hint that names the numbers of ranks that divide a model."""
    counts = ", ".join(str(count) for count in COUNTS if divides(count))
    if not counts:
        return f"leave {option} out: no number up to {COUNTS[-1]} divides this model"
    return f"this model is divided by {option} {counts}"
