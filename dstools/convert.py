"""The part that `quantize` and `dequantize` share: run a plan, or print it, and report."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools import __version__
from dstools.options import (
    gather,
    hint_command,
    json_option,
    option,
    progress_bar,
    show,
    terminal,
    warn,
    workers_option,
)
from dstools_converters.errors import DstoolsError, Finding, printable, size
from dstools_converters.files import real

if TYPE_CHECKING:
    from dstools_converters.plan.plan import Plan
    from dstools_converters.write.stream import Report, Sink


TOOL = f"dstools {__version__}"


@dataclass(frozen=True)
class RunOptions:
    """The options of the section Output."""

    dry_run: bool
    lists_tensors: bool
    workers: int
    is_synced: bool
    writes_sums: bool
    key: Path | None
    as_json: bool


run_options = gather(
    "options",
    RunOptions,
    option("--dry-run", section="Output", is_flag=True, help="Print the plan and write nothing."),
    option(
        "--list",
        "lists_tensors",
        section="Output",
        is_flag=True,
        help="With --dry-run, print a line for each tensor, too.",
    ),
    workers_option,
    option(
        "--fsync/--no-fsync",
        "is_synced",
        section="Output",
        default=True,
        help="Flush each shard to disk, so that a power failure loses no finished one.",
    ),
    option(
        "--sums/--no-sums",
        "writes_sums",
        section="Output",
        default=True,
        help="Write SHA256SUMS, the hash of every file.",
    ),
    option(
        "--sign",
        "key",
        metavar="KEY.pem",
        section="Output",
        type=click.Path(path_type=Path),
        help="Write model.sig, a signature of the folder, with this elliptic curve key.",
    ),
    json_option,
)


def convert(
    plan: "Plan",
    source: str,
    out: str,
    options: RunOptions,
    calibrate: "Callable[[Plan, Sink], None] | None" = None,
) -> None:
    """Run the plan with a progress bar, or print it if `dry_run`.

    Raises DstoolsError if OUT exists or is inside a source; a dry run prints that.
    """
    from dstools_converters.write.stream import require_resumable, run

    signer = None
    if options.key is not None:
        from dstools_converters.sidefiles.signature import load_signer

        signer = load_signer(options.key)  # before hours of work
    if options.lists_tensors and not options.dry_run:
        raise click.UsageError("--list needs --dry-run")
    if options.dry_run:
        from dstools.dryrun import show_plan

        try:
            _require_place(plan, out)
            require_resumable(plan, Path(out), TOOL)
            refusal = ""
        except DstoolsError as error:
            refusal = f"{error}; {error.hint}"
        _warn(plan)
        lists = options.lists_tensors
        show_plan(plan, Path(out), refusal, lists_tensors=lists, as_json=options.as_json)
        return
    _require_place(plan, out)
    _warn(plan)
    with progress_bar(plan.bytes_in, "convert") as progress:
        report = run(
            plan,
            Path(out),
            tool=TOOL,
            workers=options.workers,
            is_synced=options.is_synced,
            writes_sums=options.writes_sums,
            sign=signer,
            progress=progress,
            calibrate=calibrate,
        )
    _show_report(report, out, options.as_json)
    hint_command("verify", out, "--source", source)


def _warn(plan: "Plan") -> None:
    """Print what the output will lack, and what engines will not run of it.

    Raises DstoolsError for a tokenizer that cannot be read, and for files that are not copied: a
    link out of the folder, a file that is too large. Token ids without an embedding are a warning
    here: a padding token that no prompt has is often one.
    """
    from dstools_converters.checkpoint.config import check_numbers
    from dstools_converters.checkpoint.tied import check_tied
    from dstools_converters.plan.cache import check_cache
    from dstools_converters.plan.merged import check_merged
    from dstools_converters.sidefiles.carried import carried_files, check_side_files

    carried_files(plan.inventory.checkpoint.folder)
    side_files = list(check_side_files(plan.inventory.checkpoint))
    for finding in side_files:
        if finding.level == "error" and finding.code != "token-ids":
            raise finding.raised()
    inventory = plan.inventory
    numbers = check_numbers(inventory.checkpoint.config, inventory.model)
    checks = (numbers, check_tied(inventory), check_merged(plan), check_cache(plan))
    for finding in chain(side_files, *checks):
        warn(finding)
    scales = plan.left_out
    if scales:
        warn(
            Finding.warning(
                "scales-left-out",
                scales[0].where,
                f"is one of {len(scales)} scales of activations that are left out: the output has "
                "no use for them",
            )
        )


def _require_place(plan: "Plan", out: str) -> None:
    """Raise DstoolsError if OUT exists or is inside a source."""
    for inventory in (plan.inventory, plan.base):
        if inventory is not None:
            folder = real(inventory.checkpoint.folder)
            if real(Path(out)).is_relative_to(folder):
                raise DstoolsError(f"{out}: is inside {folder}", "name a folder outside the source")
    require_new(out)


def require_new(out: str) -> None:
    """Raise DstoolsError if `out` exists and is not the output of an interrupted run."""
    name = Path(out).name  # "." and "/" have none
    is_begun = bool(name) and Path(out).with_name(f"{name}.incomplete").exists()
    if not name or (os.path.lexists(out) and not is_begun):
        raise DstoolsError(f"{out}: exists", "name a new folder, or delete this one")


def _show_report(report: "Report", out: str, as_json: bool) -> None:
    from dstools_converters.checkpoint.zeros import all_zero

    counts = ", ".join(f"{count} {action}" for action, count in report.tensors.items())
    text = (
        f"{out}: {size(report.bytes_in)} -> {size(report.bytes_out)} in {report.seconds:.1f} s"
        f" ({counts})"
    )
    if report.bytes_resumed:
        text += f"; {size(report.bytes_resumed)} of it written by an earlier run"
    show(report, as_json, text)
    for finding in (*all_zero(report.zero_weights), *report.warnings):
        warn(finding)
    if report.unknown_tensors:
        names = ", ".join(map(printable, report.unknown_tensors[:3]))
        click.echo(terminal(f"warning: copied, but of unknown role: {names}"), err=True)
