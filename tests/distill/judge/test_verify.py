"""Tests of the verify stage: the order of checks, and all rows kept with their verdicts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.judge import sandbox
from dstools_distill.judge.verify import NOT_FINITE, Judge, verify
from dstools_distill.recipe.settings import Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.teachers.replay import replayed

SUM = {
    "name": "chain_sum",
    "config": {},
    "entry": {"question": "57 + 68 =", "answer": "125", "metadata": {"expression": "57 + 68"}},
}
TRACE = "\n57+68|7+8+0=15,5+6+1=12|125\n"


FOLDER = Path(__file__).parents[2] / "cases" / "distill"
CASES = [
    case
    for name in ("samples.jsonl", "variants/samples.jsonl")
    for case in records.read(FOLDER / name)
]
CODE_CASES = [
    case for name in ("code.jsonl", "variants/code.jsonl") for case in records.read(FOLDER / name)
]


def record(raw: str, gold: str | None = "125", **more: Any) -> records.Record:
    """A record with what a judge reads."""
    read = {"raw": raw, "gold": gold, "answer_type": "auto", "task": None, "finish_reason": "stop"}
    return read | {"prefilled_think": False} | more


def thought(answer: str, reasoning: str = TRACE, **more: Any) -> records.Record:
    return record(f"<think>{reasoning}</think>\n\n{answer}", **more)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with closing(Judge(Verify())) as made:
        yield made


@pytest.mark.parametrize(
    ("raw", "prefilled", "verdict", "reason"),
    [  # the text says that it ended, whatever is wrong with it
        ("125", False, "incorrect", "think-block"),
        ("<think>\n\n</think>\n\n125", False, "incorrect", "think-block"),
        ("\n</think>\n\n125", True, "incorrect", "think-block"),
        ("<think>a</think><think>b</think>125", False, "incorrect", "think-block"),
        ("<think>a</think>125", True, "incorrect", "think-block"),
        ("5*25</think>125", False, "incorrect", "think-block"),
        # or that it did not
        ("5*25", True, "unverifiable", "unfinished: unknown"),
        ("<think>a</think>125<think>", False, "unverifiable", "unfinished: unknown"),
        ("<think>a</think><think>b</think>\n", False, "unverifiable", "unfinished: unknown"),
    ],
)
def test_without_a_finish_reason_a_text_with_an_answer_is_judged_by_its_form(
    raw: str, prefilled: bool, verdict: str, reason: str, judge: Judge
) -> None:
    judged = judge.judge(record(raw, finish_reason=None, prefilled_think=prefilled))
    assert (judged["verdict"], judged["verdict_reason"]) == (verdict, reason)


@pytest.mark.parametrize(
    ("sample", "verdict", "reason"),
    [
        (thought("125"), "correct", "equal"),
        (thought("126"), "incorrect", "differs: 126"),
        (thought("125", finish_reason="length"), "incorrect", "unfinished: length"),
        (thought("125", finish_reason="MAX_TOKENS"), "incorrect", "unfinished: length"),
        (thought("125", finish_reason="eos"), "correct", "equal"),
        *(
            (thought("125", finish_reason=word), "unverifiable", f"unfinished: {word}")
            for word in ("Paused", "content_filter", "abort", "error", "refusal")
        ),
        (thought("125", finish_reason="tool_calls"), "incorrect", "unfinished: tool_calls"),
        (thought("125", finish_reason=NOT_FINITE), "incorrect", f"unfinished: {NOT_FINITE}"),
        (thought("125", finish_reason=None), "correct", "equal"),
        (thought("126", finish_reason="unknown"), "incorrect", "differs: 126"),
        (thought("", finish_reason=None), "unverifiable", "unfinished: unknown"),
        (record("<think>\n5*25", finish_reason=None), "unverifiable", "unfinished: unknown"),
        (thought("125", " \n"), "incorrect", "think-block"),
        (record("<think>it is 125"), "incorrect", "think-block"),
        (record("125"), "incorrect", "think-block"),
        (record("<think>a</think><think>b</think>125"), "incorrect", "think-block"),
        (record("it is</think>125"), "incorrect", "think-block"),
        (record("it is</think>125", prefilled_think=True), "correct", "equal"),
        (record("<think>\\boxed{125}</think>\\boxed{126}"), "incorrect", "differs: 126"),
        (record("<think>126</think>\\boxed{125}"), "correct", "equal"),
        (thought("\\boxed{125} or \\boxed{126}"), "incorrect", "several-answers"),
        (thought("\\boxed{125}\n\nWait, it is 124."), "unverifiable", "taken-back"),
        (thought("\\boxed{125}\n\nWait, it is 124.", task=SUM), "unverifiable", "taken-back"),
        (thought("125", gold=None), "unverifiable", "no-gold"),
        (thought("125", answer_type="none"), "unverifiable", "no-gold"),
        (thought("125", gold="\\frac{1}{"), "unverifiable", "gold-not-read"),
        (thought("I cannot say."), "unverifiable", "answer-not-read"),
        (thought("088", gold="88"), "incorrect", "not-canonical: 088"),
        (thought("088", gold="88", answer_type="number"), "correct", "equal"),
    ],
)
def test_checks_come_in_their_order_and_the_first_that_fails_is_the_reason(
    judge: Judge, sample: records.Record, verdict: str, reason: str
) -> None:
    judgement = judge.judge(sample)
    assert (judgement["verdict"], judgement["verdict_reason"]) == (verdict, reason)


def test_without_reasoning_asked_for_plain_text_is_judged_and_a_broken_block_is_refused() -> None:
    with closing(Judge(Verify(reasoning=False))) as judge:
        assert judge.judge(record("125"))["verdict"] == "correct"
        assert judge.judge(thought("125"))["verdict"] == "correct"
        assert judge.judge(record("<think>so \\boxed{125}"))["verdict_reason"] == "think-block"
        assert judge.judge(record("so</think>125"))["verdict_reason"] == "think-block"


@pytest.mark.parametrize(
    ("sample", "verdict", "reason", "steps"),
    [
        (thought("125", task=SUM), "correct", "equal", {"right": 3, "fault": None}),
        (thought("The answer is 125.", task=SUM), "correct", "equal", {"right": 3, "fault": None}),
        (
            thought("125", TRACE.replace("=15", "=16"), task=SUM),
            "incorrect",
            "wrong-step: step: 7+8+0=16 for 7+8+0=15 in line 1",
            {"right": 0, "fault": "step: 7+8+0=16 for 7+8+0=15 in line 1"},
        ),
        (
            thought("152", task=SUM),
            "incorrect",
            "miscopied: answer: 152 after 125",
            {"right": 3, "fault": "answer: 152 after 125"},
        ),
        (
            thought("126", TRACE.replace("|125", "|126"), task=SUM),
            "incorrect",
            "differs: 126",
            {"right": 2, "fault": "step: 126 for 125 in line 1"},
        ),
        (thought("125", "I add them up.", task=SUM), "correct", "equal", None),
        (
            thought("0125", task=SUM),
            "incorrect",
            "miscopied: answer: 0125 after 125",
            {"right": 3, "fault": "answer: 0125 after 125"},
        ),
    ],
)
def test_a_correct_answer_with_a_wrong_step_is_incorrect_and_a_miscopied_one_says_so(
    judge: Judge, sample: records.Record, verdict: str, reason: str, steps: Any
) -> None:
    judgement = judge.judge(sample)
    assert (judgement["verdict"], judgement["verdict_reason"], judgement["steps"]) == (
        verdict,
        reason,
        steps,
    )


def test_steps_are_not_checked_if_the_recipe_says_so() -> None:
    with closing(Judge(Verify(steps=False))) as judge:
        judgement = judge.judge(thought("125", TRACE.replace("=15", "=16"), task=SUM))
    assert (judgement["verdict"], judgement["steps"]) == ("correct", None)


def test_a_task_without_an_answer_is_scored(judge: Judge) -> None:
    """rush_hour has many solutions; reasoning-gym scores a wrong one 0.01."""
    from reasoning_gym.factory import create_dataset

    entry = json.loads(json.dumps(create_dataset("rush_hour", size=1, seed=0)[0]))
    assert entry["answer"] is None
    judgement = judge.judge(thought("K+1", gold=None, task={"name": "rush_hour", "entry": entry}))
    assert (judgement["verdict"], judgement["verdict_reason"]) == ("incorrect", "scored: 0.01")


def test_a_scorer_of_reasoning_gym_decides_where_answers_may_differ(judge: Judge) -> None:
    entry = {"question": "", "answer": "9*9+9", "metadata": {"numbers": [9, 9, 9], "target": 90}}
    task = {"name": "countdown", "config": {}, "entry": entry}
    for answer, verdict, reason, checkers in [
        ("9*9+9", "correct", "equal", ["exact"]),
        ("9 + 9*9", "correct", "scored", ["reasoning-gym"]),
        ("9*9-9", "incorrect", "scored: 0.05", ["reasoning-gym"]),
        ("open('x')", "unverifiable", "looks-like-code", ["reasoning-gym"]),
    ]:
        judgement = judge.judge(thought(answer, gold="9*9+9", task=task))
        assert judgement["verdict"] == verdict
        assert (judgement["verdict_reason"], judgement["checkers"]) == (reason, checkers)


def test_a_trace_in_another_language_or_with_repetition_is_incorrect() -> None:
    with closing(Judge(Verify(language="en", max_repetition=0.3))) as judge:
        fine = judge.judge(thought("125", "We add both numbers and then carry the one."))
        mixed = judge.judge(thought("125", "We add 然后我们把两个数相加得到答案"))
        circles = judge.judge(thought("125", "so we add them once more and look at it " * 20))
        plain = judge.judge(thought("125"))
    assert (fine["verdict"], fine["language"], fine["repetition"]) == ("correct", 1.0, 0.0)
    assert mixed["verdict"] == "incorrect"
    assert mixed["verdict_reason"].startswith("language: 0.")
    assert circles["verdict"] == "incorrect"
    assert circles["verdict_reason"].startswith("repetition: 0.")
    assert (plain["verdict"], plain["language"]) == ("correct", None)  # digits have no language
    with pytest.raises(DstoolsError, match=r"verify\.language: 'xx' cannot"):
        Judge(Verify(language="xx"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["kind"]))
def test_a_text_that_somebody_saved_is_judged(
    judge: Judge, case: dict[str, Any], tmp_path: Path
) -> None:
    sample = replayed({"prompt": "?", "raw": case["raw"]}, tmp_path, 1)
    judged = record(sample.raw, case["gold"], prefilled_think=sample.prefilled_think)
    assert judge.judge(judged)["verdict"] == case["verdict"]


def test_without_a_trace_asked_for_an_empty_block_is_as_good_as_none() -> None:
    with closing(Judge(Verify(reasoning=False))) as plain:
        assert plain.judge(record("<think>\n\n</think>\n\n125"))["verdict"] == "correct"
        assert plain.judge(record("125"))["verdict"] == "correct"
        assert plain.judge(record("<think>125"))["verdict_reason"] == "think-block"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("B) 43", "unverifiable"),  # of which only one can be meant
        ("The answer is **B. 43**", "unverifiable"),
        (r"\boxed{\text{(B) }43}", "unverifiable"),
        ("B) 42", "correct"),
        ("B, because 42 is even", "correct"),
        ("B) the one that is even", "correct"),
        ("B", "correct"),
        ("C) 43", "incorrect"),
    ],
)
def test_a_letter_beside_the_words_of_another_option_is_not_judged(
    judge: Judge, answer: str, verdict: str
) -> None:
    question = "What is 6 * 7?\n\nA. 41\n(B) 42\nC) 43"
    asked = thought(answer, gold="B", answer_type="choice", messages=[{"content": question}])
    assert judge.judge(asked)["verdict"] == verdict


CODE = json.dumps([{"stdin": "2 3\n", "stdout": "5\n"}])


@pytest.mark.parametrize(
    ("answer", "gold", "verdict", "reason"),
    [
        (
            "```python\nprint(sum(map(int, input().split())))\n```",
            CODE,
            "correct",
            "passed: 1 cases",
        ),
        ("```\n1 / 0\n```\nbetter:\n```py\nprint(5)\n```", CODE, "correct", "passed: 1 cases"),
        ("```python\nprint(6)\n```", CODE, "incorrect", "code-output: case 1"),
        ("```python\nprint(5.0)\n```", CODE, "unverifiable", "code-form: case 1"),
        ("print(5)", CODE, "correct", "passed: 1 cases"),
        ("It is 5.", CODE, "incorrect", "no-code"),
        ("Run print(5).", CODE, "unverifiable", "code-not-found"),
        ("```python\nprint(5)\n```", "5", "unverifiable", "gold-not-read"),
    ],
)
def test_code_is_judged_by_running_its_last_block(
    judge: Judge, answer: str, gold: str, verdict: str, reason: str
) -> None:
    try:
        sandbox.require()
    except DstoolsError as error:
        pytest.skip(f"needs {error.hint}")
    judgement = judge.judge(thought(answer, gold=gold, answer_type="code"))
    assert (judgement["verdict"], judgement["verdict_reason"]) == (verdict, reason)


@pytest.mark.parametrize("case", CODE_CASES, ids=lambda case: str(case["kind"]))
def test_code_of_public_data_sets_is_judged(judge: Judge, case: dict[str, Any]) -> None:
    try:
        sandbox.require()
    except DstoolsError as error:
        pytest.skip(f"needs {error.hint}")
    judgement = judge.judge(thought(case["answer"], gold=case["gold"], answer_type="code"))
    assert judgement["verdict"] == case["verdict"]


# ----------------------------------------------------------------------------------------- stage


ROWS = [
    *[thought("125", task=SUM)] * 6,
    thought("\\frac{250}{2}"),
    thought("125", TRACE.replace("=15", "=16"), task=SUM),
    thought("125", finish_reason="length"),
    thought("\\frac{251}{2}", gold="\\sqrt{2}"),  # for math-verify
]


def samples(folder: Path, count: int, rows: list[records.Record] = ROWS) -> Path:
    """A folder of records: these rows, again and again."""
    folder.mkdir()
    repeated = ({"id": str(n), **rows[n % len(rows)]} for n in range(count))
    records.write(folder / "records.jsonl", repeated)
    return folder


def work(folder: Path, workers: int) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder, workers)


def test_the_stage_keeps_every_row_in_order_with_its_verdict_and_counts_them(
    tmp_path: Path,
) -> None:
    folder = samples(tmp_path / "in", 20)
    report = verify(Verify(), Inputs(samples=folder), work(tmp_path / "out", 1))
    assert report == {
        "in": 20,
        "out": 20,
        "dropped": {},
        "verdicts": {"correct": 14, "incorrect": 6},
        "reasons": {
            "correct": {"equal": 14},
            "incorrect": {"differs": 2, "unfinished": 2, "wrong-step": 2},
        },
        "checkers": {"exact": 16, "math-verify": 2},
        "steps_checked": 14,
        "answers_right_steps_wrong": 2,
    }
    before = list(records.read(folder / "records.jsonl"))
    after = list(records.read(tmp_path / "out" / "records.jsonl"))
    assert [row["id"] for row in after] == [str(n) for n in range(20)]
    assert all(
        row | old == row for row, old in zip(after, before, strict=True)
    )  # nothing rewritten
    with closing(Judge(Verify())) as judge:
        assert after[7] == before[7] | judge.judge(before[7])


TRIED = "<reasoning>so</reasoning> \\boxed{125}"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (record(TRIED), "incorrect: think-block; answers begin with <reasoning>: put their traces"),
        (record(r"\boxed{125}"), "incorrect: think-block; for answers without a trace set"),
        (thought("125", finish_reason="length"), "incorrect: unfinished; see finish_reason"),
        (thought("125", gold=None), "unverifiable: no-gold; name the column"),
        (thought(r"\boxed{124}"), "incorrect: differs; see verdict_reason"),
        (thought(r"\boxed{125}"), ""),
    ],
)
def test_one_reason_for_all_samples_is_told_with_what_to_do(
    row: records.Record, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verify(Verify(), Inputs(samples=samples(tmp_path / "in", 9, [row])), work(tmp_path / "out", 1))
    begins = f"verify: all 9 samples are {told}"
    messages = [line.getMessage()[: len(begins)] for line in caplog.records]
    assert messages == ([begins] if told else [])


def test_two_reasons_are_left_to_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [record(TRIED), thought(r"\boxed{124}")]
    verify(Verify(), Inputs(samples=samples(tmp_path / "in", 9, rows)), work(tmp_path / "out", 1))
    assert not caplog.records


def test_workers_and_kills_change_no_byte(tmp_path: Path) -> None:
    folder = samples(tmp_path / "in", 9000, ROWS[:-1])
    verify(Verify(), Inputs(samples=folder), work(tmp_path / "whole", 1))
    whole = (tmp_path / "whole" / "records.jsonl").read_bytes()
    code = (
        "import sys; from pathlib import Path\n"
        "from dstools_distill.recipe.settings import Verify\n"
        "from dstools_distill.recipe.stages import Inputs\n"
        "from dstools_distill.store.stage import Work\n"
        "from dstools_distill.judge.verify import verify\n"
        "if __name__ == '__main__':\n"
        "    verify(Verify(), Inputs(samples=Path(sys.argv[1])), Work(Path(sys.argv[2])))"
    )
    killed = work(tmp_path / "killed", 2)
    with subprocess.Popen([sys.executable, "-c", code, folder, killed.folder]) as process:
        journal = killed.folder / "journal.jsonl"
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    report = verify(Verify(), Inputs(samples=folder), killed)
    assert report["in"] == 9000
    assert (killed.folder / "records.jsonl").read_bytes() == whole


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    folder = samples(tmp_path / "in", 3)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    with pytest.raises(DstoolsError, match=r"records\.jsonl: line 4"):
        verify(Verify(), Inputs(samples=folder), work(tmp_path / "out", 1))
