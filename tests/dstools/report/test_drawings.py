"""The plots of a report: which there are, and that their files stand alone."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from dstools.report.drawings import OURS, PLOT_STYLE, Plot, inline, plots, standalone
from dstools.report.figures import figures
from dstools.report.plots import Drawing, Swatch
from dstools.report.sheet import Sheet, read_sheet
from dstools_converters.sidefiles.carried import PLOTS

SVG = "{http://www.w3.org/2000/svg}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def drawn(sheet: Sheet) -> dict[str, Plot]:
    return plots(sheet, figures(sheet))


def test_there_is_a_plot_for_each_kind_of_figure_and_none_without(
    measured: Path, bare: Path
) -> None:
    sheet = read_sheet(measured)
    assert tuple(drawn(sheet)) == PLOTS
    assert [*drawn(replace(sheet, evaluation=None))] == [*PLOTS[3:]]
    assert [*drawn(replace(sheet, expert_load=None))] == [*PLOTS[:4]]
    without = replace(sheet, calibration=None, weights=[])
    assert [*drawn(without)] == [PLOTS[0], PLOTS[1], PLOTS[2], PLOTS[4]]
    assert drawn(replace(without, evaluation=None, expert_load=None)) == {}


def test_an_evaluation_without_a_reference_has_no_plot(measured: Path) -> None:
    found = json.loads((measured / "eval.json").read_text())
    null = ("against", "perplexity_against", "kl_mean", "kl_p99", "kl_max", "top1_agreement")
    found |= dict.fromkeys((*null, "kl_histogram")) | {"router_flips": {}, "output_error": []}
    (measured / "eval.json").write_text(json.dumps(found))
    assert not {*PLOTS[:3]} & drawn(read_sheet(measured)).keys()


def test_a_file_is_xml_with_its_style_title_and_legend_inside(measured: Path) -> None:
    for name, plot in drawn(read_sheet(measured)).items():
        content = standalone(name, plot)
        root = ET.fromstring(content)
        assert root.tag == f"{SVG}svg"
        assert root.findtext(f"{SVG}style") == PLOT_STYLE
        words = [element.text for element in root.iter(f"{SVG}text")]
        assert words[: 1 + len(plot.drawing.legend)] == [
            plot.title,
            *(swatch.label for swatch in plot.drawing.legend),
        ]
        assert OURS in content
        assert not re.search(r"url\(|@import|href|<script", content)
        assert standalone(name, plot) == content


def test_every_class_of_a_file_has_a_rule_in_its_style(measured: Path) -> None:
    known = {*re.findall(r"\.([a-z][\w-]*)", PLOT_STYLE)}
    variables = {*re.findall(r"var\((--\w+)", PLOT_STYLE)}
    assert variables <= {"--c", *re.findall(r"(--\w+):", PLOT_STYLE)}
    for name, plot in drawn(read_sheet(measured)).items():
        used = {css for text in re.findall(r'class="([^"]+)"', standalone(name, plot))
                for css in text.split()}  # fmt: skip
        assert used - {"label"} <= known


def test_a_dark_screen_has_a_colour_for_each_of_a_light_one() -> None:
    light, dark = (
        {*re.findall(r"(--\w+):", block)}
        for block in ("".join(re.findall(pattern, PLOT_STYLE, re.DOTALL)) for pattern in (
            r"(?:^|\n|/ ?):root \{(.*?)\n\}", r"@media screen and [^{]*\{(.*?)\n\}"))
    )  # fmt: skip
    assert light == dark
    assert len(light) > 20


def test_a_legend_is_in_columns_below_the_title_and_moves_the_plot_down() -> None:
    """Labels of 14 letters: 12 + 20 + 14 * 6.3 = 120.2 a column, five fit into 640 - 8; so 4 + 4.

    Two rows of 20 below the title at 30, and a gap of 8: the plot begins at 78.
    """
    legend = [Swatch(f"s{n}", f"1.00 to 1.1{n} %") for n in range(8)]
    plot = Plot("Errors", "", Drawing(300, 100, ["<path/>"], legend))
    content = standalone("plots/x.svg", plot)
    squares = re.findall(r'<rect class="s\d swatch" x="([\d.]+)" y="(\d+)"', content)
    across = ["8.0", "128.2", "248.4", "368.6"]
    assert squares == [*((x, "30") for x in across), *((x, "50") for x in across)]
    assert '<g transform="translate(0 78)"><path/></g>' in content
    assert 'width="640" height="178"' in content
    bare = standalone("plots/x.svg", plot._replace(drawing=Drawing(700, 100, [], [])))
    assert 'width="700" height="130"' in bare


def test_titles_and_labels_are_escaped() -> None:
    plot = Plot("<b>", "", Drawing(10, 10, [], [Swatch("s0", "<i>")]))
    for content in (standalone("plots/x.svg", plot), inline("plots/x.svg", plot)):
        assert "<b>" not in content
        assert "<i>" not in content
    assert 'aria-labelledby="x-title"' in inline("plots/x.svg", plot)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize(("theme", "paper"), [("1", (255, 255, 255)), ("0", (18, 20, 24))])
def test_a_browser_shows_a_file_in_the_reader_s_theme(
    measured: Path, tmp_path: Path, theme: str, paper: tuple[int, int, int]
) -> None:
    """As an image, as GitHub and the Hub show it; the cells of the extremes have both colours."""
    from PIL import Image

    name = PLOTS[3]
    plot = drawn(read_sheet(measured))[name]
    (tmp_path / "plot.svg").write_text(standalone(name, plot))
    (tmp_path / "page.html").write_text('<body style="margin:0"><img src="plot.svg">')
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}",
        f"--blink-settings=preferredColorScheme={theme}", "--window-size=640,400",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    assert shot.getpixel((630, 10)) == paper
    colours = {colour for _, colour in shot.getcolors(1 << 20) or []}
    light = {(234, 242, 251), (7, 53, 107)}  # s0 and s7 of plots.css
    dark = {(22, 40, 60), (214, 235, 255)}
    assert (light <= colours, dark <= colours) == (theme == "1", theme == "0")
