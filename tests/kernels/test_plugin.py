"""The TensorRT plugin library: what it links and embeds, what its host logic launches, and what
TensorRT-RTX makes of it. Nothing here runs on a GPU: launches go to Triton's interpreter, calls of
TensorRT come from a program of our own, the driver is one that writes down what it is asked for.
"""

import os
import re
import shutil
import subprocess
import sys
from ast import literal_eval
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, a development extra")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles in a process without TRITON_INTERPRET=1", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("needs g++", allow_module_level=True)

import json

from dstools_kernels import plugin
from dstools_kernels.proof import compile as proof

PROGRAMS = Path(__file__).parent / "plugin"
GOLDEN = Path(__file__).parents[1] / "golden/plugin.txt"
WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
needs_headers = pytest.mark.skipif(
    find_spec("kernel_lens") is None and "TENSORRT_INCLUDE_DIR" not in os.environ,
    reason="needs the headers of TensorRT, as of kernel-lens",
)
# What the golden file has launches of: op, dtype, tactic, scale, rank, shapes
ATTENTION = "576 9x64x1x576 4 3 3x3"
QUERIES = [
    f"DsMlaAttention bf16 {tactic} 0.1 512 6x{heads}x576 6x{ATTENTION}"
    for tactic, heads in ((0, 4), (2, 20), (3, 64), (5, 72))
] + [
    "DsMlaAttention bf16 0 0.1 512 6x4x576 6x576 9x64x1x576 4 3 3x0",
    "DsMoE bf16 0 0 0 24x256 24x2 24x2 9 4x192x256 4x192x256 4x256x192",
    "DsMoE bf16 2 0 0 700x264 700x3 700x3 200 130x136x264 130x136x264 130x264x136",
    "DsFp8BlockMoE bf16 1 0 0 24x256 24x2 24x2 9 4x192x256 4x2x2 4x192x256 4x2x2 4x256x192 4x2x2",
    "DsFp8BlockMoE bf16 0 0 0 700x272 700x8 700x8 9 4x144x272 4x2x3 4x144x272 4x2x3 4x272x144 "
    "4x3x2",
    "DsFp8BlockLinear bf16 0 0 0 70x272 256x272 2x3",
    "DsFp8BlockLinear f32 2 0 0 70x144 200x144 2x2",
]
# source, what is replaced by what; a host function each, or a rule of one
MUTANTS = [
    ("launch.h", "value > std::numeric_limits", "value >= std::numeric_limits"),
    ("launch.h", "a.kind = 'l';", "a.kind = 'i';"),
    ("launch.h", "case 'l': return argument.int64 % 16 == 0;", ""),
    ("launch.h", "if (is_promised && !is_divisible", "if (!is_divisible"),
    ("launch.h", "if (is_promised && !is_divisible(arguments[at]))", "if (false)"),
    ("launch.h", 'name + ".unaligned"', "name"),
    ("launch.h", "(a + b - 1) / b", "a / b + 1"),
    ("launch.h", "ceil_div(bytes, 256) * 256", "bytes"),
    ("launch.h", "base_ % 128 == 0", "true"),
    (
        "sizes.h",
        "case 'x': return type == x && is_float(type);",
        "case 'x': return is_float(type);",
    ),
    ("sizes.h", "sizes[letter] > size ? sizes[letter] : size", "size"),
    ("sizes.h", "if (is_exact && has_other)", "if (false)"),
    ("sizes.h", "letter == '1' ? size != 1", "letter == '1' ? false"),
    ("sizes.h", "is_exact && *pair", "false && *pair"),
    ("sizes.h", "sizes['B'] + 1", "sizes['B']"),
    ("sizes.h", "sizes['L'] = rank;", ""),
    ("sizes.h", "elements > std::numeric_limits<int32_t>::max() / size", "false"),
    ("linear.h", "rows <= kMostSmallRows ? 0 : 1", "rows < kMostSmallRows ? 0 : 1"),
    ("linear.h", "tiles < kPrograms ? tiles : kPrograms", "tiles"),
    (
        "linear.h",
        "workspace.take(kPrograms * kMaxScratchBytes)",
        "workspace.take(kMaxScratchBytes)",
    ),
    ("linear.h", "y > 65535", "false"),
    ("linear.h", "s['K'] % 16 || s['N'] % 8", "s['K'] % 8 || s['N'] % 8"),
    ("linear.h", "i(depth), i(1), i(rows)", "i(depth), i(groups), i(1)"),
    ("moe.h", "is_fp8 ? 16 : 8", "8"),
    ("moe.h", "s['e'] > kMaxExperts", "false"),
    ("moe.h", "launches.zero(rows.offsets, 4)", "launches.zero(rows.offsets, 0)"),
    ("moe.h", "workspace.take(4 * (experts + 1))", "workspace.take(4)"),
    ("moe.h", "rows.count / shape.rows + filled", "rows.count / shape.rows"),
    ("moe.h", "l(a.columns * a.depth)", "l(a.columns)"),
    ("moe.h", "p(t.in[2]), p(t.out[0]), i(s['D'])", "p(t.in[1]), p(t.out[0]), i(s['D'])"),
    ("moe.h", "{x, 0, t.in[5], 0, up, inner", "{x, 0, t.in[4], 0, up, inner"),
    ("moe.h", "{x, scales, t.in[6], t.in[7], up", "{x, scales, t.in[6], t.in[5], up"),
    ("mla.h", "s['S'] != kPageSize", "false"),
    ("mla.h", "attention.form.heads < 2 * heads", "attention.form.heads <= 2 * heads"),
    ("mla.h", "heads > 16 ? 1 : 0", "heads > 16 ? 0 : 1"),
    ("mla.h", "fitting < 1 ? 1 : fitting", "fitting"),
    ("mla.h", "index / kSplits", "index % kDecodeForms"),
    ("mla.h", "first += part.tokens", "first += part.tokens + 1"),
    ("mla.h", "2 * first * heads * kRank", "first * heads * kRank"),
    ("mla.h", "s['B'] == 0 || s['N'] == 0", "s['B'] == 0"),
    ("mla.h", "allowed > splits ? allowed : splits", "splits"),
    ("ops.h", "is_sensible(attention_at(at), sizes['H'])", "true"),
    ("ops.h", "static_cast<size_t>(tactic) <= count", "tactic <= static_cast<int32_t>(count)"),
    ("ops.h", "static_cast<size_t>(tactic) - 1", "static_cast<size_t>(tactic)"),
    ("ops.h", "if (!why.empty()) throw", "if (false) throw"),
    ("ops.h", "if (op == kMla) return mla_workspace(most);", ""),
]


