"""The command `dstools env`."""

from dataclasses import dataclass

import click

from dstools.options import Command, json_option, show

EXAMPLES = """\
dstools env
dstools env --json"""


@dataclass(frozen=True)
class Report:
    """The versions and hardware of this machine; "not installed" for a missing package."""

    dstools: str
    python: str
    cpu_kernels: str  # the level in use; "numpy" where no library was built
    cpu_levels: str  # all that this CPU runs
    numpy: str
    torch: str
    transformers: str
    huggingface_hub: str
    cpus: int
    memory_gb: float


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Show versions and CPU kernels for a bug report."
)
@json_option
def env(as_json: bool) -> None:
    """Show versions, CPU kernels and memory of this machine; paste it into a bug report."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from dstools import __version__
    from dstools_kernels.cpu import native

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    report = Report(
        dstools=__version__,
        python=platform.python_version(),
        cpu_kernels=native.instruction_set(),
        cpu_levels=", ".join(native.levels()),
        numpy=installed("numpy"),
        torch=installed("torch"),
        transformers=installed("transformers"),
        huggingface_hub=installed("huggingface_hub"),
        cpus=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    )
    show(report, as_json, "\n".join(f"{key:17}{value}" for key, value in vars(report).items()))
