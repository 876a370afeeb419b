"""Steps of `dstools export` for TensorRT, before and after graph and weights are written."""

import os
import shlex
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.options import gather, option
from dstools_converters.errors import DstoolsError, install_hint, printable
from dstools_converters.files import replace_file

if TYPE_CHECKING:
    from dstools_converters.export.deepseek import Job
    from dstools_converters.export.folder import Export

of_tensorrt = partial(option, section="TensorRT")


@dataclass(frozen=True)
class Wants:
    """The options of TensorRT."""

    plugins: bool
    check: bool
    engine: bool

    @property
    def needs_library(self) -> bool:
        """Return whether the library of plugins is needed."""
        return self.plugins or self.check or self.engine


trt_options = gather(
    "wants",
    Wants,
    of_tensorrt("--plugins", is_flag=True, help="Compile the library of TensorRT plugins, too."),
    of_tensorrt(
        "--check",
        is_flag=True,
        help="Build the graph in TensorRT-RTX, without a GPU, and compare its logits in ONNX "
        "Runtime with the checkpoint's.",
    ),
    of_tensorrt(
        "--trt",
        "engine",
        is_flag=True,
        help="Build an engine, on a Hopper machine with TensorRT 11; elsewhere exit with 3.",
    ),
)


def prepare(wants: Wants, job: "Job") -> bytes:
    """Return the library of plugins, b"" where none is needed, before anything else is written.

    Raises DstoolsError for what cannot be done here, and for what no kernel runs.
    """
    if wants.check:
        from dstools.machine import memory, missing
        from dstools_converters.export.trt.check import require_memory

        absent = missing("check")
        if absent:
            raise DstoolsError(f"--check needs {', '.join(absent)}", install_hint("check"))
        require_memory(job, memory().free)
    if wants.engine:
        from dstools_converters.export.trt.engine import lacking, require_kernels, require_sizes

        require_kernels(job)
        require_sizes(job)
        if absent := lacking():
            click.echo(
                f"warning: no engine is built here: it needs {' and '.join(absent)}", err=True
            )
    elif wants.plugins and not wants.check:  # with which TensorRT-RTX says it
        from dstools_converters.export.trt.engine import why_not

        refusal = why_not(job)
        if refusal is not None:
            click.echo(f"warning: no kernel runs this graph: {refusal.what}", err=True)
    return _compiled() if wants.needs_library else b""


def finish(wants: Wants, folder: Path, job: "Job", library: bytes, command: list[str]) -> "Export":
    """Add plugins, checks and engines to a folder that is written; return its export.json.

    library: what `prepare` returned; command: of the whole export, to run on a machine that can
    build engines. Raises DstoolsError where another run is at it, ShortfallError where a check
    fails, and where this machine cannot build an engine.
    """
    from dstools_converters.export.folder import require_export
    from dstools_converters.export.unfinished import lock_folder

    lock = lock_folder(folder)
    try:
        return _finish(wants, folder, require_export(folder), job, library, command)
    finally:
        os.close(lock)


def _finish(
    wants: Wants, folder: Path, written: "Export", job: "Job", library: bytes, command: list[str]
) -> "Export":
    """Do what `finish` does, under the lock of the folder."""
    from dstools_converters.export.folder import PLUGINS

    if library:
        written = _with_library(folder, written, library)
    if wants.check:
        from dstools_converters.export.trt.check import check

        known = written.notes
        written = check(folder, written, job, folder / PLUGINS)
        for note in written.notes[len(known) :]:
            click.echo(f"warning: {note}", err=True)
    if wants.engine:
        from dstools_converters.export.trt.engine import build_engines

        there = shlex.join(("dstools", *command))
        written = build_engines(folder, written, folder / PLUGINS, there)
    return written


def _with_library(folder: Path, written: "Export", library: bytes) -> "Export":
    """Write the library of plugins; return the new export.json, which is written.

    Verdicts and engines of another library count no more: engines have it inside.
    """
    from dstools_converters.export.folder import EXPORT, PLUGINS, content_sha256

    digest = content_sha256(library)
    if written.files.get(PLUGINS) != digest:
        for name in written.engines:
            (folder / name).unlink(missing_ok=True)
        written = replace(written, checks={}, engines={})
    replace_file(folder / PLUGINS, library)
    written = replace(written, files=dict(sorted({**written.files, PLUGINS: digest}.items())))
    replace_file(folder / EXPORT, written.to_bytes())
    return written


def _compiled() -> bytes:
    """Return the library of plugins; raise DstoolsError where it does not compile."""
    if find_spec("triton") is None:
        raise DstoolsError(
            "triton, which compiles the kernels of the plugins, is not installed",
            "pip install triton",
        )
    from tempfile import TemporaryDirectory

    from dstools_kernels.plugin import build

    click.echo("plugins   compiling kernels and library", err=True)
    with TemporaryDirectory(prefix="dstools-plugins-") as temporary:
        library = Path(temporary) / "library.so"
        try:
            build(library)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            lines = str(error).strip().split("\n")
            reason = next((line for line in lines if "error:" in line), lines[0])
            raise DstoolsError(
                f"the library of plugins: {printable(reason)}",
                "graph and weights need no plugins: they are exported without this option",
            ) from error
        return library.read_bytes()
