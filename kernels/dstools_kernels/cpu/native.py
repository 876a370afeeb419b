"""The compiled CPU kernels, where they were built; numpy is the fallback of every caller.

One compilation unit behind a C ABI, loaded with ctypes: it has no Python or torch ABI, so one
library serves every Python, and ctypes releases the GIL during a call.

Each kernel is compiled once per instruction set, a *level*. The best level that the CPU runs is
the default; `use()` or the environment choose another: `DSTOOLS_ISA=avx2` by name,
`DSTOOLS_NATIVE=0` numpy.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ABI = 4  # the number that dstools_cpu_abi() returns; raise both when a signature changes
LIBRARY = Path(__file__).with_name("libdstools_cpu.so")
LEVELS = ("avx512vbmi", "avx512", "avx2", "baseline")  # of the library, best first
NUMPY = "numpy"  # the level that needs no library

_ADDRESS, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_BLOCKS = [_INT, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS]
_QUANTIZE = [_INT, _ADDRESS, _INT, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _INT, _COUNT]
_RECOVER = [_INT, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _INT, _COUNT]
_OUTSIDE = [_INT, _ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS]
# arguments and result of each function in csrc/cpu/cpu.cpp
_SIGNATURES: dict[str, tuple[Sequence[type], type | None]] = {
    "quantize": (_QUANTIZE, _COUNT),
    "dequantize": (_BLOCKS, None),
    "dequantize_float32": (_BLOCKS, None),
    "widen": ([_INT, _ADDRESS, _INT, _COUNT, _ADDRESS], None),
    "narrow": ([_INT, _ADDRESS, _COUNT, _ADDRESS], None),
    "outside_bound": (_OUTSIDE, _COUNT),
    "difference": ([_INT, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS], None),
    "recover": (_RECOVER, _COUNT),
    "first_with_all": ([_INT, _ADDRESS, _INT, ctypes.c_uint64, _COUNT], _COUNT),
    "largest": ([_INT, _ADDRESS, _INT, _COUNT], _COUNT),
    "smallest": ([_INT, _ADDRESS, _COUNT], _COUNT),
    "cpu_abi": ([], _INT),
    "cpu_level": ([ctypes.c_char_p], _INT),
}
# what the library calls a dtype (enum Dtype in csrc/cpu/one_number.h) and a scale format (is_ue8m0)
_NUMBER = {"BF16": 0, "F16": 1, "F32": 2, "F8_E8M0": 3, "float32": 0, "ue8m0": 1}

# prototypes of our own: those of ctypes.pythonapi are shared by the whole process
_get_buffer = ctypes.PYFUNCTYPE(_INT, ctypes.py_object, _ADDRESS, _INT)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, _ADDRESS)(("PyBuffer_Release", ctypes.pythonapi))

_chosen: str | None = None  # by use(); None: the environment's choice, or the best


def library() -> ctypes.CDLL | None:
    """Return the library, or None where numpy is used instead.

    That is where it was not built, was built from an older source, or numpy is the chosen level.
    """
    return None if instruction_set() == NUMPY else _loaded()


def instruction_set() -> str:
    """Return the level in use: "avx512vbmi", "avx512", "avx2", "baseline" or "numpy".

    Raises ValueError where DSTOOLS_ISA asks for a level that the CPU or the library lacks.
    """
    return _first_choice() if _chosen is None else _chosen


def call(kernel: str, *arguments: memoryview | int | str) -> int:
    """Run `dstools_<kernel>` at the level in use and return its result, 0 for a void function.

    A memoryview is passed by its address, a dtype or scale format by the library's number for it.
    Requires that library() is not None.
    """
    lib = library()
    assert lib is not None
    number = _numbers()[instruction_set()]
    return int(getattr(lib, f"dstools_{kernel}")(number, *map(_as_c, arguments)) or 0)


def levels() -> list[str]:
    """Return the levels that this CPU and library can run, best first; numpy is always last."""
    return [*_numbers(), NUMPY]


def use(name: str) -> None:
    """Run every kernel of this process on the level `name` from now on.

    Raises ValueError where the CPU or the library lacks it.
    """
    global _chosen
    _chosen = _checked(name, "the level")


def address(view: memoryview) -> int:
    """Return the address of the bytes of `view`, valid for as long as `view` is.

    Works for read-only buffers, which ctypes' own `from_buffer` refuses.
    """
    raw = _PyBuffer()
    _get_buffer(view, ctypes.addressof(raw), 0)
    start = raw.buf or 0  # an empty buffer may have no address
    _release_buffer(ctypes.addressof(raw))
    return start


def _as_c(argument: memoryview | int | str) -> int:
    if isinstance(argument, memoryview):
        return address(argument)
    return _NUMBER[argument] if isinstance(argument, str) else argument


class _PyBuffer(ctypes.Structure):
    """Py_buffer, in the layout of the stable ABI. Source: CPython, Include/pybuffer.h."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def _checked(name: str, what: str) -> str:
    if name not in levels():
        raise ValueError(f"{what} must be one that runs here, {levels()}, got {name!r}")
    return name


@cache
def _first_choice() -> str:
    """Return the level that the environment names, or else the best."""
    wanted = os.environ.get("DSTOOLS_ISA")
    return _checked(wanted, "DSTOOLS_ISA") if wanted else levels()[0]


@cache
def _numbers() -> dict[str, int]:
    """Return the library's number for each level that it can run here, best first."""
    lib = _loaded()
    if lib is None:
        return {}
    numbers = {name: lib.dstools_cpu_level(name.encode()) for name in LEVELS}
    return {name: number for name, number in numbers.items() if number >= 0}


@cache
def _loaded() -> ctypes.CDLL | None:
    """Return the library with its signatures set, or None where none is usable."""
    if os.environ.get("DSTOOLS_NATIVE") == "0" or not LIBRARY.exists():
        return None
    lib = ctypes.CDLL(str(LIBRARY))
    if lib.dstools_cpu_abi() != ABI:
        return None
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(lib, f"dstools_{name}")
        function.argtypes, function.restype = arguments, result
    return lib
