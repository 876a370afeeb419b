"""Tests of the select stage: which samples are kept, how many, and what is mixed in."""

import json
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.decontaminate import build_index
from dstools_distill.data.select import select
from dstools_distill.recipe.settings import Select
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work, outputs


def sample(prompt: str, number: int, verdict: str | None, trace: str = "so") -> Record:
    raw = f"<think>{trace}</think>{number}"
    made: Record = {"id": prompt, "sample": number, "raw": raw, "reasoning": trace}
    return made | ({"verdict": verdict} if verdict else {})


def selected(
    folder: Path,
    rows: list[Record],
    non_reasoning: Path | None = None,
    index: tuple[Path, ...] = (),
    **settings: Any,
) -> tuple[list[tuple[str, int]], Report]:
    """What is kept, sorted, and the report."""
    (folder / "in").mkdir(exist_ok=True, parents=True)
    (folder / "out").mkdir(exist_ok=True)
    records.write(folder / "in" / "records.jsonl", rows)
    work = Work(folder / "out")
    named = {"non_reasoning": non_reasoning.name} if non_reasoning else {}
    inputs = Inputs(samples=folder / "in", mixed=non_reasoning, indexes=index)
    report = select(Select(**settings, **named), inputs, work)
    return sorted((row["id"], row["sample"]) for row in kept(folder)), report


def kept(folder: Path) -> list[Record]:
    return list(records.read(folder / "out" / "records.jsonl"))


def dropped(folder: Path) -> dict[tuple[str, int], str]:
    rows = records.read(folder / "out" / "dropped.jsonl")
    return {(row["id"], row["sample"]): row["drop_reason"] for row in rows}


ROWS = [
    sample("a", 0, "incorrect"),
    sample("a", 1, "correct", "long enough"),
    sample("a", 2, "correct"),
    sample("a", 3, "unverifiable"),
    sample("b", 0, "correct", "some"),
    sample("b", 1, "correct", "a bit longer"),
    sample("b", 2, "correct", "also"),
    sample("c", 0, "incorrect"),
]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"keep": "all"}, ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "c0"]),
        ({"keep": "all", "per_prompt": 2}, ["a0", "a1", "b0", "b1", "c0"]),
        ({"keep": "all-correct"}, ["a1", "a2", "b0", "b1", "b2"]),
        ({"keep": "all-correct", "per_prompt": 2}, ["a1", "a2", "b0", "b1"]),
        ({"keep": "first"}, ["a1", "b0"]),
        ({"keep": "shortest"}, ["a2", "b0"]),
        ({"keep": "shortest", "per_prompt": 2}, ["a1", "a2", "b0", "b2"]),
        # of a's three judged samples two are correct
        ({"keep": "all-correct", "min_pass_rate": 0.6}, ["a1", "a2", "b0", "b1", "b2"]),
        ({"keep": "all-correct", "min_pass_rate": 0.7}, ["b0", "b1", "b2"]),
        ({"keep": "all-correct", "max_pass_rate": 0.7}, ["a1", "a2"]),
        ({"keep": "all", "max_pass_rate": 0.4}, ["c0"]),
    ],
)
def test_a_policy_keeps_these(tmp_path: Path, settings: dict[str, Any], wanted: list[str]) -> None:
    chosen, report = selected(tmp_path, ROWS, **settings)
    assert chosen == [(name[0], int(name[1])) for name in wanted]
    assert report["in"] == len(ROWS)
    assert report["out"] == len(wanted)
    assert sum(report["dropped"].values()) == len(ROWS) - len(wanted) == len(dropped(tmp_path))


def test_each_dropped_row_has_its_reason(tmp_path: Path) -> None:
    _, report = selected(tmp_path, ROWS, keep="first", min_pass_rate=0.7)
    assert dropped(tmp_path) == {
        ("a", 0): "incorrect",
        ("a", 1): "pass-rate",
        ("a", 2): "pass-rate",
        ("a", 3): "unverifiable",
        ("b", 1): "not-first",
        ("b", 2): "not-first",
        ("c", 0): "incorrect",
    }
    assert report["dropped"] == {"incorrect": 2, "not-first": 2, "pass-rate": 2, "unverifiable": 1}
    assert report["verdicts"] == {"correct": 5, "incorrect": 2, "unverifiable": 1, "none": 0}
    assert report["prompts"] == {"in": 3, "out": 1}


