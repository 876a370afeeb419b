"""Ahead-of-time compilation of the twins for sm_90a, without a GPU, and what the compiler emitted.

    python -m dstools_kernels.proof.compile            print the static table, compare, gate
    python -m dstools_kernels.proof.compile --write    write golden file and docs/kernels.md anew

With names of twins, e.g. act_quant, only those are compiled, compared and written.

Every record of every CONFIGS is compiled. Its figures have to pass the gates (no spills, no local
memory, the limits of the machine, the instructions that the record asks for) and to be those of the
golden file: what is zero and the matrix and TMA instructions exactly, registers at most 4 more,
other counts within 10 %. ptxas differs from version to version, so that the pin of Triton and the
golden file change together. The exit status is 1 where something fails.

A process with TRITON_INTERPRET=1 compiles nothing.
"""

import argparse
import json
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypedDict

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from dstools_kernels.ops import triton as triton_twins
from dstools_kernels.ops.dispatch import is_interpreted
from dstools_kernels.ops.triton.config import FP_FUSION, Config

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/sm90.json"
PAGE = ROOT / "docs/kernels.md"
TABLE = re.compile(r"(?<=<!-- static table -->\n).*?(?=<!-- end -->)", re.DOTALL)  # of the page
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TARGET = GPUTarget("cuda", 90, 32)  # Triton compiles for sm_90a

MAX_REGISTERS = 65_536  # of an SM
MAX_SHARED_BYTES = 232_448  # 227 KB, of a block
MAX_SM_SHARED_BYTES = 228 * 1024
MAX_WARPS = 64  # of an SM

EXACT = ("QGMMA", "HGMMA", "HMMA", "UTMALDG", "UTMASTG", "LDL", "STL")
CLOSE = (
    "LDGSTS", "LDG", "LDG.128", "STG", "STG.128", "LDS", "STS", "FFMA", "FADD", "FMUL", "MUFU",
    "WARPGROUP.DEPBAR", "SYNCS", "BAR",
)  # fmt: skip
REGISTERS_MORE = 4
SERIAL = 16  # from as many HGMMA on, a wait for every fourth is a serialized product


class Figures(TypedDict):
    """The resources and the launch contract of one compiled kernel, as in the golden file."""

    regs: int
    stack: int
    local: int
    smem: int  # dynamic shared memory, bytes
    block: int  # threads
    global_scratch: int  # bytes of workspace for each block, aligned to 128
    params: str  # kinds and counts in order: p pointers, i, l integers, f floats; hidden ones last
    sass: dict[str, int]  # instructions


class Compiled(NamedTuple):
    """A kernel as compiled."""

    figures: Figures
    opcodes: list[str]
    ptx: str


def all_twins() -> list[str]:
    """Return the names of the ops that have a twin."""
    names = (module.name for module in pkgutil.iter_modules(triton_twins.__path__))
    return [name.removesuffix("_triton") for name in names if name.endswith("_triton")]


def configs(twins: list[str]) -> dict[str, Config]:
    """Return the records of these twins, named as in the golden file."""
    modules = [import_module(f"{triton_twins.__name__}.{name}_triton") for name in twins]
    tables = [getattr(module, "CONFIGS", {}) for module in modules]
    return {name: config for table in tables for name, config in table.items()}


def compile_config(config: Config) -> Compiled:
    """Compile for sm_90a and read the figures from cubin and PTX, as `emit` does."""
    with TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        kernel = emit(config)
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        opcodes = _opcodes(_tool("nvdisasm", "-c", cubin))
        usage = _tool("cuobjdump", "-res-usage", cubin)
    return Compiled(_figures(config, kernel, usage, opcodes), opcodes, kernel.asm["ptx"])


