"""Triton's interpreter, mended where it does not compute what a GPU does.

Triton 3.9's interpreter truncates casts to BF16, loses the carry of casts to E4M3, lets them
overflow, and adds the bits of BF16 numbers as if they were integers. `mend` probes for each of
these by running a kernel and replaces only what a probe shows to be wrong, so that a release that
is right is left alone. What the mended interpreter computes:

    casts         nearest even; to FP8 saturated at the largest finite number (cvt.rn.satfinite)
    BF16 numbers  widened to float32, computed there, rounded once
    products      of BF16, F16 and FP8 in float32, on top of the float32 accumulator

Reductions of BF16 remain wrong (kernels widen first), and so are casts from float64 to BF16, which
round twice. Source: triton-lang/triton, python/triton/runtime/interpreter.py, v3.9.0; issues 11584,
8322 and 5895, pull request 11897.

Kernels run in the interpreter where TRITON_INTERPRET=1 was set before Triton was imported.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

from dstools_kernels.ops.dispatch import is_interpreted

Array = NDArray[Any]
Handle = Any  # interpreter.TensorHandle: `data`, a numpy array of bits, and `dtype`, Triton's

# Triton's types that numpy lacks; the interpreter holds them as unsigned integers
ML_DTYPES = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
UNSIGNED = {1: np.uint8, 2: np.uint16}  # by bytes


def mend() -> list[str]:
    """Replace what the interpreter computes wrongly, and return the names of what was replaced.

    Calling it again replaces nothing. Raises ValueError where kernels are not interpreted, and
    RuntimeError where a replacement does not help, as may be after an update of Triton.
    """
    if not is_interpreted():
        raise ValueError("the interpreter is off: set TRITON_INTERPRET=1 before Triton is imported")
    wrong = [name for name, is_right in PROBES.items() if not is_right()]
    for name in wrong:
        REPLACEMENTS[name]()
    still = [name for name in wrong if not PROBES[name]()]
    if still:
        raise RuntimeError(f"Triton {triton.__version__} interprets {still} wrongly, mended or not")
    return wrong


# ------------------------------------------------------------------------------------------ probes


@triton.jit
def _cast(x_ptr, y_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def _multiply_add(x_ptr, y_ptr, count: tl.constexpr):
    at = tl.arange(0, count)
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x * x + x)


@triton.jit
def _product(x_ptr, y_ptr, size: tl.constexpr):
    at = tl.arange(0, size)[:, None] * size + tl.arange(0, size)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.dot(x, x))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` cast by a kernel; the number of its elements is a power of two."""
    y = torch.empty(x.shape, dtype=dtype)
    _cast[(1,)](x, y, x.numel())
    return y


def _casts_are_right() -> bool:
    x = torch.tensor([126.69, 464.0, 2.0**-8 * 1.3, 1 + 2.0**-8 + 2.0**-20])
    codes = torch.tensor([0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn)
    return (
        cast(x, torch.float8_e4m3fn).float().tolist() == [128.0, 448.0, 2.0**-8 + 2.0**-9, 1.0]
        and cast(x, torch.bfloat16).tolist() == x.bfloat16().tolist()
        and bool(cast(codes, torch.float32).isnan())
    )


def _arithmetic_is_right() -> bool:
    x = torch.tensor([1.5, -3.0], dtype=torch.bfloat16)
    y = torch.empty_like(x)
    _multiply_add[(1,)](x, y, 2)
    return y.tolist() == [3.75, 6.0]


def _products_are_right() -> bool:
    x = torch.full((16, 16), 0.5, dtype=torch.bfloat16)
    y = torch.empty(16, 16)
    _product[(1,)](x, y, 16)
    return bool((y == 4).all())


# ------------------------------------------------------------------------------------ replacements


def values(handle: Handle) -> Array:
    """Return the numbers of a handle as numpy sees them, in an array of their own dtype."""
    scalar = handle.dtype.scalar
    if scalar in ML_DTYPES:
        return np.ascontiguousarray(handle.data).view(ML_DTYPES[scalar])
    return np.asarray(handle.data)


def _narrow(wide: Array, dtype: Any) -> Array:
    """Return the bits of `wide` in a type of ML_DTYPES: nearest even, FP8 saturated, NaN kept."""
    kind = ML_DTYPES[dtype]
    with np.errstate(all="ignore"):
        if dtype.primitive_bitwidth == 8:
            largest = float(ml_dtypes.finfo(kind).max)
            wide = np.where(np.isnan(wide), wide, np.clip(wide, -largest, largest))
        return wide.astype(kind).view(UNSIGNED[dtype.primitive_bitwidth // 8])


def _replace_casts() -> None:
    builder = interpreter.InterpreterBuilder
    original, original_fp_to_fp = builder.cast_impl, builder.create_fp_to_fp
    known = (None, interpreter._ir.ROUNDING_MODE.RTNE)

    def cast_impl(self: Any, source: Handle, target: Any) -> Handle:
        if not {source.dtype.scalar, target.scalar} & ML_DTYPES.keys():
            return original(self, source, target)
        wide = values(source).astype(np.float32)
        if target.scalar in ML_DTYPES:
            return interpreter.TensorHandle(_narrow(wide, target.scalar), target.scalar)
        return original(self, interpreter.TensorHandle(wide, tl.float32), target)

    def create_fp_to_fp(self: Any, source: Handle, target: Any, mode: Any) -> Handle:
        if {source.dtype.scalar, target.scalar} & ML_DTYPES.keys() and mode in known:
            return cast_impl(self, source, target)
        return original_fp_to_fp(self, source, target, mode)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp


def _widened(handle: Any) -> Any:
    """Return a handle of BF16 as one of float32, anything else as it is."""
    if getattr(handle, "dtype", None) is None or handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle(values(handle).astype(np.float32), tl.float32)


def _replace_arithmetic() -> None:
    def in_float32(original: Callable[..., Handle]) -> Callable[..., Handle]:
        def computed(self: Any, *arguments: Any) -> Handle:
            wide = [_widened(argument) for argument in arguments]
            result = original(self, *wide)
            was_bf16 = any(a is not b for a, b in zip(wide, arguments, strict=True))
            if not was_bf16 or result.data.dtype != np.float32:  # comparisons give truth values
                return result
            return interpreter.TensorHandle(_narrow(result.data, tl.bfloat16), tl.bfloat16)

        return computed

    builder = interpreter.InterpreterBuilder
    for name in ("unary_op", "binary_op", "ternary_op", "create_fma"):
        setattr(builder, name, in_float32(getattr(builder, name)))


def _replace_products() -> None:
    def create_dot(self: Any, a: Handle, b: Handle, c: Handle, *options: Any) -> Handle:
        wide = np.float64 if c.data.dtype == np.float64 else np.float32
        product = np.matmul(values(a).astype(wide), values(b).astype(wide))
        return interpreter.TensorHandle(product.astype(c.data.dtype) + c.data, c.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


PROBES: dict[str, Callable[[], bool]] = {
    "casts": _casts_are_right,
    "arithmetic of BF16": _arithmetic_is_right,
    "products of BF16": _products_are_right,
}
REPLACEMENTS = {
    "casts": _replace_casts,
    "arithmetic of BF16": _replace_arithmetic,
    "products of BF16": _replace_products,
}
