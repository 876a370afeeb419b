"""The compiled CPU kernels, where they were built; every caller has a numpy path beside them.

One C++ file behind a C ABI, loaded with ctypes: no Python or torch ABI, so one library serves every
Python, and ctypes lets go of the GIL during a call.

Each kernel is there once per instruction set, a *level*. The best that the CPU runs is taken;
`use()` or the environment choose a lower one: `DSTOOLS_ISA=avx2` by name, `DSTOOLS_NATIVE=0` numpy.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

ABI = 3  # the number dstools_cpu_abi() returns; raise both when a signature changes
LIBRARY = Path(__file__).with_name("libdstools_cpu.so")
LEVELS = ("avx512vbmi", "avx512", "avx2", "baseline")  # of the library, best first
NUMPY = "numpy"  # the level that needs no library

_ADDRESS, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# arguments and result of each function in csrc/cpu.cpp
_SIGNATURES: dict[str, tuple[list[type], type | None]] = {
    "quantize": (
        [_INT, _ADDRESS, _INT, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _INT, _COUNT],
        _COUNT,
    ),
    "dequantize": ([_INT, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS], None),
    "dequantize_float32": (
        [_INT, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS],
        None,
    ),
    "widen": ([_INT, _ADDRESS, _INT, _COUNT, _ADDRESS], None),
    "narrow": ([_INT, _ADDRESS, _COUNT, _ADDRESS], None),
    "outside_bound": (
        [_INT, _ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS],
        _COUNT,
    ),
    "difference": ([_INT, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS], None),
    "recover": (
        [_INT, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _INT, _COUNT],
        _COUNT,
    ),
    "first_with_all": ([_INT, _ADDRESS, _INT, ctypes.c_uint32, _COUNT], _COUNT),
    "cpu_abi": ([], _INT),
    "cpu_level": ([ctypes.c_char_p], _INT),
}

# prototypes of our own: those of ctypes.pythonapi are shared by the whole process
_get_buffer = ctypes.PYFUNCTYPE(_INT, ctypes.py_object, _ADDRESS, _INT)(
    ("PyObject_GetBuffer", ctypes.pythonapi)
)
_release_buffer = ctypes.PYFUNCTYPE(None, _ADDRESS)(("PyBuffer_Release", ctypes.pythonapi))

_chosen: str | None = None  # by use(); None: the environment's choice, or the best


def library() -> ctypes.CDLL | None:
    """Return the library, or None where numpy answers instead.

    That is where it was not built, was built from an older source, or numpy is the chosen level.
    """
    return None if instruction_set() == NUMPY else _loaded()


def instruction_set() -> str:
    """Name the level in use: "avx512vbmi", "avx512", "avx2", "baseline" or "numpy".

    Raises ValueError where DSTOOLS_ISA asks for a level that is not to be had.
    """
    return _first_choice() if _chosen is None else _chosen


def level() -> int:
    """Return the number by which the library knows the level in use; library() must be there."""
    return _numbers()[instruction_set()]


def levels() -> list[str]:
    """Return the levels that this CPU and library can run, best first; numpy is always the last."""
    return [*_numbers(), NUMPY]


def use(name: str) -> None:
    """Run every kernel of this process on the level `name` from now on.

    Raises ValueError where the CPU or the library lacks it.
    """
    global _chosen
    _chosen = _checked(name, "the level")


def address(view: memoryview) -> int:
    """Return where the bytes of `view` lie; holds for as long as `view` does.

    Works for read-only buffers, which ctypes' own `from_buffer` refuses.
    """
    raw = _PyBuffer()
    _get_buffer(view, ctypes.addressof(raw), 0)
    start = raw.buf or 0  # an empty buffer may lie nowhere
    _release_buffer(ctypes.addressof(raw))
    return start


class _PyBuffer(ctypes.Structure):
    """Py_buffer, as the stable ABI lays it out. Source: CPython, Include/pybuffer.h."""

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
    """Return the library's own number of each level that it can run here, best first."""
    lib = _loaded()
    if lib is None:
        return {}
    numbers = {name: lib.dstools_cpu_level(name.encode()) for name in LEVELS}
    return {name: number for name, number in numbers.items() if number >= 0}


@cache
def _loaded() -> ctypes.CDLL | None:
    """Return the library with its signatures set, or None where there is none to use."""
    if os.environ.get("DSTOOLS_NATIVE") == "0" or not LIBRARY.exists():
        return None
    lib = ctypes.CDLL(str(LIBRARY))
    if lib.dstools_cpu_abi() != ABI:
        return None
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(lib, f"dstools_{name}")
        function.argtypes, function.restype = arguments, result
    return lib
