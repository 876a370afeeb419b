"""Settings of a run: what decides its bytes, and how those of another run differ."""

from collections.abc import Mapping

from dstools_converters.errors import printable

Settings = Mapping[str, str | int | bool]  # tool, source, and options by their names


def difference(begun: object, wanted: Settings) -> str:
    """Return in words what `begun`, settings of another run, has that `wanted` has not."""
    words = []
    for key, value in begun.items() if isinstance(begun, dict) else ():
        if value == wanted.get(key):
            continue
        if key == "tool":
            words.append(f"by {value}")
        elif key == "source":
            words.append("from another source")
        elif isinstance(value, bool) or value == "":
            words.append(f"with {key}" if value else f"without {key}")
        else:
            words.append(f"with {key} {value}")
    return printable(" and ".join(words))
