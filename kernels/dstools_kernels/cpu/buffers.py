"""Checks of kernel arguments: any object with the buffer protocol, at any address.

Inputs may be read-only. Outputs may be longer than needed: their first part is written. An argument
of the wrong size raises ValueError with its name, the wanted size and the given one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    import typing_extensions
    from numpy.typing import NDArray

    # numpy declares its arrays as buffers only from Python 3.12 on
    Buffer: TypeAlias = typing_extensions.Buffer | NDArray[Any]
    WritableBuffer: TypeAlias = Buffer  # typing cannot express "not read-only"


def input_bytes(buffer: Buffer, what: str) -> memoryview:
    """Return `buffer` as contiguous bytes; the view keeps the memory alive."""
    view = _view(buffer)
    if not view.c_contiguous:
        raise ValueError(f"{what} must be contiguous, got strides {view.strides}")
    if view.nbytes == 0:  # cast() refuses some empty shapes
        return memoryview(b"")
    return view.cast("B")


def output_bytes(buffer: WritableBuffer, what: str, nbytes: int) -> memoryview:
    """Return the first `nbytes` of `buffer`, for writing."""
    view = _view(buffer)
    if view.readonly:
        raise ValueError(f"{what} must be writable, got a read-only buffer")
    if view.nbytes < nbytes:
        raise ValueError(f"{what} must hold at least {nbytes} bytes, got {view.nbytes}")
    return input_bytes(view, what)[:nbytes]


def whole_rows(view: memoryview, what: str, cols: int, itemsize: int) -> int:
    """Return the number of rows of `cols` elements in `view`."""
    rows, rest = divmod(view.nbytes, cols * itemsize)
    if rest:
        raise ValueError(
            f"{what} must be a whole number of rows of {cols * itemsize} bytes, "
            f"got {view.nbytes} bytes"
        )
    return rows


def exactly(view: memoryview, what: str, nbytes: int) -> None:
    """Raise ValueError where `view` has another size."""
    if view.nbytes != nbytes:
        raise ValueError(f"{what} must hold {nbytes} bytes, got {view.nbytes}")


def at_least_one(**sizes: int) -> None:
    """Raise ValueError where a size is not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _view(buffer: Buffer) -> memoryview:
    return memoryview(cast("typing_extensions.Buffer", buffer))