# ---------------------------------------------------------------------------------- what is made


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with kernels.h and the cubins."""
    folder = tmp_path_factory.mktemp("generated")
    plugin.generate(folder)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library."""
    path = tmp_path_factory.mktemp("library") / "libdstools_trt.so"
    assert plugin.build(path) == ""  # no warning
    return path


def compiled(source: str, out: Path, *options: str | Path) -> Path:
    """Compile a program of the tests."""
    command = ["g++", *WARNINGS, *map(str, options), str(PROGRAMS / source), "-o", str(out), "-ldl"]
    subprocess.run(command, check=True)
    return out


def host_of(sources: Path, generated: Path, out: Path) -> Path:
    return compiled("host.cpp", out, "-I", sources, "-I", generated)


@pytest.fixture(scope="module")
def host(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the host logic."""
    return host_of(plugin.SOURCES, generated, tmp_path_factory.mktemp("host") / "host")


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls the library as TensorRT does, and a folder with a CUDA driver."""
    folder = tmp_path_factory.mktemp("calls")
    includes = [part for path in plugin.include_folders() for part in ("-isystem", path)]
    (folder / "driver").mkdir()
    compiled("driver.cpp", folder / "driver/libcuda.so.1", "-shared", "-fPIC", *includes)
    return compiled("calls.cpp", folder / "calls", *includes)


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def called(calls: Path, library: Path, command: str, **environment: str) -> list[str]:
    return run(calls, library, command, **environment).splitlines()


def with_driver(calls: Path, library: Path, command: str, **environment: str) -> list[str]:
    folder = str(calls.parent / "driver")
    return called(calls, library, command, LD_LIBRARY_PATH=folder, **environment)


def launches(host: Path) -> str:
    """Return what a host launches for all queries; of one that fails, what it printed."""
    commands = ([host, "launches", *query.split()] for query in QUERIES)
    done = [subprocess.run(c, capture_output=True, text=True, check=False) for c in commands]
    return "".join(f"{q}\n{d.stdout}\n" for q, d in zip(QUERIES, done, strict=True))


# ------------------------------------------------------------------------------------ the library


@needs_headers
def test_the_library_links_nothing_of_tensorrt_or_cuda(library: Path) -> None:
    undefined = run("nm", "-D", "--undefined-only", library)
    assert not re.search(r"nvinfer|cuda|\bcu[A-Z]|TensorRT", undefined, re.IGNORECASE)
    needed = re.findall(r"NEEDED.*\[(.*?)\.so", run("readelf", "-d", library))
    assert set(needed) <= {"libstdc++", "libgcc_s", "libc", "libm"}
    defined = run("nm", "-D", "--defined-only", library).split()
    assert defined[2::3] == ["getCreators", "setLoggerFinder"]


@needs_headers
def test_the_library_embeds_each_cubin_and_no_path(library: Path, generated: Path) -> None:
    content = library.read_bytes()
    cubins = sorted(generated.glob("*.cubin"))
    assert len(cubins) == len(plugin.embedded_configs())
    assert all(cubin.read_bytes() in content for cubin in cubins)
    assert str(Path(plugin.__file__).parent).encode() not in content
    assert b"/tmp" not in content


def test_the_table_is_the_launch_contract_of_its_cubins(generated: Path) -> None:
    """Symbols are read from the cubins, arguments from PTX; figures are those that L5 has gated."""
    known = json.loads(proof.GOLDEN.read_text())["kernels"]
    header = (generated / "kernels.h").read_text()
    kinds = {"u64": "pl", "u32": "i", "f32": "f", "b32": "if", "b64": "pl"}
    for number, embedded in enumerate(plugin.embedded_kernels()):
        row = re.search(
            rf'\{{"{re.escape(embedded.name)}", "(\w+)", "(\w+)", (.*), "(\w+)"\}}', header
        )
        assert row is not None
        symbols = run("readelf", "-Ws", generated / f"{number}.cubin")
        assert re.search(rf"FUNC .* {row[1]}$", symbols, re.MULTILINE)
        entry = embedded.kernel.asm["ptx"].partition(".entry")[2].partition("{")[0]
        types = re.findall(r"\.param \.(\w+)", entry)
        assert len(types) == len(row[2]) + 2  # global and profile scratch
        assert all(k in kinds[t] for k, t in zip(row[2].lower(), types, strict=False))
        figures = known.get(
            embedded.name.replace(".unaligned", "").rpartition(".k")[0] or embedded.name
        )
        if figures and not embedded.name.endswith(".unaligned"):
            assert row[3] == f"{figures['block']}, {figures['smem']}, {figures['global_scratch']}"
        assert embedded.hash == row[4]


def test_sums_have_a_kernel_for_each_number_of_slots_and_sizes_of_8_a_fallback() -> None:
    configs = plugin.embedded_configs()
    slots = [configs[f"combine/bf16.k{k}"].constants["SLOTS"] for k in range(1, 9)]
    assert slots == list(range(1, 9))
    assert plugin.argument_letters(configs["combine/bf16.k6"]) == "PPPPI"
    assert plugin.argument_letters(configs["combine/bf16.k6.unaligned"]) == "PPPPi"
    assert plugin.argument_letters(configs["moe_gemm/bf16.64x128x64.w4.s5"]) == "PPPPiiIIL"
    assert plugin.argument_letters(configs["mla_decode/bf16.16x64"]) == "PPPPPPPPfiiiIi"
    assert not any("gluon" in name or "ue8m0" in name for name in configs)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"NvInferRuntime.h is not in .*: set TENSORRT_INCL"
    ):
        plugin.include_folders()
    (tmp_path / "NvInferRuntime.h").touch()
    assert plugin.include_folders()[0] == tmp_path
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cuda.h is not in .*include: install triton"):
        plugin.include_folders()
    monkeypatch.delenv("TENSORRT_INCLUDE_DIR")
    with pytest.raises(FileNotFoundError, match=r"NvInferRuntime.h is not in no folder"):
        plugin.include_folders()
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(FileNotFoundError, match="no-such-compiler is not installed: install g"):
        plugin.build(tmp_path / "library.so")