def test_a_pass_rate_that_nobody_knows_is_within_any_limits(tmp_path: Path) -> None:
    rows = [*ROWS, sample("d", 0, "unverifiable")]
    chosen, _ = selected(tmp_path, rows, keep="all", min_pass_rate=0.9, max_pass_rate=0.95)
    assert chosen == [("d", 0)]


def test_a_kept_row_is_the_input_row_and_its_split(tmp_path: Path) -> None:
    selected(tmp_path, ROWS, keep="all")
    came = {(row["id"], row["sample"]): row for row in ROWS}
    assert len(kept(tmp_path)) == len(ROWS)
    for row in kept(tmp_path):
        assert row == came[row["id"], row["sample"]] | {"split": "train"}


def test_samples_of_a_prompt_need_not_be_adjacent(tmp_path: Path) -> None:
    rows = [ROWS[n] for n in (4, 1, 7, 5, 2, 0, 6, 3)]
    assert selected(tmp_path, rows, keep="first")[0] == [("a", 1), ("b", 0)]


def test_the_most_different_samples_are_kept(tmp_path: Path) -> None:
    traces = [
        "first we add the tens and then we add the ones",
        "first we add the tens and then we add the ones too",  # nearly the first
        "counting up from seven in steps of three gets there",  # like none
        "counting up from seven in steps of three and then we add the ones",  # half the third
    ]
    rows = [sample("a", n, "correct", trace) for n, trace in enumerate(traces)]
    settings = {"keep": "diverse"}
    assert selected(tmp_path, rows, **settings, per_prompt=2)[0] == [("a", 0), ("a", 2)]
    assert selected(tmp_path, rows, **settings, per_prompt=3)[0] == [("a", 0), ("a", 2), ("a", 3)]
    assert dropped(tmp_path) == {("a", 1): "not-diverse"}
    assert len(selected(tmp_path, rows, **settings, per_prompt=4)[0]) == 4


def test_without_verdicts_only_all_can_be_kept(tmp_path: Path) -> None:
    rows = [sample("a", 0, None)]
    assert selected(tmp_path, rows, keep="all")[0] == [("a", 0)]
    for settings in ({"keep": "all-correct"}, {"keep": "all", "min_pass_rate": 0.5}):
        with pytest.raises(DstoolsError, match="samples have none"):
            selected(tmp_path, rows, **settings)


def test_the_order_and_what_a_limit_keeps_are_drawn_from_the_seed(tmp_path: Path) -> None:
    rows = [sample("a", n, "correct") for n in range(200)]
    orders = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        _, report = selected(tmp_path / name, rows, limit=50, seed=seed)
        orders[name] = [row["sample"] for row in kept(tmp_path / name)]
        assert report["dropped"] == {"limit": 150}
    assert orders["one"] == orders["again"]
    assert orders["one"] != orders["two"]
    assert sorted(orders["one"]) not in (orders["one"], list(range(50)))
    assert outputs(tmp_path / "one" / "out") == outputs(tmp_path / "again" / "out")


def test_files_of_a_killed_run_change_nothing(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "out").mkdir(parents=True)
        if name == "other":
            for left in ("records.jsonl", "dropped.jsonl", "mixed.jsonl"):
                (tmp_path / name / "out" / left).write_text("half a row\n")
        selected(tmp_path / name, ROWS, talk(tmp_path / name, 3), keep="first")
    files = [outputs(tmp_path / name / "out") for name in ("one", "other")]
    assert files[0] == files[1]
    assert set(files[0]) == {"records.jsonl", "dropped.jsonl"}


# ---------------------------------------------------------------------------------------- the mix


