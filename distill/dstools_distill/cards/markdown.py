"""Lists, numbers and settings of a card, as Markdown."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

NONE = "\u2013"  # a dash where nothing was measured


def bullets(lines: Iterable[str]) -> str:
    """Return a list of whole lines of Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def percent(share: float) -> str:
    """Return a share as text: "63.5 %"."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Return a difference of shares as text: "+10.5"."""
    return f"{100 * difference:+.1f}"


def between(low: float, high: float, spell: Callable[[float], str] = percent) -> str:
    """Return an interval as text: "56.6 % to 69.9 %"."""
    return f"{spell(low)} to {spell(high)}"


def counts(by_name: Mapping[str, int]) -> str:
    """Return counts as text: "20 duplicate, 3 limit"; zeros are left out."""
    return ", ".join(f"{count:,} {name}" for name, count in by_name.items() if count)


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return settings as rows of two cells, nested ones under dotted names, without empty ones."""
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
    """Return a value of JSON as text: "1,234,567", "yes" for true."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else shown(str(value))


def shown(name: str) -> str:
    """Return the name of a model or file, without the folders of a path."""
    is_path = name.startswith(("/", "~", "./", "../"))
    return name.rstrip("/").rpartition("/")[2] if is_path else name
