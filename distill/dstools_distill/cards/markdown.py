"""Tables and numbers of a card, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dstools_converters.markdown import text

NONE = "\u2013"  # a dash where nothing was measured


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: int = 0) -> str:
    """Return a table whose last `numeric` columns stand to the right; columns without a cell are left out."""
    cells = [list(map(text, row)) for row in rows]
    kept = [n for n in range(len(head)) if any(row[n] for row in cells)]
    left = len(head) - numeric
    lines = [list(head), ["---" if n < left else "---:" for n in range(len(head))], *cells]
    return "\n".join(f"| {' | '.join(line[n] for n in kept)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """Return a list of whole lines of Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def percent(share: float) -> str:
    """Spell a share: "63.5 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Spell a difference of shares: "+10.5"."""
    return f"{100 * difference:+.1f}"


def between(low: float, high: float, spell: Any = percent) -> str:
    """Spell an interval: "56.6 % to 69.9 %"."""
    return f"{spell(low)} to {spell(high)}"


def counts(found: Mapping[str, int]) -> str:
    """Spell counts by name: "20 duplicate, 3 limit"."""
    return ", ".join(f"{count:,} {name}" for name, count in found.items() if count)


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as rows of two cells, nested ones under dotted names; what is empty is left out."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            if value:
                rows.append((prefix + name, ", ".join(map(spelled, value))))
        elif value is not None and value != "":
            rows.append((prefix + name, spelled(value)))
    return rows


def spelled(value: Any) -> str:
    """Spell a value of JSON: numbers with thousands apart, true and false as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else shown(str(value))


def shown(name: str) -> str:
    """Return the name of a model or file without the path of somebody's machine."""
    is_path = name.startswith(("/", "~", "./", "../"))
    return name.rstrip("/").rpartition("/")[2] if is_path else name
