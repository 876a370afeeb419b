"""A sanitizer for interpreted kernels: accesses out of bounds, and races between programs.

Within `sanitized()` every lane of every load and store that its mask lets through, descriptors
included, has to lie in a tensor of the launch; and what one program of a grid stores, no other may
store or load afterwards, since on a GPU they run in any order. Tensors are moved apart for a
launch, so that a stray access does not hit a neighbour. Not seen: atomics, a program that loads
what a later one stores, and values that no one wrote (fill outputs with NaN to see those).
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

Range = tuple[int, int]  # of addresses: first, end
NO_ONE = -1
GUARD_BYTES = 1 << 20  # before and after each storage; pages that nothing touches cost nothing
MAX_MOVED_BYTES = 1 << 26  # larger storages stay where they are


class OutOfBounds(Exception):
    """A kernel accessed memory outside of the tensors that it was launched with."""


class Race(Exception):
    """Two programs of one grid accessed the same address, and one of them or both stored to it."""


class _Memory:
    """The tensors of a launch as ranges of addresses, and which program stored to each byte."""

    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.owners: dict[Range, NDArray[np.int64]] = {}  # the program of each byte
        self.moved: dict[int, tuple[Tensor, Tensor]] = {}  # address of a storage -> it, its copy

    def take(self, argument: Any) -> Any:
        """Return an argument of the launch with its tensors moved, and note where they are."""
        if isinstance(argument, interpreter.TensorDescriptor):
            return dataclasses.replace(argument, base=self.take(argument.base))
        if isinstance(argument, tuple):
            return tuple(self.take(part) for part in argument)
        if not isinstance(argument, Tensor) or not argument.numel():
            return argument
        moved = self._move(argument)
        steps = zip(moved.shape, moved.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in steps)
        self.ranges.append((moved.data_ptr(), moved.data_ptr() + extent * moved.element_size()))
        return moved

    def _move(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.nbytes() > MAX_MOVED_BYTES:
            return x
        if storage.data_ptr() not in self.moved:
            old = torch.empty(0, dtype=torch.uint8).set_(storage)
            guarded = torch.empty(len(old) + 2 * GUARD_BYTES, dtype=torch.uint8)
            new = guarded[GUARD_BYTES : GUARD_BYTES + len(old)].copy_(old)
            self.moved[storage.data_ptr()] = old, new
        new = self.moved[storage.data_ptr()][1]
        offset = GUARD_BYTES // x.element_size() + x.storage_offset()
        return torch.empty(0, dtype=x.dtype).set_(
            new.untyped_storage(), offset, x.shape, x.stride()
        )

    def put_back(self) -> None:
        """Write what the kernel stored to the tensors of its caller."""
        for old, new in self.moved.values():
            old.copy_(new)

    def check(self, pointers: Any, mask: Any, what: str, program: int) -> None:
        """Raise OutOfBounds or Race unless `program` may access these addresses."""
        addresses = np.asarray(pointers.data)
        if mask is not None:
            addresses = addresses[np.broadcast_to(np.asarray(mask.data, bool), addresses.shape)]
        addresses = np.unique(addresses.astype(np.int64))
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        for start, end in self.ranges:
            is_inside = (addresses >= start) & (addresses + itemsize <= end)
            if is_inside.any():
                self._own(addresses[is_inside] - start, (start, end), what, program)
            addresses = addresses[~is_inside]
        if addresses.size:
            raise OutOfBounds(
                f"{what}: {addresses.size} addresses out of bounds, the first is "
                f"{self._distance(int(addresses[0]))}"
            )

    def _own(self, offsets: NDArray[np.int64], bounds: Range, what: str, program: int) -> None:
        if bounds not in self.owners:
            if what == "load":
                return
            self.owners[bounds] = np.full(bounds[1] - bounds[0], NO_ONE)
        owners = self.owners[bounds]
        others = owners[offsets][~np.isin(owners[offsets], (NO_ONE, program))]
        if others.size:
            raise Race(f"program {program}: {what} of what program {others[0]} stored")
        if what == "store":
            owners[offsets] = program

    def _distance(self, address: int) -> str:
        start, end = min(self.ranges, key=lambda bounds: _outside(address, bounds), default=(0, 0))
        side = f"{address - end} bytes after" if address >= start else f"{start - address} before"
        return f"{side} a tensor of {end - start} bytes"


def _outside(address: int, bounds: Range) -> int:
    """Return how many bytes `address` is before or after a range."""
    return max(bounds[0] - address, address - bounds[1])


@contextmanager
def sanitized() -> Iterator[None]:
    """Check every access of the kernels that are interpreted in this context.

    Raises OutOfBounds or Race in place of the interpreter's own error. Contexts do not nest.
    """
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store = builder.create_masked_load, builder.create_masked_store
    execute = executor.__call__
    memory = _Memory()

    def launch(self: Any, *arguments: Any, **keywords: Any) -> None:
        nonlocal memory
        memory = _Memory()
        taken = [memory.take(argument) for argument in arguments]
        execute(self, *taken, **{name: memory.take(value) for name, value in keywords.items()})
        memory.put_back()

    def checked(original: Callable[..., Any], what: str, mask_index: int) -> Callable[..., Any]:
        def access(self: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            memory.check(pointers, rest[mask_index], what, _program(self))
            return original(self, pointers, *rest, **options)

        return access

    executor.__call__ = launch
    builder.create_masked_load = checked(load, "load", 0)
    builder.create_masked_store = checked(store, "store", 1)
    try:
        with reported():
            yield
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        executor.__call__ = execute


@contextmanager
def reported() -> Iterator[None]:
    """Raise OutOfBounds or Race in place of the interpreter's error that it caused."""
    try:
        yield
    except InterpreterError as error:
        cause: BaseException | None = error
        while isinstance(cause, InterpreterError):  # one more for each function that calls another
            cause = cause.__cause__
        if isinstance(cause, OutOfBounds | Race):
            raise cause from None
        raise


def _program(builder: Any) -> int:
    """Return the number of the program that runs, counted over the whole grid."""
    (_, depth, width), (x, y, z) = builder.grid_dim, builder.grid_idx
    return int((x * depth + y) * width + z)
