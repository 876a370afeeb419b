"""What `dstools export` does for TensorRT once graph and weights are written."""

import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.options import gather, option
from dstools_converters.errors import DstoolsError
from dstools_converters.files import replace_file

if TYPE_CHECKING:
    from dstools_converters.export.deepseek import Job
    from dstools_converters.export.folder import Export

of_tensorrt = partial(option, section="TensorRT")
EXTRA = 'pip install "dstools-llm[check]"'


@dataclass(frozen=True)
class Wants:
    """What is asked for."""

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


def require_possible(wants: Wants, job: "Job") -> None:
    """Raise DstoolsError for what can be refused before anything is written."""
    if wants.check:
        from dstools.machine import missing

        lacking = missing("check")
        if lacking:
            raise DstoolsError(f"--check needs {', '.join(lacking)}", EXTRA)
    if wants.engine:
        from dstools_converters.export.trt.engine import require_sizes

        require_sizes(job)


def finish(
    wants: Wants, folder: Path, written: "Export", job: "Job", command: list[str]
) -> "Export":
    """Build plugins, check and build engines of a folder; return its export.json, which is written.

    command: of the whole export, to run on a machine that can build engines. Raises ShortfallError
    where a check fails, and where this machine cannot build an engine.
    """
    if wants.needs_library:
        written = _build_plugins(folder, written)
    if wants.check:
        from dstools.machine import memory
        from dstools_converters.export.folder import PLUGINS
        from dstools_converters.export.trt.check import check

        written = check(folder, written, job, folder / PLUGINS, memory().free)
    if wants.engine:
        from dstools_converters.export.folder import PLUGINS
        from dstools_converters.export.trt.engine import build_engines

        there = shlex.join(("dstools", *command))
        written = build_engines(folder, written, folder / PLUGINS, there)
    return written


def _build_plugins(folder: Path, written: "Export") -> "Export":
    """Build the library of plugins into a folder, and list it in export.json."""
    from dstools_converters.export.folder import EXPORT, PLUGINS, content_sha256
    from dstools_kernels.plugin import build

    click.echo("plugins   compiling kernels and library", err=True)
    try:
        build(folder / PLUGINS)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise DstoolsError(
            f"{folder / PLUGINS}: {error}", "graph and weights are complete without it"
        ) from error
    files = {**written.files, PLUGINS: content_sha256(folder / PLUGINS)}
    listed = replace(written, files=dict(sorted(files.items())))
    replace_file(folder / EXPORT, listed.to_bytes())
    return listed
