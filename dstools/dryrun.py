"""The output of `--dry-run`: what a plan would write, and whether the disk has room for it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools.options import hint, one_line, terminal
from dstools_converters.errors import size

if TYPE_CHECKING:
    from dstools_converters.plan.plan import Plan


@dataclass(frozen=True)
class Group:
    """The tensors of one role to which the same happens for the same reason."""

    role: str
    action: str
    rule: str  # the reason: "DeepSeek's own", "fp8.toml, rule 2"
    tensors: int
    bytes_in: int
    bytes_out: int


def show_plan(plan: "Plan", out: Path, refusal: str, *, lists_tensors: bool, as_json: bool) -> None:
    """Print the plan: tables, with `lists_tensors` a line for each tensor first, or JSON.

    Then say on stderr whether the same command would run without --dry-run; `refusal` is why it
    would not, "" if nothing is in its way but perhaps the disk.
    """
    from dstools_converters.sidefiles.carried import carried_files

    place = out.absolute()
    parent = next(folder for folder in (*place.parents, place) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    carried = carried_files(plan.inventory.checkpoint.folder).values()
    needed = plan.bytes_out + plan.scratch_bytes + sum(file.stat().st_size for file in carried)
    if as_json:
        click.echo(json.dumps(_as_dict(plan) | {"disk_needed": needed, "disk_free": free}))
    else:
        if lists_tensors:
            for line in _tensor_lines(plan):
                click.echo(one_line(line))
        for line in _table(plan):
            click.echo(terminal(line))
        click.echo(f"disk: {size(needed)} needed, {size(free)} free in {terminal(str(parent))}")
    if refusal:
        hint(f"nothing was written, and the command without --dry-run would fail: {refusal}")
    elif free < needed:
        hint(f"nothing was written; the disk has {size(free)} free, which is too little")
    else:
        hint("nothing was written; the same command without --dry-run does it")


def group_tensors(plan: "Plan") -> list[Group]:
    """Return the tensors of a plan by role, action and rule, the most bytes first."""
    totals: dict[tuple[str, str, str], list[int]] = {}
    names, storage = plan.inventory.names, plan.inventory.storage
    for tensor in plan.decisions:
        source = tensor.source
        parsed = names[source.name]
        role: str = parsed.role if parsed else "unknown"
        if parsed and parsed.part == "bias":
            role += " bias"
        total = totals.setdefault((role, tensor.action, tensor.rule), [0, 0, 0])
        total[0] += 1
        total[1] += storage[source.name].nbytes
        total[2] += tensor.target.nbytes
    groups = [Group(*key, *total) for key, total in totals.items()]
    return sorted(groups, key=lambda group: -group.bytes_in)


def _table(plan: "Plan") -> Iterator[str]:
    """Yield a line for each group of tensors, their sum, and a line about the shards."""
    groups = group_tensors(plan)
    width = max(len(group.role) for group in groups)
    yield f"{'role':{width}}  {'tensors':>7}  {'before':>8}  {'after':>8}  action (rule)"
    for group in groups:
        before, after = size(group.bytes_in), size(group.bytes_out)
        yield (
            f"{group.role:{width}}  {group.tensors:>7,}  {before:>8}  {after:>8}"
            f"  {group.action} ({group.rule})"
        )
    counts = ", ".join(f"{count:,} {action}" for action, count in plan.counts.items())
    before, after = size(plan.bytes_in), size(plan.bytes_out)
    yield f"{'all':{width}}  {len(plan.decisions):>7,}  {before:>8}  {after:>8}  {counts}"
    sizes = [shard.nbytes for shard in plan.shards]
    first, last = plan.shards[0].name, plan.shards[-1].name
    if len(sizes) == 1:
        yield f"shards: {first} of {size(sizes[0])}"
    else:
        smallest, largest = size(min(sizes)), size(max(sizes))
        yield f"shards: {len(sizes)} of {smallest} to {largest}, {first} to {last}"


def _tensor_lines(plan: "Plan") -> Iterator[str]:
    for shard in plan.shards:
        for tensor in shard.tensors:
            outputs = " + ".join(f"{o.dtype} {list(o.shape)}" for o in tensor.target.parts)
            yield (
                f"{shard.name}  {tensor.source.name}  {tensor.source.dtype} -> {outputs}"
                f"  {tensor.action} ({tensor.rule})"
            )


def _as_dict(plan: "Plan") -> dict[str, object]:
    tensors = [
        {
            "name": tensor.source.name,
            "action": tensor.action,
            "rule": tensor.rule,
            "outputs": {o.name: [o.dtype, list(o.shape)] for o in tensor.target.parts},
        }
        for shard in plan.shards
        for tensor in shard.tensors
    ]
    return {
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "groups": [asdict(group) for group in group_tensors(plan)],
        "shards": [{"name": shard.name, "bytes": shard.nbytes} for shard in plan.shards],
        "tensors": tensors,
    }
