"""How a model is divided among ranks: heads and widths by tp, experts by ep.

With tp, each rank has some heads and a slice of every MLP, and the ranks' results are summed after
attention and after the MLP. With ep alone, each has some experts and all of the rest, and only what
the experts give is summed. With both, which are then equal, attention, dense MLPs and shared
experts are divided by tp, and the routed ones by ep.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dstools_converters.checkpoint.scheme import BLOCK_SIZE
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.families.shapes import MLA, Model

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
    """What a rank holds of a weight: [begin, end) of a dimension."""

    dim: int
    begin: int
    end: int


@dataclass(frozen=True)
class Ranks:
    """How many ranks share heads and widths, and how many share experts."""

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


def require_divisible(model: Model, ranks: Ranks) -> None:
    """Raise DstoolsError where heads, widths or experts of a model cannot be divided."""
    attention, moe, tp, ep = model.attention, model.moe, ranks.tp, ranks.ep
    assert isinstance(attention, MLA)
    if 1 not in (tp, ep) and tp != ep:
        raise DstoolsError(
            f"--tp {tp} --ep {ep}: they must be equal, or one of them 1", f"--tp {tp} --ep {tp}"
        )
    if ep > 1 and moe is None:
        raise DstoolsError(f"--ep {ep}: the model has no experts", "leave it out")
    count = moe.n_routed_experts if moe is not None else 0
    if count % ep:
        raise _indivisible("--ep", ep, f"n_routed_experts, {count}", count)
    if tp > 1 and attention.bias:
        raise DstoolsError(
            "config.json: attention_bias: every rank would add the bias of o_proj", "leave --tp out"
        )
    heads = attention.num_heads
    if heads % tp:
        raise _indivisible("--tp", tp, f"num_attention_heads, {heads}", heads)
    for name, shape, _ in model.kinds():
        part = ranks.part(name, shape, 0)
        if part is not None and shape[part.dim] % tp:
            raise _indivisible("--tp", tp, f"{model.spell(name)}, {list(shape)}", shape[part.dim])


def require_whole_blocks(spelled: str, part: Part | None) -> None:
    """Raise DstoolsError where a slice of an FP8 weight does not consist of blocks of 128."""
    if part is not None and (part.begin % BLOCK_SIZE or part.end % BLOCK_SIZE):
        raise DstoolsError(
            f"{spelled}: [{part.begin}, {part.end}) of dimension {part.dim} does not consist of "
            f"blocks of {BLOCK_SIZE}, each of which has one scale",
            "divide by fewer ranks, or by --ep alone",
        )


def _indivisible(option: str, count: int, what: str, size: int) -> DstoolsError:
    divisors = [n for n in range(2, min(size, 64) + 1) if size % n == 0]
    fits = f"{size} is divided by {', '.join(map(str, divisors))}" if divisors else "leave it out"
    return DstoolsError(f"{option} {count}: does not divide {what}", fits)