def talk(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "talk.jsonl"
    turns = (("user", "Hello, number {}!"), ("assistant", "Hello to you, {}."))
    rows = (
        {"messages": [{"role": role, "content": text.format(n)} for role, text in turns]}
        for n in range(count)
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "talks", "settings", "wanted"),
    [
        (60, 100, {}, (60, 20)),
        (60, 100, {"reasoning_share": 0.5}, (60, 60)),
        (60, 100, {"reasoning_share": 1.0}, (60, 0)),
        (60, 100, {"limit": 40}, (30, 10)),
        (60, 5, {}, (60, 5)),  # too few
        (60, 5, {"limit": 40}, (30, 5)),
        (6, 100, {"limit": 40}, (6, 2)),
    ],
)
def test_reasoning_rows_have_their_share(
    tmp_path: Path, rows: int, talks: int, settings: dict[str, Any], wanted: tuple[int, int]
) -> None:
    given = [sample("a", n, "correct") for n in range(rows)]
    _, report = selected(tmp_path, given, talk(tmp_path, talks), **settings)
    has_trace = [row["reasoning"] is not None for row in kept(tmp_path)]
    assert (sum(has_trace), len(has_trace) - sum(has_trace)) == wanted
    assert report["out"] == sum(wanted)
    assert report["non_reasoning"] == {"in": talks, "contaminated": 0, "out": wanted[1]}
    assert report["reasoning_share"] == wanted[0] / sum(wanted)
    assert not (tmp_path / "out" / "mixed.jsonl").exists()


def test_mixed_rows_are_records_without_a_trace_spread_among_the_others(tmp_path: Path) -> None:
    selected(tmp_path, [sample("a", n, "correct") for n in range(60)], talk(tmp_path, 20))
    mix = kept(tmp_path)
    places = [n for n, row in enumerate(mix) if row["reasoning"] is None]
    assert places[0] < 20
    assert places[-1] > 60
    row = mix[places[0]]
    number = row["messages"][0]["content"].split()[-1].rstrip("!")
    assert (row["raw"], row["answer"]) == (f"Hello to you, {number}.",) * 2
    assert (row["finish_reason"], row["split"], row["source"]) == ("stop", "train", "talk.jsonl")
    assert len({row["id"] for row in mix}) == 21


def test_a_benchmarks_problem_is_not_mixed_in_and_is_kept_with_its_reason(tmp_path: Path) -> None:
    asked = "Which of the rivers of Mongolia flows into the lake that no river leaves?"
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": asked}) + "\n")
    build_index([tmp_path / "quiz.jsonl"], tmp_path / "quiz.ngrams")
    talks = talk(tmp_path, 30)
    leak = {"prompt": f"Please tell me: {asked.upper()}", "completion": "Many of them."}
    with talks.open("a") as file:
        file.write(json.dumps(leak) + "\n")
    samples = [sample("a", n, "correct") for n in range(90)]
    for name, index, wanted in (("blind", (), 0), ("seeing", (tmp_path / "quiz.ngrams",), 1)):
        _, report = selected(tmp_path / name, samples, talks, index)
        assert report["non_reasoning"] == {"in": 31, "contaminated": wanted, "out": 30}
        rows = records.read(tmp_path / name / "out" / "dropped.jsonl")
        gone = [row for row in rows if row["drop_reason"] == "contaminated"]
        assert [row["messages"][0]["content"] for row in gone] == [leak["prompt"]] * wanted
        assert all(row["contamination"][0]["benchmark"] == "quiz" for row in gone)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "line 1: has no answer"),
        ('{"prompt": "Hi", "completion": "<think>a</think>b"}', "line 1: its answer holds a think"),
        ('{"text": "Hi"}', "line 1: has none of the keys"),
        ("{", "line 1: is not valid JSON"),
        ("", "talk.jsonl: is empty"),
    ],
)
def test_a_conversation_that_cannot_be_mixed_in_is_refused(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DstoolsError, match=reason):
        selected(tmp_path, ROWS, path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"keep": "diverse"}, "needs select.per_prompt"),
        ({"non_reasoning": Path("x.jsonl"), "reasoning_share": 0.0}, "select.reasoning_share is 0"),
    ],
)
def test_meaningless_settings_are_refused(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DstoolsError, match=reason):
        selected(tmp_path, ROWS, **settings)


def test_rows_that_are_not_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="line 2: is not a sample"):
        selected(tmp_path, [ROWS[0], {"id": "b"}])
