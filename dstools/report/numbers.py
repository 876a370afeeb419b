"""Numbers as page and Markdown spell them."""

import math

TIMES, NONE = "\u00d7", "\u2013"  # a multiplication sign; a dash where nothing was measured


def number(value: float, digits: int = 3) -> str:
    """Spell a number to so many significant digits: "0.00240", "12,345"."""
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded and not 1e-5 <= abs(rounded) < 1e9:
        return f"{value:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{value:,.{max(decimals, 0)}f}"


def percent(share: float, digits: int = 3) -> str:
    """Spell a share: "1.21 %"."""
    return f"{number(100 * share, digits)} %"


def fixed(share: float) -> str:
    """Spell a part of a whole to the same place as the other parts: "0.74 %"."""
    return "< 0.01 %" if 0 < share < 5e-5 else f"{share:.2%}".replace("%", " %")


def percent_or_none(share: float | None) -> str:
    """Spell a share, or a dash where it was not measured."""
    return NONE if share is None else percent(share)
