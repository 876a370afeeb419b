"""Plots of a card as SVG files; the same numbers give the same bytes.

GitHub and the Hub show them in a README as images, which follow the reader's light or dark theme.
"""

import math
from collections.abc import Mapping, Sequence

from dstools_converters.svg import (
    CHAR,
    PLOT,
    STYLE,
    grid_line,
    image,
    label,
    text,
    ticks,
    vertical_label,
)
from dstools_distill.evaluation.statistics import Interval

COLOURS = 6  # classes c0 to c5 of the style: Okabe and Ito's, brighter on a dark screen
MAX_POINTS = 2000  # of a line; more cannot be seen
TITLE, ROW = 34, 22  # heights

Curve = Sequence[tuple[float, float]]


def lines(name: str, title: str, axis: str, curves: Mapping[str, Curve]) -> str:
    """Return (step, value) pairs as lines, with a legend for several; a NaN leaves a gap."""
    thinned = {key: curve[:: -(-len(curve) // MAX_POINTS) or 1] for key, curve in curves.items()}
    points = [point for curve in thinned.values() for point in curve if math.isfinite(point[1])]
    steps = [step for step, _ in points] or [0.0, 1.0]
    x_ticks, y_ticks = _ticks(steps), _ticks([value for _, value in points] or [0.0, 1.0])
    x_ticks = [tick for tick in x_ticks if tick <= max(steps)]
    last = max(*steps, x_ticks[0] + 1)
    legend = _legend(list(curves)) if len(curves) > 1 else []
    left, right, top = 64, PLOT - 24, TITLE + ROW * math.ceil(len(legend) / 3)
    bottom = top + 240

    def x(step: float) -> float:
        return left + (step - x_ticks[0]) / (last - x_ticks[0]) * (right - left)

    def y(value: float) -> float:
        return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts = [label(left, 16, title, "start", "title"), *legend]
    parts += [grid_line(left, right, y(tick), f"{tick:g}") for tick in y_ticks]
    parts += [label(x(tick), bottom + 18, f"{tick:g}", "middle") for tick in x_ticks]
    for n, curve in enumerate(thinned.values()):
        path, pen = [], "M"
        for step, value in curve:
            if math.isfinite(value):
                path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
            pen = "L" if math.isfinite(value) else "M"
        parts.append(f'<path class="line c{n % COLOURS}" d="{"".join(path)}"/>')
    parts.append(label((left + right) / 2, bottom + 36, "step", "middle", "axis"))
    parts.append(vertical_label(12, (top + bottom) / 2, axis))
    return image(name, title, PLOT, bottom + 44, parts, STYLE)


def intervals(name: str, title: str, axis: str, shares: Mapping[str, Interval]) -> str:
    """Return shares with their intervals, a row for each, the first one at the top."""
    left = 16 + max(len(row) for row in shares) * CHAR
    right, bottom = left + PLOT - 120, TITLE + ROW * len(shares)

    def x(share: float) -> float:
        return left + share * (right - left)

    parts = [label(8, 16, title, "start", "title")]
    for percent in range(0, 101, 20):
        parts.append(f'<path class="grid" d="M{x(percent / 100):.1f} {TITLE}V{bottom}"/>')
        parts.append(label(x(percent / 100), bottom + 16, percent, "middle"))
    for n, (row, (value, low, high)) in enumerate(shares.items()):
        y = TITLE + ROW * (n + 0.5)
        tip = f"{row}: {100 * value:.1f} % ({100 * low:.1f} % to {100 * high:.1f} %)"
        parts.append(label(left - 8, y + 4, row, "end"))
        span = f'<path class="range" d="M{x(low):.1f} {y}H{x(high):.1f}"/>'
        dot = f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="4"/>'
        parts.append(f"<g><title>{text(tip)}</title>{span}{dot}</g>")
    parts.append(label((left + right) / 2, bottom + 34, axis, "middle", "axis"))
    return image(name, title, right + 16, bottom + 42, parts, STYLE)


def _ticks(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return ticks(low, high if high > low else low + 1)


def _legend(names: Sequence[str]) -> list[str]:
    """Return the entries of a legend below the title, three to a row."""
    entries = []
    for n, name in enumerate(names):
        x, y = 64 + n % 3 * 190, TITLE - 4 + ROW * (n // 3)
        line = f'<path class="line c{n % COLOURS}" d="M{x} {y}h16"/>'
        entries.append(line + label(x + 22, y + 4, name[:26], "start"))
    return entries
