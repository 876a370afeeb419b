"""Pieces of the HTML page: sections, figures, legends and tables. They escape their arguments."""

from collections.abc import Collection, Iterable, Sequence
from html import escape

from dstools.report.plots import Swatch
from dstools_converters.svg import text


def section(heading: str, *parts: str) -> str:
    """Return a section of HTML parts."""
    return f"<section>\n<h2>{text(heading)}</h2>\n{''.join(parts)}</section>\n"


def figure(heading: str, svg: str, caption: str, legend: Iterable[Swatch] = ()) -> str:
    """Return a plot with a caption; it scrolls sideways on a narrow screen."""
    return (
        f"<figure><h3>{text(heading)}</h3>\n{scroll(heading, svg)}{swatches(legend)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def scroll(label: str, content: str) -> str:
    """Return `content` in a box that scrolls sideways, also by keyboard."""
    label = text(label)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def swatches(legend: Iterable[Swatch]) -> str:
    """Return a legend."""
    items = "".join(f'<li><i class="{css}"></i>{text(label)}</li>' for css, label in legend)
    return f'<ul class="legend">{items}</ul>' if items else ""


def bar(parts: Iterable[tuple[str, float]]) -> str:
    """Return a bar of coloured parts, each with its share of the width."""
    cells = "".join(f'<i class="{css}" style="width:{100 * x:.3f}%"></i>' for css, x in parts)
    return f'<div class="stack" aria-hidden="true">{cells}</div>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Collection[int] = (),
    caption: str = "",
    bars: Sequence[str] = (),
) -> str:
    """Return a table, its columns `numeric` aligned right and `bars` (HTML) after the first."""

    def cell(tag: str, n: int, value: str) -> str:
        css = ' class="n"' if n in numeric else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{css}>{text(value)}</{tag}>"

    track = '<th scope="col" class="track"></th>' if bars else ""
    heads = [cell("th", n, title) for n, title in enumerate(head)]
    lines = []
    for n, row in enumerate(rows):
        first = f'<th scope="row"{" class=n" if 0 in numeric else ""}>{text(row[0])}</th>'
        between = f'<td class="track">{bars[n]}</td>' if bars else ""
        rest = "".join(cell("td", k, value) for k, value in enumerate(row) if k)
        lines.append(f"<tr>{first}{between}{rest}</tr>\n")
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    content = (
        f"<table{' class=wide' if bars else ''}>{above}<thead><tr>{heads[0]}{track}"
        f"{''.join(heads[1:])}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table>"
    )
    return scroll(caption[:60] or head[0], content)


def details(summary: str, content: str) -> str:
    """Return `content` folded under the line `summary`, which opens it."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>\n"
