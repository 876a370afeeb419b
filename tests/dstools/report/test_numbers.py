"""Numbers as a report spells them."""

from dstools.report.numbers import fixed, number, percent


def test_numbers_keep_their_significant_digits() -> None:
    assert number(0.0024) == "0.00240"
    assert number(0.009999) == "0.0100"
    assert number(12.3456, 5) == "12.346"
    assert number(123456.0) == "123,456"
    assert number(0.0) == "0"
    assert number(1.234e-7) == "1.23e-07"
    assert number(-0.5) == "-0.500"
    assert percent(0.0121) == "1.21 %"
    assert [fixed(share) for share in (1.0, 0.00744, 1e-6, 0.0)] == [
        "100.00 %", "0.74 %", "< 0.01 %", "0.00 %",
    ]  # fmt: skip
