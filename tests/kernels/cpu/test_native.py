"""The compiled library: how it is found, chosen and built, and that it stays inside its buffers."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dstools_kernels.cpu import native
from dstools_kernels.formats import block_fp8
from dstools_kernels.fp8 import Dtype

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "kernels/dstools_kernels/csrc/cpu/cpu.cpp"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-trapping-math", "-fno-exceptions"]

needs_library = pytest.mark.skipif(
    native.levels() == [native.NUMPY],
    reason="needs libdstools_cpu.so: install with a C++ compiler present",
)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_levels_end_with_numpy_and_the_first_is_the_choice() -> None:
    assert native.levels()[-1] == native.NUMPY
    assert set(native.levels()) <= {*native.LEVELS, native.NUMPY}
    code = "from dstools_kernels.cpu import native; print(native.instruction_set())"
    environment = dict.fromkeys(("DSTOOLS_ISA", "DSTOOLS_NATIVE"), "")
    assert run_python(code, **environment).stdout.split() == native.levels()[:1]


def test_a_level_can_be_chosen_and_numpy_means_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_chosen", None)
    for name in native.levels():
        native.use(name)
        assert native.instruction_set() == name
        assert (native.library() is None) == (name == native.NUMPY)


def test_a_level_that_is_not_to_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"must be one that runs here, \[.*'numpy'\], got 'sse9'"):
        native.use("sse9")
    before = native.instruction_set()
    monkeypatch.setattr(native, "_numbers", dict)
    with pytest.raises(ValueError, match=r"\['numpy'\], got 'baseline'"):
        native.use("baseline")
    assert native.instruction_set() == before


def test_the_environment_chooses_a_level() -> None:
    code = (
        "from dstools_kernels.cpu import native; print(native.instruction_set(), native.library())"
    )
    assert run_python(code, DSTOOLS_ISA="numpy").stdout.split() == ["numpy", "None"]
    assert run_python(code, DSTOOLS_NATIVE="0").stdout.split() == ["numpy", "None"]
    for name in native.levels()[:-1]:
        assert run_python(code, DSTOOLS_ISA=name).stdout.split()[0] == name
    unknown = run_python(code, DSTOOLS_ISA="avx9")
    assert unknown.returncode == 1
    assert "ValueError: DSTOOLS_ISA must be one that runs here" in unknown.stderr
    contradiction = run_python(code, DSTOOLS_ISA="baseline", DSTOOLS_NATIVE="0")
    assert "ValueError: DSTOOLS_ISA must be one that runs here, ['numpy']" in contradiction.stderr


@needs_library
def test_a_library_of_another_abi_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert native._loaded.__wrapped__() is None


def test_without_a_library_there_is_numpy_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "none.so")
    assert native._loaded.__wrapped__() is None


@pytest.mark.parametrize("buffer", [b"abc", bytearray(b"abc"), memoryview(b"_abc")[1:]])
def test_the_address_of_read_only_buffers_is_that_of_their_bytes(
    buffer: bytes | bytearray | memoryview,
) -> None:
    view = memoryview(buffer)
    assert ctypes.string_at(native.address(view), 3) == b"abc"


def test_taking_an_address_holds_nothing_back() -> None:
    buffer = bytearray(b"abc")
    view = memoryview(buffer)
    native.address(view)
    view.release()
    buffer += b"d"  # fails while anything still exports the memory
    assert buffer == b"abcd"


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: reads an ELF library")
def test_the_library_asks_for_nothing_but_libc() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", native.LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    strong = {line.split()[-1].split("@")[0] for line in listing.splitlines() if " U " in line}
    assert strong <= {"memcpy", "memmove", "memset", "strcmp", "__stack_chk_fail"}


# A program that takes a weight and gives codes, scales and the weight again, each in memory of
# exactly its size: what the sanitizers need, and what can be run for another kind of processor.
DRIVER = f"""
#include "{SOURCE}"
#include <stdio.h>
#include <stdlib.h>
int main(int, char** words) {{
    const int level = dstools_cpu_level(words[1]), dtype = atoi(words[2]);
    const int64_t rows = atol(words[3]), cols = atol(words[4]), block = atol(words[5]);
    const int64_t count = rows * cols, blocks = blocks_of(rows, block) * blocks_of(cols, block);
    const size_t itemsize = dtype == F32_DTYPE ? 4 : 2;
    void* weight = malloc(count * itemsize);
    float* wide = (float*)malloc(count * sizeof *wide);
    uint8_t* codes = (uint8_t*)malloc(count);
    float* scale = (float*)malloc(blocks * sizeof *scale);
    uint16_t* back = (uint16_t*)malloc(count * sizeof *back);
    uint16_t* narrowed = (uint16_t*)malloc(count * sizeof *back);
    if (level < 0 || (int64_t)fread(weight, itemsize, count, stdin) != count) return 2;
    if (dstools_quantize(level, weight, dtype, rows, cols, codes, scale, 0, block) >= 0) return 3;
    dstools_dequantize(level, codes, rows, cols, scale, block, block, back);
    dstools_widen(level, weight, dtype, count, wide);
    int64_t first;
    if (dstools_outside_bound(level, wide, codes, rows, cols, scale, block, block, &first))
        return 4;
    double sums[4];
    dstools_difference(level, wide, wide, count, sums);
    if (sums[0] != 0 || sums[3] != 0) return 5;
    uint8_t* found = (uint8_t*)malloc(count);
    float* found_scale = (float*)malloc(blocks * sizeof *scale);
    if (dstools_recover(level, back, rows, cols, found, found_scale, 0, block) >= 0) return 6;
    dstools_dequantize(level, found, rows, cols, found_scale, block, block, narrowed);
    if (memcmp(narrowed, back, count * sizeof *back)) return 7;
    free(found), free(found_scale);
    dstools_narrow(level, wide, count, narrowed);
    fwrite(codes, 1, count, stdout);
    fwrite(scale, sizeof *scale, blocks, stdout);
    fwrite(back, sizeof *back, count, stdout);
    fwrite(narrowed, sizeof *narrowed, count, stdout);
    free(weight), free(wide), free(codes), free(scale), free(back), free(narrowed);
}}
"""
SHAPES = [(1, 1, 128), (129, 127, 128), (130, 576, 128), (128, 1152, 128), (70, 100, 32)]


def compile_driver(command: list[str], folder: Path) -> Path:
    program = folder / "driver"
    subprocess.run(
        [*command, *FLAGS, "-x", "c++", "-", "-o", program], input=DRIVER.encode(), check=True
    )
    return program


def check_driver(command: list[str | Path], level: str) -> None:
    """Compare what the program gives with what this process gives, for every source format."""
    rng = np.random.default_rng(0)
    for rows, cols, block in SHAPES:
        normal = rng.normal(size=(rows, cols)) * np.exp(3 * rng.normal(size=(rows, cols)))
        float32 = normal.clip(-6e4, 6e4).astype(np.float32)
        bf16 = np.empty((rows, cols), np.uint16)
        block_fp8.narrow(float32, bf16)
        sources: list[tuple[Dtype, bytes]] = [
            ("BF16", bf16.tobytes()),
            ("F16", float32.astype(np.float16).tobytes()),
            ("F32", float32.tobytes()),
        ]
        for number, (dtype, weight) in enumerate(sources):
            count, blocks = rows * cols, -(-rows // block) * -(-cols // block)
            codes, scale, wide = bytearray(count), bytearray(4 * blocks), bytearray(4 * count)
            back, narrowed = bytearray(2 * count), bytearray(2 * count)
            block_fp8.quantize(weight, dtype, cols, codes, scale, "float32", block)
            block_fp8.dequantize(codes, cols, scale, back, (block, block))
            block_fp8.widen(weight, dtype, wide)
            block_fp8.narrow(wide, narrowed)
            sizes = [str(size) for size in (number, rows, cols, block)]
            done = subprocess.run(
                [*command, level, *sizes], input=weight, capture_output=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout == bytes(codes + scale + back + narrowed)


def sanitizing_compiler() -> str | None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    tried = subprocess.run(
        [compiler, "-fsanitize=address,undefined", "-x", "c++", "-", "-o", os.devnull],
        input=b"int main() {}",
        capture_output=True,
        check=False,
    )
    return None if tried.returncode else compiler


@pytest.mark.slow
@pytest.mark.skipif(sanitizing_compiler() is None, reason="needs a C++ compiler with sanitizers")
def test_every_level_stays_inside_its_buffers(tmp_path: Path) -> None:
    compiler = sanitizing_compiler()
    assert compiler is not None
    flags = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-Wno-maybe-uninitialized",
    ]
    program = compile_driver([compiler, *flags], tmp_path)
    for level in native.levels()[:-1]:
        check_driver([program], level)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None, reason="needs g++-aarch64-linux-gnu"
)
@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine than aarch64")
def test_arm_gives_the_same_bytes(tmp_path: Path) -> None:
    program = compile_driver(["aarch64-linux-gnu-g++", "-static", "-Wall", "-Werror"], tmp_path)
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("compiled; needs qemu-user to run it")
    check_driver([emulator, program], "baseline")


def test_the_flags_of_this_file_are_those_of_the_build() -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, the build backend")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert {*FLAGS} - {"-O2"} <= {*build.FLAGS}
