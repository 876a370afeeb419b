"""The parts that commands share: option sections in --help, arguments, output, progress, sizes."""

import dataclasses
import functools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click

from dstools_converters.errors import Finding

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "max_content_width": 100,
    "auto_envvar_prefix": "DSTOOLS",
}
FELL_SHORT = 3  # the exit code if a check that the user asked for failed
MAX_WORKERS = 8  # more gain nothing on one disk, and each holds some 10 MB


class Option(click.Option):
    """An option that --help lists under `section`."""

    def __init__(self, *decls: Any, section: str = "Options", **attrs: Any) -> None:
        super().__init__(*decls, **attrs)
        self.section = section


class Command(click.Command):
    """A command whose --help lists options by section, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a block for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog without wrapping: it holds example commands."""
        if self.epilog:
            lines = "".join(f"  {line}\n" for line in self.epilog.splitlines())
            formatter.write(f"\nExamples:\n{lines}")


def option(*decls: str, section: str = "Options", **attrs: Any) -> Callable[[Any], Any]:
    """Declare an option in a section; without a type, shells complete files."""
    if "type" not in attrs:
        attrs["shell_complete"] = _files
    return click.option(*decls, cls=Option, section=section, **attrs)


def path_argument(*decls: str, **attrs: Any) -> Callable[[Any], Any]:
    """Declare an argument that may be a file or folder, which shells complete."""
    return click.argument(*decls, shell_complete=_files, **attrs)


def _files(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def gather(name: str, record: type[Any], *declared: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Declare options that a command gets as one argument `name`, the dataclass `record`."""

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            gathered = {field.name: values.pop(field.name) for field in dataclasses.fields(record)}
            return command(**values, **{name: record(**gathered)})

        for declare in reversed(declared):
            call = declare(call)
        return call

    return decorate


source_argument = path_argument(
    "source", metavar="SOURCE", help="A checkpoint folder, or org/name[@revision] in the Hub cache."
)
out_argument = path_argument("out", metavar="OUT", help="The folder to create; it must not exist.")
json_option = option(
    "--json", "as_json", section="Output", is_flag=True, help="Print the result as one JSON object."
)
device_option = functools.partial(
    option,
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    help="Run the model on this device.",
)
workers_option = option(
    "--workers",
    section="Output",
    type=click.IntRange(1, 256),
    default=lambda: min(len(os.sched_getaffinity(0)), MAX_WORKERS),
    show_default=f"the CPUs, {MAX_WORKERS} at most",
    help="Use this many threads.",
)


_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


class _Size(click.ParamType[int]):
    """Bytes, as "5GB", "64 MiB" or a bare number."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip().lower())
        unit = _UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            self.fail(f"{value!r} is not a size such as 5GB or 500MiB", param, ctx)
        return int(float(match[1]) * unit)


SIZE = _Size()


def terminal(text: str) -> str:
    """Return `text` with control characters escaped: names come from files of unknown origin."""
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in text.split("\n"))


def one_line(text: str) -> str:
    """Return `text` with control characters and ends of lines escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def show(result: Any, as_json: bool, text: str) -> None:
    """Print the result on stdout: `text` for a person, the dataclass as JSON for a program."""
    click.echo(json.dumps(_finite(dataclasses.asdict(result))) if as_json else terminal(text))


def _finite(value: Any) -> Any:
    """Return `value` with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def warn(finding: Finding) -> None:
    """Print a finding on stderr as a warning, and its hint."""
    click.echo(one_line(f"warning: {finding.where}: {finding.message}"), err=True)
    if finding.hint:
        hint(finding.hint)


def hint(text: str) -> None:
    """Print on stderr what to do next."""
    click.echo(one_line(f"hint: {text}"), err=True)


def hint_command(*words: str) -> None:
    """Print on stderr the `dstools` command to run next, quoted for a shell."""
    hint(shlex.join(("dstools", *words)))


def progress_bar(total: int, title: str) -> AbstractContextManager[Callable[[int], object]]:
    """Show a bar that counts bytes on stderr; nothing if stderr is not a terminal."""
    return count_bar(total, title, "B")


@contextmanager
def count_bar(total: int, title: str, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """Show a bar that counts to `total` on stderr; nothing if stderr is not a terminal."""
    if not total or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, unit_scale=True, smoothing=0.1) as bar:
        yield bar.update


def progress_line(text: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(one_line(text), file=sys.stderr)
