"""The command `dstools compare`."""

from typing import TYPE_CHECKING

import click

from dstools.options import (
    FELL_SHORT,
    Command,
    json_option,
    option,
    path_argument,
    progress_bar,
    show,
    workers_option,
)
from dstools_converters.errors import printable

if TYPE_CHECKING:
    from dstools_converters.compare import Error, Report

EXAMPLES = """\
dstools compare ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8
dstools compare ./DeepSeek-V3-bf16 ./DeepSeek-V3-fp8 --max-error 0.03"""


@click.command(cls=Command, epilog=EXAMPLES, short_help="Show the relative errors of B against A.")
@path_argument("a", help="The reference: a folder, or org/name[@revision] in the Hub cache.")
@path_argument("b", help="The checkpoint to compare, named the same way.")
@option(
    "--max-error",
    section="Checks",
    type=click.FloatRange(min=0),
    help="Exit with 3 if the relative error of any tensor is larger.",
)
@workers_option
@json_option
def compare(a: str, b: str, max_error: float | None, workers: int, as_json: bool) -> None:
    """Show the errors of B against A: relative, maximum and bias, by role and worst first."""
    from dstools.source import open_source
    from dstools_converters.checkpoint.inventory import require_sound
    from dstools_converters.compare import compare as compare_inventories

    with open_source(a) as in_a, open_source(b) as in_b:
        total = sum(info.nbytes for info in in_a.tensors.values())
        with progress_bar(total, "compare") as progress:
            report = compare_inventories(
                require_sound(in_a), require_sound(in_b), workers=workers, progress=progress
            )
    show(report, as_json, _text(report))
    if max_error is None:
        return
    worst = report.worst[0].relative if report.worst else 0.0
    if not worst <= max_error:
        name = printable(report.worst[0].name)
        click.echo(f"error: {name} is off by {worst:.3%}", err=True)
    elif report.only_in_a:
        name = printable(report.only_in_a[0])
        click.echo(f"error: {len(report.only_in_a)} tensors are not in B, e.g. {name}", err=True)
    else:
        return
    click.get_current_context().exit(FELL_SHORT)


def _text(report: "Report") -> str:
    def row(error: "Error") -> str:
        name = printable(error.name)
        return f"  {error.relative:>9.4%} {error.max_abs:>11.3g} {error.bias:>+10.1e}  {name}"

    lines = [f"  {'relative':>9} {'max':>11} {'bias':>10}  by role"]
    lines += [row(error) for error in (*report.by_role, report.total)]
    if report.worst:
        lines += ["  worst tensors", *(row(error) for error in report.worst)]
    lines.append(f"{report.compared} tensors compared, {report.identical} identical")
    for where, names in (("A", report.only_in_a), ("B", report.only_in_b)):
        if names:
            lines.append(f"{len(names)} only in {where}, e.g. {printable(names[0])}")
    return "\n".join(lines)
