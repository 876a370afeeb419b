"""The plots of a report: those that there are figures for, on the page and as files of their own.

GitHub and the Hub show a file in a README as an image, which follows the reader's light or dark
theme; its title and legend are inside.
"""

import math
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from dstools.report.figures import Figures, by_model
from dstools.report.plots import Drawing, Swatch, heat_map, histogram, layer_bars, load_map
from dstools.report.sheet import Sheet
from dstools_converters.sidefiles.carried import PLOTS
from dstools_converters.svg import CHAR, PLOT, STYLE, image, label

PLOT_STYLE = STYLE + files("dstools.report").joinpath("plots.css").read_text()
OURS = "<!-- made by dstools report -->"  # in each file
KL, FLIPS, ERROR, ERROR_CALIBRATION, LOAD = PLOTS
MARGIN, TITLE, ROW = 8, 30, 20  # heights and gaps of a file, in pixels
SWATCH = 12
POOLED = "Weights of one role are pooled: root mean square, weighted by their number of elements."
TOGETHER = "Of the weights of one role in a layer together, each expert on the tokens it was sent."


class Plot(NamedTuple):
    """A plot with its words."""

    title: str
    caption: str
    drawing: Drawing


def plots(sheet: Sheet, figures: Figures) -> dict[str, Plot]:
    """Return the plots that there are figures for, by the name of their file in the folder."""
    return dict(_plots(sheet, figures))


def _plots(sheet: Sheet, figures: Figures) -> Iterator[tuple[str, Plot]]:
    evaluation, load = sheet.evaluation, sheet.expert_load
    if evaluation is not None and evaluation.kl_histogram is not None:
        marks = {"mean": evaluation.kl_mean or 0.0, "99th percentile": evaluation.kl_p99 or 0.0}
        caption = (
            "KL(reference \u2016 quantized) of the distribution of the next token, one value per "
            "token. Bins are of equal width in the logarithm; the first and last hold all values "
            "beyond."
        )
        drawing = histogram(evaluation.kl_histogram, marks)
        yield KL, Plot("KL divergence by token", caption, drawing)
    if evaluation is not None and evaluation.router_flips:
        caption = (
            "Share of the router's top-k choices that differ from those of the reference, over all "
            "tokens."
        )
        drawing = layer_bars(evaluation.router_flips, "choices that changed")
        yield FLIPS, Plot("Router flips by layer", caption, drawing)
    mtp = f" Layers from {sheet.layers} on are MTP." if sheet.model.layers_mtp else ""
    columns = 1 + max((layer for _, layer in (*figures.cells, *figures.cells_held_out)), default=0)
    for name, data, cells, pooled in (
        (ERROR, "evaluation data", figures.cells_held_out, TOGETHER),
        (ERROR_CALIBRATION, "calibration data", figures.cells, POOLED),
    ):
        if cells:
            caption = (
                f"Per cent; colours on a logarithmic scale. {pooled}{mtp} Blank: not measured."
            )
            drawing = heat_map(cells, by_model(role for role, _ in cells), columns)
            yield name, Plot(f"Output error by role and layer, {data}", caption, drawing)
    if load is not None and figures.load:
        caption = (
            "Tokens that the router sent to each expert, as a multiple of the mean of its layer's "
            f"experts; at the right, the largest multiple. {load.tokens:,} tokens, each to "
            f"{load.num_experts_per_tok} experts."
        )
        yield LOAD, Plot("Tokens of each expert, by layer", caption, load_map(load.layers))


def inline(name: str, plot: Plot) -> str:
    """Return the image for a page that has PLOT_STYLE, title and legend."""
    drawing = plot.drawing
    return image(_stem(name), plot.title, drawing.width, drawing.height, drawing.parts)


def standalone(name: str, plot: Plot) -> str:
    """Return the image for a file of its own, with style, title and legend."""
    drawing = plot.drawing
    width = max(drawing.width, PLOT)
    legend, rows = _legend(drawing.legend, width)
    top = TITLE + ROW * rows + MARGIN * bool(rows)
    parts = [
        OURS,
        label(MARGIN, 18, plot.title, "start", "title"),
        *legend,
        f'<g transform="translate(0 {top})">{"".join(drawing.parts)}</g>',
    ]
    return image(_stem(name), plot.title, width, top + drawing.height, parts, PLOT_STYLE)


def _legend(swatches: list[Swatch], width: float) -> tuple[list[str], int]:
    """Return the entries below the title, in columns, and the number of their rows."""
    if not swatches:
        return [], 0
    column = SWATCH + 20 + CHAR * max(len(swatch.label) for swatch in swatches)
    rows = math.ceil(len(swatches) / max((width - MARGIN) // column, 1))
    columns = math.ceil(len(swatches) / rows)
    entries = []
    for n, (css, meaning) in enumerate(swatches):
        x, y = MARGIN + n % columns * column, TITLE + n // columns * ROW
        entries.append(
            f'<rect class="{css} swatch" x="{x:.1f}" y="{y}" width="{SWATCH}" height="{SWATCH}"/>'
        )
        entries.append(label(x + SWATCH + 6, y + 10, meaning, "start"))
    return entries, rows


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".svg")
