"""The kinds of plots."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools.report.plots import heat_map, histogram, layer_bars, load_map
from dstools_converters.sidefiles.evaluation import Histogram


def test_the_heat_map_puts_the_extremes_into_the_first_and_last_class() -> None:
    cells = {("q_proj", 0): 0.001, ("q_proj", 1): 0.1, ("o_proj", 1): 0.01, ("o_proj", 0): 0.0}
    _, _, parts, legend = heat_map(cells, ["q_proj", "o_proj"], 2)
    svg = "".join(parts)
    found = dict(re.findall(r'<rect class="(\w+)"[^>]*><title>([^:]+):', svg))
    # 0.01 is the geometric middle of 0.001 and 0.1: the edge between s3 and s4
    assert found.pop("zero") == "o_proj, layer 0"
    assert set(found) <= {"s0", "s3", "s4", "s7"}
    assert (found["s0"], found["s7"]) == ("q_proj, layer 0", "q_proj, layer 1")
    assert [css for css, _ in legend] == ["zero", *(f"s{n}" for n in range(8))]
    assert legend[1].label == "0.100 to 0.178 %"  # 10^(2/8) = 1.778


def test_the_load_map_classes_experts_by_their_multiple_of_the_mean() -> None:
    # mean 100: 0 never, 20 < 1/4, 100 about the mean, 100 joined to it, 280 in 2 to 4
    svg = "".join(load_map({1: [0, 20, 100, 100, 280]}).parts)
    paths = dict(re.findall(r'<path class="(\w+)" d="([^"]*)"', svg))
    assert set(paths) == {"never", "d0", "d3", "d5"}
    assert paths["d3"].count("M") == 1
    width = float(re.findall(r"h(\d+)v", paths["d0"])[0])
    assert f"h{2 * width:g}v" in paths["d3"]
    assert "2.80" in svg


def test_a_histogram_gives_each_bin_its_share_of_the_height() -> None:
    found = Histogram((1e-3, 1e-2, 1e-1, 1.0), (25, 75, 0))
    svg = "".join(histogram(found, {"mean": 0.02, "99th percentile": 5.0}).parts)
    heights = [float(h) for h in re.findall(r'class="bar"[^>]*height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)  # coordinates have one decimal
    assert "mean 0.0200" in svg
    assert "99th" not in svg  # beyond the axis
    assert "".join(histogram(Histogram((0.0, 1e-3, 1e-2), (1, 2)), {}).parts).count('"bar"') == 2


def test_flips_that_are_all_zero_still_have_an_axis() -> None:
    assert "".join(layer_bars({3: 0.0}, "y").parts).count('"grid"') >= 2


def test_a_page_for_671b_stays_small(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    # 58 layers of 256 experts, every neighbour in another class: the worst case of the run lengths
    load = {layer: [1 + (n + layer) % 2 * 7 for n in range(256)] for layer in range(3, 61)}
    svg = "".join(load_map(load).parts)
    assert len(svg) < 500_000
    cells = {(f"role{r}", layer): 0.01 + r for r in range(14) for layer in range(62)}
    assert len("".join(heat_map(cells, [f"role{r}" for r in range(14)], 62).parts)) < 200_000
