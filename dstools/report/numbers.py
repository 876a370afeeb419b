"""The spelling of numbers in the page and in Markdown."""

import math

TIMES, NONE = "\u00d7", "\u2013"  # a multiplication sign; a dash where nothing was measured


def number(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits: "0.00240", "12,345"."""
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded and not 1e-5 <= abs(rounded) < 1e9:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{value:,.{max(decimals, 0)}f}"


def percent(share: float, digits: int = 3) -> str:
    """Return a share in per cent: "1.21 %"."""
    return f"{number(100 * share, digits)} %"


def fixed(share: float) -> str:
    """Return a share with two decimals, like the other parts of a whole: "0.74 %"."""
    return "< 0.01 %" if 0 < share < 5e-5 else f"{share:.2%}".replace("%", " %")


def percent_or_none(share: float | None) -> str:
    """Return a share in per cent, or a dash if it was not measured."""
    return NONE if share is None else percent(share)
