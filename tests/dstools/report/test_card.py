"""The report in Markdown: a table for each kind of figure, and a list of those not measured."""

import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from dstools.report.card import card
from dstools.report.drawings import plots
from dstools.report.figures import figures
from dstools.report.sheet import Sheet, read_sheet
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.sidefiles.carried import PLOTS

HEADINGS = ("Output against the reference",) * 2 + ("Output error by role",) * 2 + ("Expert load",)


def made(sheet: Sheet) -> str:
    return card(sheet, figures(sheet), plots(sheet, figures(sheet)))


def table(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its head included."""
    section = markdown.partition(f"{heading}\n")[2].partition("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [row.strip("| ").split(" | ") for row in rows if not row.startswith("| ---")]


def test_the_card_has_a_section_for_each_kind_of_figure(measured: Path) -> None:
    markdown = made(read_sheet(measured))
    assert [line for line in markdown.splitlines() if line.startswith("#")] == [
        "## Quantization of tiny-fp8",
        "### Output against the reference",
        "### Output error by role",
        "### Rounding",
        "### Expert load",
        "### Bytes",
        "### How it was made",
    ]
    assert "Not measured" not in markdown
    assert markdown.endswith(" |\n")
    assert "\n\n\n" not in markdown


def test_errors_and_methods_are_tables(measured: Path) -> None:
    markdown = made(read_sheet(measured))
    errors = {row[0]: row[1:] for row in table(markdown, "### Output error by role")}
    assert errors["routed_down"] == ["24", "2.00 %", "2.00 %", "\u2013"]
    rules = [line for line in markdown.splitlines() if line.startswith("| ---")]
    assert rules[1] == "| --- | ---: | ---: | ---: | ---: |"  # numbers to the right
    rounding = table(markdown, "### Rounding")
    assert [row[:3] for row in rounding[1:3]] == [
        ["gptq", "80", "76.92 %"],
        ["nearest", "24", "23.08 %"],
    ]
    assert rounding[3:] == [
        ["Method", "Reason (numbers: one example's)", "Weights"],
        ["nearest", "0 tokens, fewer than 160 inputs", "24"],
    ]


def test_the_most_uneven_layer_of_experts_is_named(measured: Path) -> None:
    # layer 2: 2048 tokens over the mean of (2048 + 6 * 341) / 8
    line = f"Largest load over the layer's mean: {2048 / 511.75:.2f} (layer 2, expert 1). "
    assert line + "Experts that no token chose: 1 of 16.\n" in made(read_sheet(measured))


def test_plots_are_shown_where_their_figures_are_and_only_those_that_are_given(
    measured: Path,
) -> None:
    sheet = read_sheet(measured)
    computed = figures(sheet)
    drawn = plots(sheet, computed)
    markdown = card(sheet, computed, drawn)
    for name, heading in zip(PLOTS, HEADINGS, strict=True):
        section = markdown.partition(f"### {heading}\n")[2].partition("\n### ")[0]
        assert f"\n![{drawn[name].title}]({name})\n\n{drawn[name].caption}\n" in section
        others = {key: plot for key, plot in drawn.items() if key != name}
        assert name not in card(sheet, computed, others)
    assert "![" not in card(sheet, computed, {})
    assert "### Output against" not in card(sheet, computed, {})


def test_bytes_by_dtype_are_those_of_the_shards_largest_first(bare: Path) -> None:
    with open_checkpoint(bare) as opened:
        infos = list(opened.tensors.values())
    sizes: dict[str, int] = {}
    for info in infos:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    rows = table(made(read_sheet(bare)), "### Bytes")[1:]
    assert [dtype for dtype, _ in rows] == sorted(sizes, key=lambda dtype: -sizes[dtype])
    shown = {row[0]: row[1] for row in rows}
    assert shown["F8_E4M3"] == f"{sizes['F8_E4M3'] / 1e6:.4g} MB"


def test_what_was_not_measured_is_listed_with_its_command(bare: Path) -> None:
    markdown = made(read_sheet(bare))
    assert "\n\nNot measured:\n\n- perplexity, KL divergence" in markdown
    assert "`dstools eval OUT --data DATA --against SOURCE`" in markdown
    assert "### Rounding" not in markdown
    assert "### Expert load" not in markdown


def test_the_file_is_the_card(ok: Callable[..., Result], measured: Path) -> None:
    ok("report", measured)
    assert (measured / "report.md").read_text() == made(read_sheet(measured))
    assert not re.search(r"\bNone\b", made(read_sheet(measured)))
