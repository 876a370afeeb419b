"""Plots of a card as PNG; the same numbers give the same bytes with the same matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dstools_distill.evaluation.statistics import Interval

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
)  # Okabe, Ito
MOST_POINTS = 2000  # of a line; more cannot be seen
WIDTH, LINE_HEIGHT, ROW_HEIGHT = 7.0, 3.5, 0.32  # inches
DPI = 120


def lines(
    path: Path, title: str, axis: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Plot (step, value) pairs, a line for each name."""
    with _style():
        figure, axes = _new(LINE_HEIGHT, title)
        for name, found in curves.items():
            kept = found[:: -(-len(found) // MOST_POINTS)] if found else found
            axes.plot([step for step, _ in kept], [value for _, value in kept], label=name, lw=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(axis)
        axes.grid(visible=True, lw=0.4, color="#dddddd")
        if len(curves) > 1:
            axes.legend(fontsize=7, frameon=False, ncols=1 + len(curves) // 10)
        _save(figure, path)


def intervals(path: Path, title: str, axis: str, found: Mapping[str, Interval]) -> None:
    """Plot shares with their intervals, a row for each name, the first one on top."""
    with _style():
        figure, axes = _new(1.1 + ROW_HEIGHT * len(found), title)
        for row, (value, low, high) in enumerate(found.values()):
            axes.plot([100 * low, 100 * high], [row, row], color=COLOURS[0], lw=2)
            axes.plot([100 * value], [row], "o", color=COLOURS[0], ms=5)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel(axis)
        axes.grid(visible=True, axis="x", lw=0.4, color="#dddddd")
        _save(figure, path)


@contextmanager
def _style() -> Iterator[None]:
    """Set what figures look like, whatever a matplotlibrc says; `$` in a name is no formula."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 9  # in DejaVu Sans, which comes with matplotlib
        mpl.rcParams["axes.prop_cycle"] = cycler(color=COLOURS)
        mpl.rcParams["text.parse_math"] = False
        yield


def _new(height: float, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})  # no version, no date
