"""Text and tables in Markdown, and the generated part of a card."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dstools_converters.errors import printable

# around the part of a card that is generated; what people write outside of it is kept
BEGIN = "<!-- dstools: generated from here on; write above or below, a push replaces this part -->"
END = "<!-- dstools: generated up to here -->"
RECORD = re.compile(r"<!-- dstools: front matter (\{.*\}) -->")


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


def generated(content: str, keys: Mapping[str, Any] | None = None) -> str:
    """Return Markdown as the part of a card that a push may replace.

    keys: the front matter that is generated too, recorded in a comment, so that a later push can
    tell it from what people wrote.
    """
    part = f"{BEGIN}\n\n{content.strip()}\n\n{END}\n"
    return part if keys is None else with_record(part, keys)


def with_record(part: str, keys: Mapping[str, Any]) -> str:
    """Return a generated part that records `keys`, and nothing that it recorded before."""
    plain = json.dumps(keys, sort_keys=True).replace("--", "-\\u002d")  # -- would end the comment
    record = f"<!-- dstools: front matter {plain} -->"
    rest = RECORD.sub("", part.removeprefix(BEGIN), count=1).lstrip()
    return f"{BEGIN}\n{record}\n\n{rest}" if keys else f"{BEGIN}\n\n{rest}"


def recorded(part: str) -> dict[str, Any]:
    """Return the front matter that a generated part records, {} where it cannot be read."""
    record = RECORD.search(part)
    try:
        keys = json.loads(record.group(1)) if record else {}
    except (ValueError, RecursionError):
        return {}
    return keys if isinstance(keys, dict) else {}
