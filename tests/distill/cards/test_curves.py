"""Tests of the plots of a card: what is drawn, where, and that the files stand alone."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from dstools_distill.cards.curves import MAX_POINTS, intervals, lines
from dstools_distill.evaluation.statistics import Interval

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg: str, css: str) -> list[str]:
    """Return the data of the paths of a class."""
    return [path.get("d") or "" for path in of_class(svg, css)]


def of_class(svg: str, css: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter() if css in (e.get("class") or "").split()]


def points(data: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", data)]


def test_a_line_goes_through_its_points() -> None:
    """Steps 0 to 100 are 64 to 616 across, values 0 to 4 are 274 up to 34."""
    svg = lines("loss", "Loss by step", "loss", {"sft": [(0, 4.0), (50, 1.0), (100, 0.0)]})
    (line,) = paths(svg, "line")
    assert points(line) == [(64.0, 34.0), (340.0, 214.0), (616.0, 274.0)]


def test_several_lines_have_a_legend_and_colours_of_their_own() -> None:
    svg = lines("loss", "Loss", "loss", {f"run {n}": [(0, 1.0), (n, 2.0)] for n in range(1, 8)})
    drawn = [e for e in of_class(svg, "line") if "h16" not in (e.get("d") or "")]
    colours = [(e.get("class") or "").split()[1] for e in drawn]
    assert colours == ["c0", "c1", "c2", "c3", "c4", "c5", "c0"]
    labels = [e.text for e in of_class(svg, "label")]
    assert [label for label in labels if label and label.startswith("run")] == [
        f"run {n}" for n in range(1, 8)
    ]
    alone = lines("loss", "Loss", "loss", {"run": [(0, 1.0), (1, 2.0)]})
    assert "run" not in [e.text for e in of_class(alone, "label")]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_a_number_leaves_a_gap(bad: float) -> None:
    svg = lines("loss", "Loss", "loss", {"sft": [(0, 1.0), (1, 0.0), (2, bad), (3, 1.0), (4, 0.5)]})
    (line,) = paths(svg, "line")
    assert re.sub(r"[\d. ]", "", line) == "MLML"


def test_nothing_but_nan_leaves_an_empty_plot() -> None:
    (line,) = paths(lines("loss", "Loss", "loss", {"sft": [(0, math.nan)]}), "line")
    assert line == ""


def test_a_single_point_and_a_constant_have_an_axis() -> None:
    for curve in ([(5, 1.5)], [(1, 2.0), (9, 2.0)]):
        assert len(paths(lines("loss", "Loss", "loss", {"sft": curve}), "grid")) >= 2


def test_a_long_curve_is_thinned() -> None:
    svg = lines("loss", "Loss", "loss", {"sft": [(n, n % 7) for n in range(3 * MAX_POINTS + 1)]})
    assert MAX_POINTS / 2 < len(points(paths(svg, "line")[0])) <= MAX_POINTS


def test_an_interval_spans_its_share_of_the_axis() -> None:
    svg = intervals("pass", "pass@1", "pass@1, %", {"after": Interval(0.5, 0.25, 1.0)})
    (span,) = paths(svg, "range")
    grid = [float(d[1:].partition(" ")[0]) for d in paths(svg, "grid")]
    low, high = (float(x) for x in re.findall(r"[MH]([\d.]+)", span))
    quarter = grid[0] + (grid[-1] - grid[0]) / 4
    assert low == pytest.approx(quarter, abs=0.1)  # coordinates have one decimal
    assert high == grid[-1]
    (dot,) = of_class(svg, "dot")
    assert float(dot.get("cx") or 0) == pytest.approx((grid[0] + grid[-1]) / 2, abs=0.1)
    assert "after: 50.0 % (25.0 % to 100.0 %)" in "".join(ET.fromstring(svg).itertext())


def test_a_file_stands_alone_and_knows_a_dark_screen() -> None:
    svg = lines("loss", "<Loss> & co.", "loss", {"<script>": [(0, 1.0)], "b": [(0, 2.0)]})
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    style = root.findtext(f"{SVG}style") or ""
    assert "prefers-color-scheme: dark" in style
    assert "http" not in style
    assert root.find(f"{SVG}script") is None
    assert root.findtext(f"{SVG}title") == "<Loss> & co."
    for css in {css for e in root.iter() for css in (e.get("class") or "").split()} - {"label"}:
        assert f".{css} " in style, f"no colour for {css}"