def emit(config: Config) -> Any:
    """Return what Triton compiles for sm_90a, with its cache: `.asm` and `.metadata`.

    Raises ValueError where Triton interprets, RuntimeError where the kernel takes other arguments
    than those of the signature and two pointers; errors of the compiler are Triton's own.
    """
    if is_interpreted():
        raise ValueError("nothing is compiled with TRITON_INTERPRET=1")
    names = config.kernel.arg_names
    source = (GluonASTSource if isinstance(config.kernel, GluonJITFunction) else ASTSource)(
        fn=config.kernel,
        signature={**config.signature, **dict.fromkeys(config.constants, "constexpr")},
        constexprs=config.constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned(config)},
    )
    kernel = triton.compile(source, target=TARGET, options=config.options)
    entry = kernel.asm["ptx"].partition(".entry")[2].partition("{")[0]
    if entry.count(".param") != len(config.signature) + 2:
        raise RuntimeError(f"the launch contract has changed: {entry}")
    return kernel


def aligned(config: Config) -> list[str]:
    """Return the arguments that are compiled as divisible by 16."""
    integers = ("i32", "i64")
    return [
        name
        for name, dtype in config.signature.items()
        if name not in config.unaligned and (dtype[0] == "*" or dtype in integers)
    ]


def threads(kernel: Any) -> int:
    """Return the threads of a block of what `emit` gives."""
    block = re.search(r"\.reqntid (\d+)", kernel.asm["ptx"])
    assert block is not None
    return int(block[1])


def gate(config: Config, compiled: Compiled) -> list[str]:
    """Return what is wrong with a compiled kernel by itself, a line each."""
    figures, opcodes, ptx = compiled
    sass = figures["sass"]
    wrong = [f"{name} is {figures[name]}" for name in ("stack", "local") if figures[name]]
    wrong += [f"{sass[name]} {name}: registers spill" for name in ("LDL", "STL") if sass[name]]
    if (registers := figures["regs"] * figures["block"]) > MAX_REGISTERS:
        wrong.append(f"{registers} registers a block")
    if figures["smem"] > MAX_SHARED_BYTES:
        wrong.append(f"{figures['smem']} bytes of shared memory")
    if sass["HGMMA"] >= SERIAL and 4 * sass["WARPGROUP.DEPBAR"] > sass["HGMMA"]:
        wrong.append(f"{sass['WARPGROUP.DEPBAR']} waits for {sass['HGMMA']} HGMMA: serialized")
    wrong += [f"no {want}" for want in config.needs if not _has(want, opcodes, ptx)]
    wrong += [f"has {want}" for want in config.lacks if _has(want, opcodes, ptx)]
    return wrong


def differences(figures: Figures, golden: Figures) -> list[str]:
    """Return where `figures` are not those of the golden file, a line each."""
    wrong = [
        f"{key} is {figures[key]}, was {golden[key]}"
        for key in ("stack", "local", "smem", "block", "global_scratch", "params")
        if figures[key] != golden[key]
    ]
    if figures["regs"] > golden["regs"] + REGISTERS_MORE:
        wrong.append(f"regs is {figures['regs']}, was {golden['regs']}")
    for key in (*EXACT, *CLOSE):
        now, then = figures["sass"][key], golden["sass"][key]
        slack = 0 if key in EXACT or not then else then / 10
        if abs(now - then) > slack:
            wrong.append(f"{now} {key}, were {then}")
    return wrong


