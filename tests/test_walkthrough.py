"""docs/walkthrough.md: its numbers follow from measured ones, and its sizes from V3's headers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import take_inventory
from dstools_converters.verify.engines import Engine, check_engine

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "walkthrough.md").read_text()
RECORDS = "".join((DOCS / name).read_text() for name in ("benchmarks.md", "status.md"))

# unit -> factor, and powers of byte, second and FLOP
UNITS = {
    "": (1, (0, 0, 0)),
    "kB": (1e3, (1, 0, 0)),
    "GB": (1e9, (1, 0, 0)),
    "GB/s": (1e9, (1, -1, 0)),
    "s": (1, (0, 1, 0)),
    "min": (60, (0, 1, 0)),
    "h": (3600, (0, 1, 0)),
    "FLOP": (1, (0, 0, 1)),
    "GFLOP/s": (1e9, (0, -1, 1)),
    "TFLOP/s": (1e12, (0, -1, 1)),
    "tokens": (1, (0, 0, 0)),
    "GPUs": (1, (0, 0, 0)),
}
UNIT = "|".join(sorted(filter(None, UNITS), key=len, reverse=True))
QUANTITY = rf"\d[\d,.]*(?:e\d+)?(?:\s(?:{UNIT})\b)?"
EQUATION = re.compile(rf"({QUANTITY}(?:\s[/x+]\s{QUANTITY})+)\s=\s({QUANTITY})")
Quantity = tuple[float, tuple[int, ...]]


def quantity(text: str) -> Quantity:
    number, _, unit = " ".join(text.split()).partition(" ")
    factor, powers = UNITS[unit]
    return float(number.replace(",", "")) * factor, powers


def value(expression: str) -> Quantity:
    """Return what an expression comes to, from left to right."""
    first, *rest = re.split(r"\s([/x+])\s", expression)
    number, powers = quantity(first)
    for sign, text in zip(rest[::2], rest[1::2], strict=True):
        other, its_powers = quantity(text)
        if sign == "+":
            assert powers == its_powers, expression
            number += other
        else:
            way = -1 if sign == "/" else 1
            number *= other**way
            powers = tuple(a + way * b for a, b in zip(powers, its_powers, strict=True))
    return number, powers


def test_every_equation_comes_out_in_number_and_unit() -> None:
    equations = EQUATION.findall(PAGE)
    assert len(equations) == PAGE.count(" = ")  # none escapes
    for expression, result in equations:
        (found, of), (wanted, units) = value(expression), quantity(result)
        assert of == units, f"{expression} = {result}"
        assert found == pytest.approx(wanted, rel=0.025), f"{expression} = {result}"  # rounded


def test_what_is_called_measured_is_in_the_records() -> None:
    measured = re.findall(r"measured: [\d.]+ GB / ([\d.]+ s)", PAGE)
    measured += re.findall(r"([\d.]+ [MG]iB)(?: and `--ram`)?, measured", PAGE)
    for row in re.findall(r"^\|.*\| (0\.\d+) \| (0\.\d+) \|$", PAGE, re.MULTILINE):
        measured += row
    assert len(measured) == 15
    for figure in measured:
        number = re.escape(figure.split()[0])  # the unit may be at the head of a table
        assert re.search(rf"(?<![\d.]){number}(?!\d|\.\d)", RECORDS), figure


def test_sizes_and_engines_are_those_of_v3_s_headers(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    plan = ["quantize", str(checkpoint("v3-headers-bf16")), str(tmp_path / "o"), "--dry-run"]
    lines = CliRunner().invoke(main, plan).stdout.splitlines()
    assert re.search(r"^all .* 1\.369 TB +688\.6 GB ", "\n".join(lines), re.MULTILINE)
    assert "163 of 4.146 GB to 6.144 GB" in "\n".join(lines)
    for size in ("1.369 TB", "1,369", "688.6 GB", "163 shards of 4.1 to 6.1 GB"):
        assert size in PAGE
    with open_checkpoint(checkpoint("v3-headers")) as opened:
        inventory = take_inventory(opened)
    engines: tuple[Engine, ...] = ("vllm", "sglang", "trtllm")
    for engine in engines:
        assert not [*check_engine(inventory, engine, 8), *check_engine(inventory, engine, 16)]
        assert any(f.level == "error" for f in check_engine(inventory, engine, 32))
