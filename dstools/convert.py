"""The part that `quantize` and `dequantize` share: run a plan, or print it, and report."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools import __version__
from dstools.options import progress_bar, show, size, terminal
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.plan.plan import Plan
    from dstools_converters.write.stream import Sink


def convert(
    plan: "Plan",
    out: str,
    *,
    dry_run: bool,
    lists_tensors: bool,
    workers: int,
    is_synced: bool,
    as_json: bool,
    calibrate: "Callable[[Plan, Sink], None] | None" = None,
) -> None:
    """Run the plan with a progress bar, or print it if `dry_run`.

    Raises DstoolsError if OUT exists or is inside a source.
    """
    from dstools_converters.write.stream import run

    if lists_tensors and not dry_run:
        raise click.UsageError("--list needs --dry-run")
    if dry_run:
        from dstools.dryrun import show_plan

        show_plan(plan, Path(out), lists_tensors=lists_tensors, as_json=as_json)
        return
    for inventory in (plan.inventory, plan.base):
        if inventory is not None:
            folder = inventory.checkpoint.folder.resolve()
            if Path(out).resolve().is_relative_to(folder):
                raise DstoolsError(f"{out}: lies in {folder}", "name a folder outside the source")
    require_new(out)
    with progress_bar(plan.bytes_in, "convert") as progress:
        report = run(
            plan,
            Path(out),
            tool=f"dstools {__version__}",
            workers=workers,
            is_synced=is_synced,
            progress=progress,
            calibrate=calibrate,
        )
    counts = ", ".join(f"{count} {action}" for action, count in report.tensors.items())
    text = (
        f"{out}: {size(report.bytes_in)} -> {size(report.bytes_out)} in {report.seconds:.1f} s"
        f" ({counts})"
    )
    if report.bytes_resumed:
        text += f"; {size(report.bytes_resumed)} of it an earlier run had done"
    show(report, as_json, text)
    if report.unknown_tensors:
        known = ", ".join(report.unknown_tensors[:3])
        click.echo(terminal(f"warning: carried as they are, of no known role: {known}"), err=True)


def require_new(out: str) -> None:
    """Raise DstoolsError where `out` is there and no run of ours may go on in it."""
    name = Path(out).name  # "." and "/" have none
    is_begun = bool(name) and Path(out).with_name(f"{name}.incomplete").exists()
    if not name or (os.path.lexists(out) and not is_begun):
        raise DstoolsError(f"{out}: exists", "name a new folder, or delete this one")