def table(kernels: dict[str, Figures]) -> str:
    """Return the static table in Markdown."""
    lines = [
        "| kernel | regs | threads | smem, B | blocks an SM | scratch, B | parameters | SASS |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in sorted(kernels.items()):
        sass = ", ".join(f"{n} {key}" for key, n in figures["sass"].items() if n)
        numbers = (figures["regs"], figures["block"], figures["smem"], blocks_of_sm(figures))
        cells = (name, *numbers, figures["global_scratch"], figures["params"], sass)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def blocks_of_sm(figures: Figures) -> int:
    """Return how many blocks an SM holds at a time, by registers, warps and shared memory."""
    warps = figures["block"] // 32
    registers = -(-figures["regs"] * 32 // 256) * 256  # of a warp, given out by 256
    by_shared = MAX_SM_SHARED_BYTES // (figures["smem"] + 1024)  # 1 KB is the system's
    return min(MAX_REGISTERS // registers // warps, MAX_WARPS // warps, by_shared, 32)


# ------------------------------------------------------------------------------------ one kernel


def _figures(config: Config, kernel: Any, usage: str, opcodes: list[str]) -> Figures:
    resources = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "regs": resources["REG"],
        "stack": resources["STACK"],
        "local": resources["LOCAL"],
        "smem": kernel.metadata.shared,
        "block": threads(kernel),
        "global_scratch": kernel.metadata.global_scratch_size,
        "params": _params(config),
        "sass": {name: _count(name, opcodes) for name in (*EXACT, *CLOSE)},
    }


def _params(config: Config) -> str:
    """Return e.g. "p5 i3 p2": kinds of arguments with their counts, two hidden pointers last."""
    kinds = ["p" if t[0] == "*" else {"i64": "l"}.get(t, t[0]) for t in config.signature.values()]
    runs: list[tuple[str, int]] = []
    for kind in kinds:
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + 1)
        else:
            runs.append((kind, 1))
    return " ".join(f"{kind}{count}" for kind, count in [*runs, ("p", 2)])


def _tool(name: str, *arguments: str | Path) -> str:
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _opcodes(disassembly: str) -> list[str]:
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", disassembly)


def _count(pattern: str, opcodes: list[str]) -> int:
    """Return how many opcodes start as `pattern` does and have its other parts."""
    first, *rest = pattern.split(".")
    parts = (opcode.split(".") for opcode in opcodes)
    return sum(part[0] == first and set(rest) <= set(part) for part in parts)


def _has(pattern: str, opcodes: list[str], ptx: str) -> bool:
    return _count(pattern, opcodes) > 0 if pattern[0].isupper() else pattern in ptx


# ---------------------------------------------------------------------------------- all of them


def main(arguments: list[str] | None = None) -> int:
    """Compile all configurations; return 1 where a gate or the golden file fails, else 0."""
    parser = argparse.ArgumentParser(description="Compile the Triton twins for sm_90a.")
    parser.add_argument("twins", nargs="*", choices=[*all_twins(), []], metavar="TWIN")
    parser.add_argument("--write", action="store_true", help="write the golden file anew")
    options = parser.parse_args(arguments)
    twins: list[str] = options.twins or all_twins()
    recorded: dict[str, Figures] = json.loads(GOLDEN.read_text())["kernels"]
    golden = {name: fs for name, fs in recorded.items() if name.partition("/")[0] in twins}
    kernels: dict[str, Figures] = {}
    wrong = []
    for name, config in configs(twins).items():
        compiled = compile_config(config)
        kernels[name] = compiled.figures
        lines = gate(config, compiled)
        if not options.write:
            known = golden.get(name)
            lines += differences(compiled.figures, known) if known else ["not in the golden file"]
        wrong += [f"{name}: {line}\n" for line in lines]
    if not options.write:
        extra = golden.keys() - kernels.keys()
        wrong += [f"{name}: in the golden file alone\n" for name in sorted(extra)]
    sys.stdout.write(table(kernels) + "\n")
    sys.stderr.writelines(wrong)
    if options.write:
        others = {name: fs for name, fs in recorded.items() if name not in golden}
        everything = dict(sorted({**others, **kernels}.items()))
        versions = {"triton": triton.__version__, "fp_fusion": FP_FUSION}
        golden_file = {**versions, "kernels": everything}
        GOLDEN.write_text(json.dumps(golden_file, indent=1) + "\n")
        PAGE.write_text(TABLE.sub(f"{table(everything)}\n", PAGE.read_text(), count=1))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