@needs_headers
def test_a_compiler_that_fails_leaves_the_library_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "generate", lambda folder: (folder / "cubins.cpp").touch())
    out = tmp_path / "libdstools_trt.so"
    out.write_text("of before")
    with pytest.raises(RuntimeError, match=r"does not compile:\n(.|\n)*kernels\.h"):
        plugin.build(out)
    assert [path.name for path in tmp_path.iterdir()] == ["libdstools_trt.so"]
    assert out.read_text() == "of before"
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="nothing is compiled with TRITON_INTERPRET=1"):
        plugin.generate(tmp_path)


@needs_headers
def test_a_warning_stops_no_build_and_nothing_else_lies_beside_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that warns, and writes a library that tells where it was built."""
    compiler, out = tmp_path / "warns", tmp_path / "out" / "libdstools_trt.so"
    out.parent.mkdir()
    compiler.write_text(
        'echo "warning: of a new compiler" >&2\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'echo "$2" > "$2"; ls {out.parent} >> "$2"\n'
    )
    monkeypatch.setattr(plugin, "generate", lambda folder: None)
    monkeypatch.setenv("CXX", f"sh {compiler}")
    assert plugin.build(out) == "warning: of a new compiler\n"
    place, *beside = out.read_text().splitlines()
    assert not Path(place).is_relative_to(out.parent)
    assert beside == []
    assert [path.name for path in out.parent.iterdir()] == [out.name]


# --------------------------------------------------------------------------------- the host logic


def test_the_checks_of_the_host_logic_hold(host: Path) -> None:
    assert run(host, "check") == ""


def test_launches_are_those_of_the_golden_file(host: Path) -> None:
    """That these compute what the ops do is shown by the replay below."""
    assert launches(host) == GOLDEN.read_text()


@pytest.mark.slow
def test_launches_replayed_in_the_interpreter_compute_what_the_ops_do(
    host: Path, generated: Path, tmp_path: Path
) -> None:
    """Another host takes one token of attention at a time, as a smaller limit of memory asks."""
    header = (generated / "kernels.h").read_text()
    small, count = re.subn(r"kMaxPartialBytes = \d+", "kMaxPartialBytes = 1", header)
    assert count == 1
    (tmp_path / "kernels.h").write_text(small)
    other = host_of(plugin.SOURCES, tmp_path, tmp_path / "host")
    script = PROGRAMS / "replay.py"
    lines = run(sys.executable, script, host, other, TRITON_INTERPRET="1").splitlines()
    assert len(lines) >= 18
    assert all(line.startswith("same ") for line in lines)


@pytest.mark.parametrize(
    ("source", "old", "new"), MUTANTS, ids=[f"{name}: {old[:40]}" for name, old, _ in MUTANTS]
)
def test_a_mutant_of_the_host_logic_is_caught(
    source: str, old: str, new: str, generated: Path, tmp_path: Path
) -> None:
    shutil.copytree(plugin.SOURCES, tmp_path / "mutant")
    text = (tmp_path / "mutant" / source).read_text()
    assert text.count(old) == 1
    (tmp_path / "mutant" / source).write_text(text.replace(old, new))
    options = ["-w", "-Wno-error", "-I", str(tmp_path / "mutant"), "-I", str(generated)]
    mutant = compiled("host.cpp", tmp_path / "host", *options)
    done = subprocess.run([mutant, "check"], capture_output=True, timeout=60, check=False)
    assert done.returncode or launches(mutant) != GOLDEN.read_text()


# ---------------------------------------------------------------------------- calls of TensorRT


@needs_headers
def test_attributes_are_read_and_none_is_missing_unknown_or_of_another_type(
    calls: Path, library: Path
) -> None:
    lines = called(calls, library, "creation")
    assert [line for line in lines if line.startswith("created")] == [
        f"created {n}" for n in (1, 1, 0, 0, 0, 0, 0, 0, 1, 0)
    ]
    assert [line for line in lines if line.startswith("log")] == [
        "log 1 DsMlaAttention: attribute scale is missing or not above 0",
        "log 1 DsMlaAttention: attribute rank is missing or not above 0",
        "log 1 DsMlaAttention: attribute scale is missing or not above 0",
        "log 1 DsMlaAttention: attribute rank is not one number of its type",
        "log 1 DsMlaAttention: attribute rank is not one number of its type",
        "log 1 DsMlaAttention: it has no attribute color",
        "log 1 DsMoE: it has no attribute scale",
    ]
    assert lines[-1] == "listed 2 dstools 1"  # dtype is for the ONNX function alone


@needs_headers
def test_a_clone_of_a_clone_carries_attributes_and_tactic(calls: Path, library: Path) -> None:
    lines = with_driver(calls, library, "clones")
    assert lines[0] == lines[1]
    assert re.fullmatch(
        r"fields 2 scale=0.25 rank=512 DsMlaAttention 1 0x1p-2 512 [0-9a-f]{16}", lines[0]
    )
    assert lines[2].startswith("fields 0 DsFp8BlockMoE 1 ")
    assert lines[3] == "DsMlaAttention 1 dstools"
    kernels = re.findall(r"function (\w+)", "\n".join(lines))
    started = [line.split() for line in lines if line.startswith("launch")]
    assert [kernels[int(words[1]) - 1] for words in started] == [
        "lengths_kernel", "slots_kernel", "write_kernel", "plan_kernel", "decode_kernel",
        "merge_kernel",
    ]  # fmt: skip
    assert started[4][2] == "10x1x1"  # tactic 2: 3 x 64 tokens are one split of 1024


@needs_headers
def test_what_the_builder_asks_for(calls: Path, library: Path) -> None:
    lines = called(calls, library, "build")
    assert lines[:2] == ["outputs 2 aliased -1 2", "configure 0"]
    assert re.fullmatch(r"valid 0 1 2 workspace \d+", lines[2])
    assert lines[3:] == [
        "tactics 0 -1",
        "log 2 DsMlaAttention: there are kernels for BF16 alone; the engine will build and not run",
        "configure 0",
        "tactics 0",
        "log 1 DsMlaAttention: cache [65536, 64, 1, 576] has more than 2^31 - 1 elements",
        "configure -1",
        "log 1 DsMlaAttention: it has 6 inputs and 2 outputs",
        "configure -1",
    ]
    assert called(calls, library, "formats") == [
        "x 0: 1 1 1 1 0",
        "x 1: 1 1 1 1 0",
        "x 7: 1 1 1 1 0",
        "x 3: 0 1 1 0 0",
    ]


@needs_headers
def test_no_rows_return_before_an_address_is_touched(calls: Path, library: Path) -> None:
    assert called(calls, library, "empty") == ["enqueue 0", "enqueue 0"]


@needs_headers
def test_without_a_driver_a_launch_is_an_error_and_no_crash(calls: Path, library: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a CUDA driver")
    lines = called(calls, library, "launches")
    missing = "log 1 there is no CUDA driver on this machine: libcuda.so.1 is missing"
    assert lines[:4] == [missing, "onShapeChange 0", missing, "enqueue -1"]
    assert all(line.startswith(("log", "enqueue -1")) for line in lines[2:])
    silent = subprocess.run([calls, library, "silent"], capture_output=True, text=True, check=True)
    assert silent.stderr.splitlines()[0] == missing.replace("log 1", "dstools:")  # no logger


@needs_headers
def test_launches_reach_the_driver_in_order_on_the_stream(calls: Path, library: Path) -> None:
    lines = with_driver(calls, library, "launches")
    kernels = re.findall(r"function (\w+)", "\n".join(lines))
    first, second = (line.split() for line in lines if line.startswith("launch"))
    assert [kernels[int(words[1]) - 1] for words in (first, second)] == [
        "act_quant_kernel", "fp8_gemm_kernel",
    ]  # fmt: skip
    # grid, threads, shared memory, stream, first argument: x, then codes in the workspace
    assert first[2:] == ["1x2x1", "128", "64", "77", str(1 << 20)]
    assert second[2:] == ["3x1x1", "128", "139304", "77", str(1 << 30)]
    assert "attribute 8 139304" in lines  # more than 48 KB has to be asked for
    assert lines[lines.index("enqueue 0") + 1 :] == [
        "log 1 kernel act_quant/bf16.float32: argument 0 is not divisible by 16",
        "enqueue -1",
        "log 1 DsFp8BlockLinear: there are kernels for BF16 and float32 alone",
        "enqueue -1",
        "log 1 DsMlaAttention: cache_out is not in place",
        "enqueue -1",
        *["log 1 DsFp8BlockLinear: the workspace is missing or not aligned", "enqueue -1"] * 2,
    ]


@needs_headers
def test_modules_are_loaded_once_for_a_cuda_context_and_never_by_enqueue(
    calls: Path, library: Path
) -> None:
    """Two execution contexts with tactics of their own, then another CUDA context."""
    lines = with_driver(calls, library, "contexts")
    kinds = [line.split()[0] for line in lines]
    loads = [line for line in lines if line.startswith("load")]
    assert set(loads) == {"load ELF"}
    first, count = kinds.index("onShapeChange"), len(loads) // 2
    assert kinds[:first].count("load") == count
    after = [kind for kind in kinds[first:] if kind not in ("function", "attribute")]
    once = ["launch", "launch", "enqueue"]
    assert after == [
        "onShapeChange", "onShapeChange", *once, *once, "log", "enqueue",
        *["load"] * count, "onShapeChange", *once,
    ]  # fmt: skip
    assert [line for line in lines if line.startswith(("log", "enqueue"))] == [
        "enqueue 0",
        "enqueue 0",
        "log 1 kernel act_quant/bf16.float32 is not loaded in this CUDA context",
        "enqueue -1",
        "enqueue 0",
    ]
    tiles = [line.split()[3] for line in lines if line.startswith("launch")][1::2]
    assert tiles == ["128", "256", "128"]  # threads of the tiles of both tactics


@needs_headers
def test_a_driver_that_refuses_is_quoted(calls: Path, library: Path) -> None:
    lines = with_driver(calls, library, "launches", REFUSES="1")
    assert lines[1] == (
        "log 1 the CUDA driver ended cuModuleLoadData of act_quant/bf16.float32 with error 209"
    )
    assert lines[3:5] == [
        "log 1 kernel act_quant/bf16.float32 is not loaded in this CUDA context",
        "enqueue -1",
    ]
    assert with_driver(calls, library, "launches", NO_CONTEXT="1")[0] == (
        "log 1 no CUDA context is current"
    )


# ---------------------------------------------------------------------------------- TensorRT-RTX


@pytest.fixture(scope="module")
def in_rtx(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """in_rtx(*cases): what TensorRT-RTX says of each, and of the library in the first place."""
    for package in ("onnx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}: tensorrt-rtx-cu13 and onnx")
    spec = find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (libraries,) = spec.submodule_search_locations
    links = tmp_path_factory.mktemp("links")
    # the parser opens the name without a version, which the wheel lacks, and aborts
    (links / "libtensorrt_rtx.so").symlink_to(Path(libraries) / "libtensorrt_rtx.so.1")

    def ask(*cases: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]], str]:
        done = subprocess.run(
            [sys.executable, PROGRAMS / "rtx.py", library],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LD_LIBRARY_PATH": str(links)},
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        return answer["creators"], answer["results"], done.stderr

    return ask


OPS = ("DsMlaAttention", "DsMoE", "DsFp8BlockMoE", "DsFp8BlockLinear")


@needs_headers
def test_a_node_of_each_op_and_dtype_is_one_plugin_and_builds(in_rtx: Any) -> None:
    cases = [{"op": op, "dtype": dtype} for op in OPS for dtype in ("bf16", "f16", "f32")]
    creators, results, said = in_rtx(*cases)
    assert creators == sorted(OPS)
    kinds = {"bf16": "BF16", "f16": "HALF", "f32": "FLOAT"}
    shapes = {"DsMlaAttention": [[-1, 16, 512], [-1, 64, 1, 576]], "DsFp8BlockLinear": [[-1, 384]]}
    for case, result in zip(cases, results, strict=True):
        assert result["plugins"] == 1, case
        assert result["bytes"], (case, result["said"])
        wanted = shapes.get(case["op"], [[-1, 256]])
        assert result["outputs"] == [[f"DataType.{kinds[case['dtype']]}", s] for s in wanted]
    lacks = "there are kernels for BF16 alone; the engine will build and not run"
    assert said.count(f"DsMoE: {lacks}") == 1  # f16 and f32
    assert "DsFp8BlockLinear: there are kernels for BF16 and float32 alone" in said


@needs_headers
def test_the_cache_is_aliased_where_the_preview_feature_allows_it(in_rtx: Any) -> None:
    case = {"op": "DsMlaAttention", "dtype": "bf16"}
    _, (on, off), _ = in_rtx(case, {**case, "is_aliased": False})
    assert on["bytes"]
    assert off["bytes"] is None
    assert "kALIASED_PLUGIN_IO_10_03 not enabled" in " ".join(off["said"])


@needs_headers
@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (
            {"op": "DsMlaAttention", "dtype": "bf16", "changes": {"latent": {"type": 1}}},
            "find any supported ",
        ),
        (
            {"op": "DsFp8BlockMoE", "dtype": "bf16", "changes": {"s1": {"type": 10}}},
            "find any supported ",
        ),
        ({"op": "DsMoE", "dtype": "bf16", "changes": {"ids": {"type": 7}}}, "find any supported "),
        (
            {"op": "DsMlaAttention", "dtype": "bf16", "without": ["scale"]},
            "DsMlaAttention: attribute scale is missing or not above 0",
        ),
        (
            {"op": "DsMlaAttention", "dtype": "bf16", "without": ["rank"]},
            "DsMlaAttention: attribute rank is missing or not above 0",
        ),
        (
            {
                "op": "DsFp8BlockLinear",
                "dtype": "bf16",
                "changes": {"w": {"shape": [1 << 23, 256]}},
            },
            "DsFp8BlockLinear: w [8388608, 256] has more than 2^31 - 1 elements",
        ),
    ],
)
def test_what_a_plugin_does_not_take_is_refused(
    case: dict[str, Any], wanted: str, in_rtx: Any
) -> None:
    _, (result,), said = in_rtx(case)
    assert not result.get("bytes")
    assert wanted in said + " ".join(result["said"])


# ------------------------------------------------------------------------ TensorRT's lean runtime

REGISTER = """
import sys, tensorrt_lean as trt
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
ours = [c for c in registry.all_creators if c.plugin_namespace == "dstools"]
print([(c.name, c.plugin_version) for c in ours])
"""


@needs_headers
@pytest.mark.skipif(find_spec("tensorrt_lean") is None, reason="needs tensorrt-lean-cu13")
def test_genuine_tensorrts_lean_runtime_registers_the_library(library: Path) -> None:
    """11.4.0.106 did on 2026-11-30: a runtime that runs plans, and builds none."""
    said = run(sys.executable, "-c", REGISTER, library)
    assert sorted(literal_eval(said)) == [(op, "1") for op in sorted(OPS)]
