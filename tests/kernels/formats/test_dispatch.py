"""One call runs the compiled kernel or its numpy twin: the same arguments, the same result."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8_numpy, dispatch, lattice_numpy

KERNELS = ("quantize", "dequantize", "dequantize_float32", "widen", "narrow", "outside_bound")
KERNELS += ("difference", "first_with_all", "largest", "smallest")
SOURCE = Path(__file__).parents[3] / "kernels/dstools_kernels/csrc/cpu/cpu.cpp"
needs_library = pytest.mark.skipif(
    native.levels() == [native.NUMPY], reason="needs libdstools_cpu.so"
)


def test_twins_have_the_same_arguments() -> None:
    declared = re.findall(r"^API \w+ dstools_(\w+)\(int level, ([^)]*)\)", SOURCE.read_text(), re.M)
    twins = {name: getattr(block_fp8_numpy, name) for name in KERNELS}
    twins["recover"] = lattice_numpy.recover
    counts = {name: len(inspect.signature(twin).parameters) for name, twin in twins.items()}
    assert counts == {name: arguments.count(",") + 1 for name, arguments in declared}


def test_every_level_returns_what_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_chosen", None)  # put back at the end
    data = memoryview(b"\0\1\2\177\3")
    for level in native.levels():
        native.use(level)
        out = memoryview(bytearray(4))
        assert dispatch.run("block_fp8", "first_with_all", data, 1, 0x7F, 5) == 3
        assert dispatch.run("block_fp8", "first_with_all", data, 1, 0x7F, 3) == -1
        assert dispatch.run("block_fp8", "widen", memoryview(b"\x80\x3f"), "BF16", 1, out) == 0
        assert out == b"\0\0\x80\x3f"


@needs_library
def test_numpy_is_imported_only_where_it_runs() -> None:
    code = (
        "import sys\n"
        "from dstools_kernels.formats import dispatch\n"
        "dispatch.run('block_fp8', 'first_with_all', memoryview(b'a'), 1, 1, 1)\n"
        "print('numpy' in sys.modules)"
    )
    for value, printed in (("1", "False"), ("0", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DSTOOLS_NATIVE": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == printed
