"""The command `dstools report`."""

from dataclasses import dataclass
from pathlib import Path

import click

from dstools.options import Command, json_option, path_argument, show

EXAMPLES = """\
dstools report ./DeepSeek-V3-fp8
dstools report ./DeepSeek-V3-fp8 --json"""


@dataclass(frozen=True)
class Written:
    """The files written, and the figures at the top of the report."""

    written: list[str]
    figures: dict[str, float | None]  # null if not measured; shares and errors from 0 to 1
    methods: dict[str, int]  # how many weights each method rounded
    missing: list[str]


@click.command(
    cls=Command, epilog=EXAMPLES, short_help="Write plots and tables about a quantized folder."
)
@path_argument("out", metavar="OUT", help="The folder of a quantized checkpoint.")
@json_option
def report(out: str, as_json: bool) -> None:
    """Write OUT/report.html, a page of plots and tables, and OUT/report.md for a model card.

    They show the bytes of the shards and the figures of calibration.json, expert_load.json and
    eval.json, if there, and list what was not measured. Each plot is also a file in OUT/plots,
    which report.md and the model card show.
    """
    from dstools.report.figures import figures
    from dstools.report.sheet import read_sheet
    from dstools.report.written import write_report

    sheet = read_sheet(Path(out))
    computed = figures(sheet)
    written = Written(
        [str(path) for path in write_report(sheet, computed)],
        {headline.key: headline.figure for headline in computed.headlines},
        {method.name: method.weights for method in computed.methods},
        [what for what, _ in computed.missing],
    )
    lines = [f"{h.label:26}{h.value or 'not measured':>14}  {h.note}" for h in computed.headlines]
    show(written, as_json, "\n".join([*lines, *written.written]))
