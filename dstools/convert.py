"""What `quantize` and `dequantize` share: print the plan, or run it and report."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools import __version__
from dstools.options import hint, progress_bar, show, size, terminal
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_converters.plan.plan import Plan
    from dstools_converters.write.stream import Sink


def convert(
    plan: "Plan",
    out: str,
    *,
    dry_run: bool,
    workers: int,
    is_synced: bool,
    as_json: bool,
    calibrate: "Callable[[Plan, Sink], None] | None" = None,
) -> None:
    """Run the plan with a progress bar, or print it where only that was asked for."""
    from dstools_converters.write.stream import run

    if dry_run:
        _show_plan(plan, as_json)
        return _hint_ahead(plan, Path(out))
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


def _hint_ahead(plan: "Plan", out: Path) -> None:
    """Say what would keep the same command from being done without --dry-run, or that nothing would."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if out.exists():
        hint(f"nothing was written; {out} exists, so name another folder to write to")
    elif free < plan.bytes_out:
        hint(f"nothing was written; the disk has {size(free)} free, which is too little")
    else:
        hint("nothing was written; the same command without --dry-run does it")


def _show_plan(plan: "Plan", as_json: bool) -> None:
    """Print what a run would do: a line a tensor, or one JSON object."""
    if as_json:
        shards = [{"name": shard.name, "bytes": shard.nbytes} for shard in plan.shards]
        tensors = [
            {
                "name": tensor.source.name,
                "action": tensor.action,
                "rule": tensor.rule,
                "outputs": {o.name: [o.dtype, list(o.shape)] for o in tensor.outputs},
            }
            for shard in plan.shards
            for tensor in shard.tensors
        ]
        found = {
            "bytes_in": plan.bytes_in,
            "bytes_out": plan.bytes_out,
            "shards": shards,
            "tensors": tensors,
        }
        click.echo(json.dumps(found))
        return
    for shard in plan.shards:
        for tensor in shard.tensors:
            made = " + ".join(f"{o.dtype} {list(o.shape)}" for o in tensor.outputs)
            line = (
                f"{shard.name}  {tensor.source.name}  {tensor.source.dtype} -> {made}"
                f"  ({tensor.action}: {tensor.rule})"
            )
            click.echo(terminal(line))
    counts = ", ".join(f"{count} {action}" for action, count in plan.counts.items())
    click.echo(f"{counts}: {size(plan.bytes_in)} -> {size(plan.bytes_out)}")
