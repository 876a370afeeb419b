"""Tests of units: their bases and sizes, and the words that are none."""

from fractions import Fraction

import pytest

from dstools_distill.judge.units import UnreadableError, read_unit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("centimetres", "cm"),
        ("Meters", "m"),
        ("euros", "€"),
        ("per cent", "%"),
        ("percentage points", "%"),
        ("kilometers per hour", "km/h"),
        ("square feet", "ft^2"),
        ("sq. ft", "ft^2"),
        ("ohms", "Ω"),
        ("min.", "minutes"),
        ("Apples", "apples"),
        ("kilobytes", "kB"),
        ("kiloohms", "kΩ"),
        ("gigahertz", "GHz"),
        ("kilos", "kg"),
        ("miles per hour", "mph"),
        ("kph", "km/h"),
        ("m s^-2", "m/s^2"),
        ("J/(mol K)", "J mol^-1 K^-1"),
    ],
)
def test_a_unit_is_the_same_in_any_spelling(one: str, other: str) -> None:
    assert read_unit(one) == read_unit(other)


@pytest.mark.parametrize(
    ("words", "factor", "of"),
    [
        ("cm^2", Fraction(1, 10_000), (("m", 2),)),
        ("km/h", Fraction(1000, 3600), (("m", 1), ("s", -1))),
        ("N m^2/kg^2", Fraction(1, 1000), (("g", -1), ("m", 3), ("s", -2))),
        ("kJ", Fraction(10**6), (("g", 1), ("m", 2), ("s", -2))),
        ("平方厘米", Fraction(1, 10_000), (("m", 2),)),
        ("cents", Fraction(1, 100), (("$", 1),)),
        ("Mg", Fraction(10**6), (("g", 1),)),  # not mg
        ("mg", Fraction(1, 1000), (("g", 1),)),
    ],
)
def test_a_unit_has_a_size_in_its_bases(
    words: str, factor: Fraction, of: tuple[tuple[str, int], ...]
) -> None:
    found = read_unit(words)
    assert (found.factor, found.of) == (factor, of)


def test_the_case_of_a_short_unit_counts() -> None:
    assert read_unit("MB/kb") != read_unit("MB/kB")
    assert read_unit("mW") != read_unit("MW")
    assert read_unit("Hours") == read_unit("hours")


def test_a_temperature_is_not_an_angle() -> None:
    assert read_unit("°C") == read_unit("degrees Celsius")
    assert read_unit("°C").of != read_unit("°F").of != read_unit("°").of


def test_a_word_before_the_unit_multiplies_the_number() -> None:
    assert read_unit("million dollars") == read_unit("$")._replace(times=Fraction(10**6))
    assert read_unit("dozen").times == 12


@pytest.mark.parametrize(
    "words",
    [
        "in total",
        "or so",
        "times",
        "x" * 41,
        "not metres",
        "quarters",
        "pairs",
        "tenths",
        "sixths",
        "Millionen",
        "раза",
        "fails",
    ],
)
def test_words_that_change_the_number_are_not_a_unit(words: str) -> None:
    with pytest.raises(UnreadableError):
        read_unit(words)
