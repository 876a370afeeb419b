"""scripts/sample_data.py: problems and traces of the sample model, and their batches."""

import itertools
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def script(load_script: Any) -> Any:
    return load_script("sample_data")


def test_the_two_files_hold_what_the_script_writes(script: ModuleType, tmp_path: Path) -> None:
    script.write_data(tmp_path)
    for name in ("sample-v3-calibration.jsonl", "sample-v3-heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
        assert (DATA / name).stat().st_size < 400_000


def test_no_two_splits_share_a_question(script: ModuleType) -> None:
    splits = [
        {entry["question"] for entry in script.problems(split)}
        for split in ("train", "evaluate", "calibrate", "held-out")
    ]
    assert sum(map(len, splits)) == len(set().union(*splits))
    assert [len(split) > 1000 for split in splits] == [True] * 4


@pytest.mark.parametrize(
    ("expression", "worked"),
    [
        ("57 + 68", "57+68|7+8+0=15,5+6+1=12|125"),
        ("5 - 12", "5-12|12>5:2-5-0=17,1-0-1=00|-7"),
        ("5 - 12 - 9", "5-12|12>5:2-5-0=17,1-0-1=00|-7\n-7-9|7+9+0=16|-16"),
    ],
)
def test_a_trace_worked_by_hand(expression: str, worked: str, script: ModuleType) -> None:
    assert script.trace(expression) == worked


def test_every_trace_is_true_and_ends_in_the_answer(script: ModuleType) -> None:
    """Parsed independently: every column, every line, and the chain of totals."""
    column = re.compile(r"(\d)([+-])(\d)[+-]([01])=([01])(\d)")
    for entry in itertools.islice(script.problems("held-out"), 500):
        total = int(entry["metadata"]["expression"].split()[0])
        for line in script.trace(entry["metadata"]["expression"]).split("\n"):
            asked, work, after = line.split("|")
            assert re.match(r"-?\d+", asked)[0] == str(total)  # type: ignore[index]
            digits, carried = "", 0
            for a, sign, b, carry, out, digit in column.findall(work):
                value = int(a) + int(b) + int(carry)
                if sign == "-":
                    value = int(a) - int(b) - int(carry)
                assert int(carry) == carried
                assert value == (10 if sign == "+" else -10) * int(out) + int(digit)
                digits, carried = digit + digits, int(out)
            assert abs(int(after)) == int(digits) + carried * 10 ** len(digits)
            total = int(after)
        assert str(total) == entry["answer"]


def test_batches_are_of_one_length_and_repeat_with_the_seed(script: ModuleType) -> None:
    rows = [[5] * (1 + n % 3) for n in range(3 * script.BATCH * 2)]
    made = script.one_epoch(rows, random.Random(1))
    assert sorted(tuple(ids.shape) for ids, _ in made) == sorted(
        (script.BATCH, length) for length in (1, 2, 3) for _ in range(2)
    )
