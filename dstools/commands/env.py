"""The command `dstools env`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from dstools.options import Command, json_option, show
from dstools_converters.errors import install_hint, size

if TYPE_CHECKING:
    from dstools.machine import Cuda, Disk, Hub, Memory

EXAMPLES = """\
dstools env
dstools env --json"""
# command -> the extra that it needs; "" for none
NEEDS = {
    "inspect": "",
    "quantize": "",
    "quantize --calibrate": "torch",
    "quantize --sign": "sign",
    "dequantize": "",
    "verify": "",
    "verify --signed-by": "sign",
    "compare": "",
    "eval": "torch",
    "generate": "torch",
    "report": "",
    "distill": "distill",
    "distill --lm-eval": "lm-eval",
    "export": "export",
    "export --check": "check",
    "bench": "export",
    "push": "",
    "env": "",
}
OPS = {
    "triton": "Triton kernels, which have not been run on a GPU yet",
    "reference": "torch",
    "none": "do not run",
}
RUN_OPS = ("quantize --calibrate", "eval", "generate")  # commands that run the ops of a model
WIDTH = 21  # of names in the text
HOPPER = "9."  # how its compute capability begins
TENSORRT_MAJOR, TENSORRT = 11, 'pip install "tensorrt-cu13>=11"'


@dataclass(frozen=True)
class Cpu:
    """The processor."""

    cores: int  # that this process may use
    kernels: str  # the level in use; "numpy" where no library was built
    levels: list[str]  # all that this CPU runs, best first


@dataclass(frozen=True)
class Ops:
    """The form of the operations of a model when it generates."""

    form: str  # "triton"; "reference": torch; "none" where DSTOOLS_KERNELS asks for what is not
    why: str


@dataclass(frozen=True)
class Ability:
    """Whether a command can run here."""

    runs: bool
    note: str  # how, if that is not as well as it could; if not at all, why
    install: str  # the command that helps; "" if none is needed


@dataclass(frozen=True)
class Report:
    """The object that --json prints. Keys stay; more may come.

    dstools, python: versions
    packages: name -> version, null where it is not installed
    cpu: cores, kernels ("avx512vbmi", ... or "numpy"), levels
    memory: total, available, limit (bytes; limit null or that of the container)
    disk: here, temporary (free bytes)
    cuda: available, reason, driver, runtime, devices [{name, capability, memory_bytes}]
    ops: form ("triton", "reference" or "none"), why
    hub: login (null, or the origin of the token), endpoint, is_default_endpoint, is_offline,
        uses_xet
    commands: command -> {runs, note, install}
    """

    dstools: str
    python: str
    packages: dict[str, str | None]
    cpu: Cpu
    memory: "Memory"
    disk: "Disk"
    cuda: "Cuda"
    ops: Ops
    hub: "Hub"
    commands: dict[str, Ability]


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Show what this machine has, and what runs on it."
)
@json_option
def env(as_json: bool) -> None:
    """Show versions, kernels, GPU, memory and the Hub's login, and which commands run here.

    Paste it into a bug report: it has no token.
    """
    import os
    import platform

    from dstools import __version__, machine
    from dstools_kernels.cpu import native

    cpu = Cpu(len(os.sched_getaffinity(0)), native.instruction_set(), native.levels())
    packages, hub = machine.installed(), machine.hub()
    memory, disk = machine.memory(), machine.disk()
    cuda = machine.cuda()  # last, as it may import torch
    ops = _ops(cuda)
    report = Report(
        dstools=__version__,
        python=platform.python_version(),
        packages=packages,
        cpu=cpu,
        memory=memory,
        disk=disk,
        cuda=cuda,
        ops=ops,
        hub=hub,
        commands={
            name: _ability(name, extra, cpu, cuda, ops, hub, packages)
            for name, extra in NEEDS.items()
        },
    )
    show(report, as_json, _text(report))


def _ops(cuda: "Cuda") -> Ops:
    """Return the form of ops on the first GPU, or on the CPU where there is none."""
    from dstools_kernels.ops.dispatch import form

    try:
        if not cuda.available:
            return Ops(*form("cpu"))
        major, _, minor = cuda.devices[0].capability.partition(".")
        return Ops(*form("cuda", (int(major), int(minor)) if minor else None))
    except ValueError as error:
        return Ops("none", str(error))


def _ability(
    name: str,
    extra: str,
    cpu: Cpu,
    cuda: "Cuda",
    ops: Ops,
    hub: "Hub",
    packages: dict[str, str | None],
) -> Ability:
    """Return whether a command can run, from what it needs."""
    import shutil

    from dstools.machine import missing

    if extra and (wanted := missing(extra)):
        more = f" and {len(wanted) - 1} more packages" if wanted[1:] else ""
        return Ability(False, f"needs {wanted[0]}{more}", install_hint(extra))
    if name in RUN_OPS and ops.form == "none":
        return Ability(False, "needs the ops of a model", "unset DSTOOLS_KERNELS")
    if name == "push" and hub.is_offline:
        return Ability(False, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if name == "push" and hub.login is None:
        return Ability(False, "needs a login to the Hub", "hf auth login")
    notes = []
    if extra not in ("", "sign") and not name.startswith("export") and not cuda.available:
        notes.append("on the CPU")
    if name == "export":
        notes += _not_built(cuda, packages)
    if name in ("quantize", "dequantize", "verify", "compare") and cpu.kernels == "numpy":
        notes.append("slowly: without the compiled kernels")
    if name == "distill" and shutil.which("bwrap") is None:
        notes.append("judges no code: bubblewrap is not installed")
    if name == "distill" and ops.form == "none":
        notes.append("samples from endpoints alone: a model here needs its ops")
    return Ability(True, "; ".join(notes), "")


def _not_built(cuda: "Cuda", packages: dict[str, str | None]) -> Iterator[str]:
    """Yield what of an export cannot be built here: engines, which run where they are built."""
    import os
    import shutil

    is_hopper = any(gpu.capability.startswith(HOPPER) for gpu in cuda.devices)
    tensorrt = packages["tensorrt"]
    if not cuda.available:
        yield f"builds no engine: {cuda.reason}"
    elif not is_hopper:
        yield "builds no engine: the plugins are for GPUs of Hopper"
    elif tensorrt is None:
        yield f"builds no engine: TensorRT is not installed ({TENSORRT})"
    elif int(tensorrt.partition(".")[0]) < TENSORRT_MAJOR:
        yield f"builds no engine: TensorRT {tensorrt} is older than {TENSORRT_MAJOR} ({TENSORRT})"
    compiler = os.environ.get("CXX", "g++").split()
    if not compiler or shutil.which(compiler[0]) is None:
        yield f"builds no plugins: {' '.join(compiler[:1]) or 'CXX'} is not installed"
    elif packages["triton"] is None:
        yield "builds no plugins: triton is not installed (pip install triton)"


def _text(report: Report) -> str:
    """Return the report in groups, for a person."""
    packages = {name: found for name, found in report.packages.items() if found}
    groups = {
        "Versions": {"dstools": report.dstools, "python": report.python} | packages,
        "Machine": _machine(report),
        "Hub": _hub(report.hub),
        "Commands": {name: _line(ability) for name, ability in report.commands.items()},
    }
    absent = [name for name, found in report.packages.items() if not found]
    if absent:
        groups["Versions"]["not installed"] = ", ".join(absent)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:{WIDTH}} {value}" for name, value in lines.items())])
        for title, lines in groups.items()
    )


def _machine(report: Report) -> dict[str, str]:
    cpu, memory, cuda = report.cpu, report.memory, report.cuda
    limit = "" if memory.limit is None else f", limited to {size(memory.limit)}"
    text = {
        "CPU": f"{cpu.cores} cores, kernels {cpu.kernels} (of {', '.join(cpu.levels)})",
        "memory": f"{size(memory.total)}, {size(memory.available)} available{limit}",
        "disk": f"{size(report.disk.here)} free here, {size(report.disk.temporary)} for temporary "
        "files",
        "CUDA": f"{cuda.runtime}" if cuda.available else f"not available: {cuda.reason}",
        "driver": cuda.driver or "not available",
        "ops of a model": f"{OPS[report.ops.form]}: {report.ops.why}",
    }
    for number, gpu in enumerate(cuda.devices):
        text[f"GPU {number}"] = f"{gpu.name}, {size(gpu.memory_bytes)}, capability {gpu.capability}"
    return text


def _hub(hub: "Hub") -> dict[str, str]:
    text = {"login": f"from {hub.login}" if hub.login else "none: hf auth login"}
    if not hub.is_default_endpoint:
        text["endpoint"] = hub.endpoint
    if hub.is_offline:
        text["offline"] = "HF_HUB_OFFLINE is set"
    return text | {"Xet": "used" if hub.uses_xet else "not used: large files are sent by LFS"}


def _line(ability: Ability) -> str:
    if not ability.runs:
        return f"does not run: {ability.note}; {ability.install}"
    return f"runs, {ability.note}" if ability.note else "runs"
