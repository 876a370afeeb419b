"""The distance of two checkpoints, tensor by tensor, both restored to float32."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import Progress, block_rows, columns, restore, slabs
from dstools_converters.errors import DstoolsError
from dstools_kernels.formats import block_fp8

WORST = 10


@dataclass(frozen=True)
class Error:
    """The distance of B from A in one tensor, or in all of a role."""

    name: str
    numel: int
    relative: float  # rms of B - A over rms of A
    max_abs: float
    bias: float  # mean of B - A over rms of A: about 0 for rounding to nearest


@dataclass(frozen=True)
class Report:
    """All errors, largest first."""

    total: Error
    by_role: list[Error]
    worst: list[Error]
    identical: int  # tensors with no differing element
    compared: int
    only_in_a: list[str]
    only_in_b: list[str]


@dataclass
class _Sums:
    numel: int = 0
    sq_diff: float = 0.0
    sq_a: float = 0.0
    diff: float = 0.0
    max_abs: float = 0.0

    def add(self, other: "_Sums") -> None:
        self.numel += other.numel
        self.sq_diff += other.sq_diff
        self.sq_a += other.sq_a
        self.diff += other.diff
        # NaN is kept from either side; whether max() keeps it depends on the order of arguments
        if not (other.max_abs <= self.max_abs or math.isnan(self.max_abs)):
            self.max_abs = other.max_abs

    def error(self, name: str) -> Error:
        rms = math.sqrt(self.sq_a / self.numel) if self.numel else 0.0
        rms_diff = math.sqrt(self.sq_diff / self.numel) if self.numel else 0.0
        mean = self.diff / self.numel if self.numel else 0.0
        if rms_diff == 0:
            return Error(name, self.numel, 0.0, self.max_abs, 0.0)
        if rms == 0:
            return Error(name, self.numel, math.inf, self.max_abs, math.copysign(math.inf, mean))
        return Error(name, self.numel, rms_diff / rms, self.max_abs, mean / rms)


def compare(
    a: Inventory, b: Inventory, *, workers: int = 1, progress: Progress = lambda nbytes: None
) -> Report:
    """Return the errors of `b` against `a`, paired by name; scales belong to their weights.

    Raises DstoolsError where no name is in both, a tensor has two shapes, or a file changes.
    """
    in_a = {info.name: info for info, _ in a.weights()}
    in_b = {info.name: info for info, _ in b.weights()}
    both = [name for name in in_a if name in in_b]
    if not both:
        raise DstoolsError(
            "the two checkpoints have no tensor in common", "check that they are of one model"
        )
    for name in both:
        if in_a[name].shape != in_b[name].shape:
            raise DstoolsError(
                f"{in_b[name].where}: is {list(in_b[name].shape)}, in A {list(in_a[name].shape)}",
                "the checkpoints are not of the same model",
            )
    by_role: dict[str, _Sums] = {}
    errors = []
    total = _Sums()
    with ThreadPoolExecutor(workers, "compare") as pool:
        results = pool.map(lambda name: _compare_tensor(a, in_a[name], b, in_b[name]), both)
        for name, sums in zip(both, results, strict=True):
            parsed = a.names[name]
            by_role.setdefault(parsed.role if parsed else "unknown", _Sums()).add(sums)
            total.add(sums)
            errors.append(sums.error(name))
            progress(in_a[name].nbytes)
    a.checkpoint.check_unmoved()
    b.checkpoint.check_unmoved()
    errors.sort(key=_badness)
    return Report(
        total=total.error("all"),
        by_role=sorted((sums.error(role) for role, sums in by_role.items()), key=_badness),
        worst=[error for error in errors[:WORST] if error.relative != 0],
        identical=sum(error.max_abs == 0 for error in errors),
        compared=len(both),
        only_in_a=[name for name in in_a if name not in in_b],
        only_in_b=[name for name in in_b if name not in in_a],
    )


def _badness(error: Error) -> float:
    return -math.inf if math.isnan(error.relative) else -error.relative


def _compare_tensor(a: Inventory, in_a: TensorInfo, b: Inventory, in_b: TensorInfo) -> _Sums:
    if not (a.storage[in_a.name].is_float and b.storage[in_b.name].is_float):
        return _compare_bytes(a, in_a, b, in_b)
    cols = columns(in_a)
    block = math.lcm(block_rows(a, in_a), block_rows(b, in_b))
    sums = _Sums()
    for first, last in slabs(0, in_a.numel // cols, block, cols * 4):
        difference = block_fp8.difference(
            restore(a, in_a, first, last, "a"), restore(b, in_b, first, last, "b")
        )
        sums.add(_Sums((last - first) * cols, *difference))
    return sums


def _compare_bytes(a: Inventory, in_a: TensorInfo, b: Inventory, in_b: TensorInfo) -> _Sums:
    """Return zeros where the bytes are equal, else NaN: these tensors do not hold floats."""
    step = 1 << 20
    is_equal = (in_a.dtype, in_a.nbytes) == (in_b.dtype, in_b.nbytes) and all(
        bytes(a.checkpoint.read(in_a, begin, min(begin + step, in_a.nbytes)))
        == bytes(b.checkpoint.read(in_b, begin, min(begin + step, in_a.nbytes)))
        for begin in range(0, in_a.nbytes, step)
    )
    return _Sums(in_a.numel, *([0.0] * 4 if is_equal else [math.nan] * 4))
