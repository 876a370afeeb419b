"""Parts of plots as SVG: labels, axes, ticks and the image that holds them.

Colours are classes. STYLE gives them values for a light and a dark screen; a page includes it once,
and each image that is a file of its own.
"""

import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files

from dstools_converters.errors import printable

CHAR = 6.3  # the largest mean width of a label's characters, in pixels
PLOT = 640  # width of plots that have axes
STYLE = files("dstools_converters").joinpath("svg.css").read_text()


def text(value: object) -> str:
    """Return `value` as HTML and SVG show it: names come from files of unknown origin."""
    return escape(printable(str(value)))


def image(
    name: str, title: str, width: float, height: float, parts: Iterable[str], style: str = ""
) -> str:
    """Return an image with a title for screen readers.

    name: unique on the page. style: STYLE for an image that is a file of its own.
    """
    head, namespace = f'<title id="{name}-title">{text(title)}</title>', ""
    if style:
        namespace = ' xmlns="http://www.w3.org/2000/svg"'
        head += f'<style>{style}</style><rect class="paper" width="100%" height="100%"/>'
    return (
        f'<svg{namespace} role="img" aria-labelledby="{name}-title" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f"{head}{''.join(parts)}</svg>"
    )


def label(x: float, y: float, value: object, anchor: str, css: str = "label") -> str:
    """Return a line of text. anchor: "start", "middle" or "end", the part of it that is at x."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(value)}</text>'
    )


def vertical_label(x: float, y: float, value: str) -> str:
    """Return the name of a vertical axis, centred on x, y."""
    return (
        f'<text class="axis" transform="translate({x:.1f} {y:.1f}) rotate(-90)" '
        f'text-anchor="middle">{text(value)}</text>'
    )


def grid_line(left: float, right: float, y: float, value: str) -> str:
    """Return a horizontal line with its value at the left."""
    line = f'<path class="grid" d="M{left} {y:.1f}H{right}"/>'
    return line + label(left - 6, y + 4, value, "end")


def ticks(low: float, high: float) -> list[float]:
    """Return up to six round numbers, the first at or below `low`, the last at or above `high`."""
    span = high - low
    magnitude = 10.0 ** math.floor(math.log10(span))
    step = next(m * magnitude for m in (0.25, 0.5, 1, 2, 2.5) if 4 * m * magnitude >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, last + 1)]
