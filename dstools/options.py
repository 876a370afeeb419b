"""What every command shares: sections in --help, the source argument, results, progress, sizes."""

import dataclasses
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "max_content_width": 100,
    "auto_envvar_prefix": "DSTOOLS",
}
FELL_SHORT = 3  # the exit code where a check that was asked for found something
MAX_WORKERS = 8  # more gain nothing on one disk, and each holds some 10 MB


class Option(click.Option):
    """An option that --help lists under `section`."""

    def __init__(self, *decls: Any, section: str = "Options", **attrs: Any) -> None:
        super().__init__(*decls, **attrs)
        self.section = section


class Command(click.Command):
    """A command whose --help groups options by section, in the order they were declared.

    The arguments come before them, which is click's own doing.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block a section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog as it stands: it holds example commands, which must not be wrapped."""
        if self.epilog:
            lines = "".join(f"  {line}\n" for line in self.epilog.splitlines())
            formatter.write(f"\nExamples:\n{lines}")


def option(*decls: str, section: str = "Options", **attrs: Any) -> Callable[[Any], Any]:
    """Declare an option in a section."""
    return click.option(*decls, cls=Option, section=section, **attrs)


source_argument = click.argument(
    "source", metavar="SOURCE", help="A checkpoint folder, or org/name[@revision] in the Hub cache."
)
out_argument = click.argument("out", metavar="OUT", help="The folder to make; it must not exist.")
json_option = option(
    "--json", "as_json", section="Output", is_flag=True, help="Print the result as one JSON object."
)
workers_option = option(
    "--workers",
    section="Output",
    type=click.IntRange(1, 256),
    default=lambda: min(len(os.sched_getaffinity(0)), MAX_WORKERS),
    show_default=f"the CPUs, {MAX_WORKERS} at most",
    help="Work in this many threads.",
)
dry_run_option = option(
    "--dry-run", section="Output", is_flag=True, help="Print the plan and write nothing."
)
list_option = option(
    "--list",
    "lists_tensors",
    section="Output",
    is_flag=True,
    help="With --dry-run, print a line for each tensor, too.",
)
fsync_option = option(
    "--fsync/--no-fsync",
    "is_synced",
    section="Output",
    default=True,
    help="Flush each shard to the disk, so that a power failure loses none that is finished.",
)


_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class _Size(click.ParamType[int]):
    """Bytes, as "5GB", "64 MiB" or a bare number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip().lower())
        unit = _UNITS.get(found[2]) if found else None
        if found is None or unit is None:
            self.fail(f"{value!r} is no size; as in 5GB or 500MiB", param, ctx)
        return int(float(found[1]) * unit)


SIZE = _Size()


def data_options(section: str) -> Callable[[Any], Any]:
    """Declare how much of a text passes through a model, and with what."""
    declared = (
        option(
            "--samples", section=section, type=click.IntRange(1), default=512,
            help="Take this many samples of the text.",
        ),
        option(
            "--seq-len", section=section, type=click.IntRange(2), default=2048,
            help="Make each sample this many tokens long.",
        ),
        option(
            "--seed", section=section, type=click.IntRange(0), default=0,
            help="Draw the samples by this number.",
        ),
        option(
            "--ram", "ram_bytes", section=section, type=SIZE, default="4GB",
            help="Spill hidden states to the disk beyond this size; a layer's weights come on top.",
        ),
        option(
            "--device", section=section, type=click.Choice(["cpu", "cuda"]), default="cpu",
            help="Run the model there.",
        ),
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        for declare in reversed(declared):
            command = declare(command)
        return command

    return decorate


def terminal(text: str) -> str:
    """Escape what a terminal would act on: names come from files that anybody may have written."""
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in text.split("\n"))


def show(result: Any, as_json: bool, text: str) -> None:
    """Print the result on stdout: `text` for a person, the dataclass as JSON for a program."""
    click.echo(json.dumps(_finite(dataclasses.asdict(result))) if as_json else terminal(text))


def _finite(value: Any) -> Any:
    """Return `value` with null for NaN and infinity, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hint(text: str) -> None:
    """Say on stderr what to do next."""
    click.echo(f"hint: {text}", err=True)


def hint_command(*words: str) -> None:
    """Say on stderr which `dstools` command comes next, as a shell takes it."""
    hint(shlex.join(("dstools", *words)))


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Show one bar in bytes on stderr; nothing where stderr is no terminal."""
    if not total or not sys.stderr.isatty():
        yield lambda nbytes: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, smoothing=0.1) as bar:
        yield bar.update


@contextmanager
def count_bar(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """Show one bar that counts on stderr; nothing where stderr is no terminal."""
    if not total or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit_scale=True, smoothing=0.1) as bar:
        yield bar.update


def size(nbytes: float) -> str:
    """Spell a number of bytes in powers of a thousand: "1.34 TB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.4g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"
