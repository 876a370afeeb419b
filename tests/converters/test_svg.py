"""Tests of the parts of plots: ticks are round and cover the values, texts are escaped."""

import xml.etree.ElementTree as ET

import pytest

from dstools_converters.svg import STYLE, grid_line, image, label, text, ticks, vertical_label


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (0, 0.9, [0, 0.25, 0.5, 0.75, 1.0]),
        (0, 1.7, [0, 0.5, 1.0, 1.5, 2.0]),
        (0, 37, [0, 10, 20, 30, 40]),
        (1.5, 2.5, [1.5, 1.75, 2.0, 2.25, 2.5]),
        (-0.3, 0.5, [-0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        (1, 12, [0, 5, 10, 15]),
    ],
)
def test_ticks_are_round_and_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected, abs=1e-12)  # multiples of a step


def test_names_of_strangers_stay_text() -> None:
    assert text('<b>"x"\n') == "&lt;b&gt;&quot;x&quot;\\n"
    parts = [label(1, 2, "<script>", "end"), vertical_label(1, 2, "a&b"), grid_line(0, 9, 1, "<")]
    root = ET.fromstring(image("x", "</title>", 10, 20, parts))
    assert [e.text for e in root] == ["</title>", "<script>", "a&b", None, "<"]


def test_an_image_of_a_page_has_no_style_and_one_of_its_own_file_has() -> None:
    assert "<style>" not in image("x", "X", 10, 20, [])
    assert f"<style>{STYLE}</style>" in image("x", "X", 10, 20, [], STYLE)
