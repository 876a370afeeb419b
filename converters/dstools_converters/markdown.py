"""Text in Markdown."""

import re

from dstools_converters.errors import printable


def text(value: str) -> str:
    """Return what Markdown shows as it is: names come from files that anybody may have written."""
    plain = printable(value).replace("&", "&amp;").replace("<", "&lt;")
    escaped = re.sub(r"([\\`*\[\]|~#!]|(?<!\w)_|_(?!\w))", r"\\\1", plain)
    return escaped.replace("://", "&#58;//")
