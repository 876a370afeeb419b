"""The kinds of plots as SVG. Colours are classes that svg.css and plots.css give values to.

Values are tooltips, too; the page shows the same numbers in a table.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from dstools.report.numbers import TIMES, number, percent
from dstools_converters.sidefiles.evaluation import Histogram
from dstools_converters.svg import CHAR, PLOT, grid_line, label, text, ticks, vertical_label

STEPS = 8  # classes of a sequential scale: s0 (least) to s7
LOAD_EDGES = (1 / 4, 1 / 2, 4 / 5, 5 / 4, 2, 4)  # over the mean: d0 to d6
LOAD_LABELS = (
    "< ¼",
    "¼ to ½",
    "½ to 0.8",
    "0.8 to 1.25",
    "1.25 to 2",
    "2 to 4",
    f"> 4 {TIMES} mean",
)


class Swatch(NamedTuple):
    """An entry of a legend: a colour class and its meaning."""

    css: str
    label: str


class Drawing(NamedTuple):
    """The elements of a plot, without title and legend."""

    width: float  # pixels, as all coordinates
    height: float
    parts: list[str]
    legend: list[Swatch]


def heat_map(cells: Mapping[tuple[str, int], float], rows: Sequence[str], columns: int) -> Drawing:
    """Return a map of cells[row, layer] >= 0 on a logarithmic scale.

    0 has a class of its own; a missing cell stays blank.
    """
    layers = range(columns)
    edges = _scale(cells.values())
    left = 14 + max(len(row[:30]) for row in rows) * CHAR
    width = min(56, max(13, (PLOT + 300 - left) // len(layers)))
    height = 24
    parts = [label(left - 8, (n + 0.5) * height + 4, row[:30], "end") for n, row in enumerate(rows)]
    for (row, layer), value in cells.items():
        step = _step(value, edges)
        css = "zero" if value == 0 else f"s{step}"
        x, y = left + layer * width, rows.index(row) * height
        tip = f"{row}, layer {layer}: {percent(value)}"
        parts.append(
            f'<rect class="{css}" x="{x:g}" y="{y}" width="{width - 1:g}" height="{height - 1}">'
            f"<title>{text(tip)}</title></rect>"
        )
        if width >= 38:
            on = "on-high" if value and step > STEPS // 2 else "on-low"
            middle = x + width / 2
            parts.append(label(middle, y + height / 2 + 4, number(100 * value), "middle", on))
    bottom = len(rows) * height
    every = 1 if width >= 20 else 5
    parts += [
        label(left + (layer + 0.5) * width, bottom + 14, layer, "middle")
        for layer in layers[::every]
    ]
    right = left + len(layers) * width
    parts.append(label((left + right) / 2, bottom + 32, "layer", "middle", "axis"))
    legend = [Swatch("zero", "0, lossless")] if any(value == 0 for value in cells.values()) else []
    legend += [
        Swatch(f"s{n}", f"{number(100 * low)} to {percent(high)}")
        for n, (low, high) in enumerate(pairwise(edges))
    ]
    return Drawing(right + 8, bottom + 38, parts, legend)


def load_map(layers: Mapping[int, Sequence[int]]) -> Drawing:
    """Return a map of tokens per expert, one row per layer, over the layer's mean.

    One path per class: 58 x 256 cells take 150 kB; as many rects would take a megabyte.
    """
    experts = len(next(iter(layers.values())))
    left, top = 46, 20
    width = min(40.0, max(3.0, (PLOT + 240) // experts))
    height = 22 if len(layers) <= 24 else 12
    paths: dict[str, list[str]] = {}
    parts = []
    right = left + experts * width
    for n, (layer, tokens) in enumerate(layers.items()):
        mean = sum(tokens) / experts
        y = top + n * height
        classes = [_load_class(count, mean) for count in tokens]
        start = 0
        for expert in range(1, experts + 1):  # a run of one class is one rectangle
            if expert == experts or classes[expert] != classes[start]:
                x, run = left + start * width, (expert - start) * width
                rect = f"M{x:g} {y}h{run:g}v{height - 1}h-{run:g}z"
                paths.setdefault(classes[start], []).append(rect)
                start = expert
        parts.append(label(left - 8, y + height / 2 + 3.5, layer, "end"))
        most = f"{max(tokens) / mean:.2f} {TIMES}" if mean else "no token"
        parts.append(label(right + 8, y + height / 2 + 3.5, most, "start"))
    cells = [f'<path class="{css}" d="{"".join(d)}"/>' for css, d in sorted(paths.items())]
    bottom = top + len(layers) * height
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024) if step * width >= 26)
    parts += [
        label(left + (expert + 0.5) * width, bottom + 14, expert, "middle")
        for expert in range(0, experts, every)
    ]
    parts.append(label((left + right) / 2, bottom + 32, "expert", "middle", "axis"))
    parts.append(label(left - 8, 12, "layer", "end", "axis"))
    parts.append(label(right + 8, 12, "largest / mean", "start", "axis"))
    legend = [Swatch(f"d{n}", multiple) for n, multiple in enumerate(LOAD_LABELS)]
    if "never" in paths:
        legend.append(Swatch("never", "never chosen"))
    return Drawing(right + 96, bottom + 38, cells + parts, legend)


def histogram(tokens: Histogram, marks: Mapping[str, float]) -> Drawing:
    """Return bars of the share of tokens between log-spaced edges, with lines at `marks`."""
    edges, counts = list(tokens.edges), tokens.counts
    if edges[0] == 0:  # has no logarithm: the first bar gets the second's width
        after = edges[2] / edges[1] if len(edges) > 2 else 10.0
        edges = [edges[1] / after, *edges[1:]]
    total = max(sum(counts), 1)
    top_share = max(max(counts) / total, 1e-9)
    shares = ticks(0, top_share)
    left, right, top, bottom = 52, PLOT - 12, 44, 244
    low, high = math.log10(edges[0]), math.log10(edges[-1])

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    def y(share: float) -> float:
        return bottom - share / shares[-1] * (bottom - top)

    parts = [_grid_line(left, right, y(tick), tick) for tick in shares]
    for n, count in enumerate(counts):
        if count:
            begin, end = x(edges[n]), x(edges[n + 1])
            tip = f"{edges[n]:.3g} to {edges[n + 1]:.3g} nats: {count:,} tokens"
            parts.append(_bar(begin, y(count / total), end - begin, bottom, tip))
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        at = x(10.0**exponent)
        parts.append(f'<path class="tick" d="M{at:.1f} {bottom}v5"/>')
        parts.append(label(at, bottom + 19, f"1e{exponent}" if exponent else "1", "middle"))
    for n, (mark, value) in enumerate(marks.items()):
        if edges[0] <= value <= edges[-1]:
            at, level = x(value), 12 + 15 * n
            side, shift = ("end", -5) if n == 0 and at > left + 100 else ("start", 5)
            if at > right - 150:
                side, shift = "end", -5
            parts.append(f'<path class="mark" d="M{at:.1f} {level - 9}V{bottom}"/>')
            parts.append(label(at + shift, level, f"{mark} {number(value)}", side, "strong"))
    parts.append(label((left + right) / 2, bottom + 38, "KL, nats", "middle", "axis"))
    parts.append(vertical_label(10, (top + bottom) / 2, "share of tokens"))
    return Drawing(PLOT, bottom + 46, parts, [])


def layer_bars(shares: Mapping[int, float], axis: str) -> Drawing:
    """Return one bar per layer, of its share."""
    layers = range(max(shares) + 1)
    grid = ticks(0, max([*shares.values(), 1e-3]))
    left, right, top, bottom = 52, PLOT - 12, 12, 172
    step = (right - left) / len(layers)
    width = min(28.0, 0.7 * step)
    parts = []
    for tick in grid:
        y = bottom - tick / grid[-1] * (bottom - top)
        parts.append(_grid_line(left, right, y, tick))
    every = next(every for every in (1, 2, 5, 10, 50, 100, 10**6) if every * step >= 22)
    for layer in layers:
        middle = left + (layer + 0.5) * step
        if layer in shares:
            y = bottom - shares[layer] / grid[-1] * (bottom - top)
            tip = f"layer {layer}: {percent(shares[layer])}"
            parts.append(_bar(middle - width / 2, y, width, bottom, tip))
        if layer % every == 0:
            parts.append(label(middle, bottom + 16, layer, "middle"))
    parts.append(label((left + right) / 2, bottom + 34, "layer", "middle", "axis"))
    parts.append(vertical_label(10, (top + bottom) / 2, axis))
    return Drawing(PLOT, bottom + 40, parts, [])


def _scale(values: Iterable[float]) -> list[float]:
    """Return STEPS + 1 edges, evenly spaced in the logarithm, from the least value to the largest.

    They span at least a factor of 2, so that noise does not look like structure.
    """
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log(min(positive)), math.log(max(positive))
    missing = max(math.log(2) - (high - low), 0) / 2
    low, high = low - missing, high + missing
    return [math.exp(low + (high - low) * n / STEPS) for n in range(STEPS + 1)]


def _step(value: float, edges: Sequence[float]) -> int:
    return min(sum(value >= edge for edge in edges[1:]), STEPS - 1)


def _load_class(count: int, mean: float) -> str:
    return f"d{sum(count / mean >= edge for edge in LOAD_EDGES)}" if count else "never"


def _grid_line(left: float, right: float, y: float, share: float) -> str:
    return grid_line(left, right, y, f"{100 * share:g} %")


def _bar(x: float, y: float, width: float, bottom: float, tip: str) -> str:
    return (
        f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" '
        f'height="{bottom - y:.1f}"><title>{text(tip)}</title></rect>'
    )
