"""Text and tables in Markdown."""

import re
from collections.abc import Iterable, Sequence

from dstools_converters.errors import printable

# around the part of a card that is generated; what people write outside of it is kept
BEGIN = "<!-- dstools: generated from here on; write above or below, a push replaces this part -->"
END = "<!-- dstools: generated up to here -->"


def text(value: str) -> str:
    """Return `value` escaped, so that Markdown shows it as it is: names come from unknown files."""
    plain = printable(value).replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\`*\[\]|~#!]|(?<!\w)_|_(?!\w))", r"\\\1", plain)
    return escaped.replace("://", "&#58;//")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: int = 0) -> str:
    """Return a table, its last `numeric` columns aligned right; "" without rows.

    Cells are escaped, `head` is Markdown. Columns without any text below their head are left out.
    """
    cells = [[text(cell) for cell in row] for row in rows]
    kept = [n for n in range(len(head)) if any(row[n] for row in cells)]
    left = len(head) - numeric
    rule = ["---" if n < left else "---:" for n in range(len(head))]
    lines = [head, rule, *cells] if cells else []
    return "\n".join(f"| {' | '.join(line[n] for n in kept)} |" for line in lines)


def generated(content: str) -> str:
    """Return Markdown as the part of a card that a push may replace."""
    return f"{BEGIN}\n\n{content.strip()}\n\n{END}\n"
