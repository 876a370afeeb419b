"""Tests of the prompts stage: each prompt once, and a bad row is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.prompts import prompts
from dstools_distill.recipe.settings import Prompts, Source
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Report, Work, outputs

WHO = "unverifiable"


def work(folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder)


def made(
    folder: Path, *sources: Path | Source, rates: Path | None = None, **settings: Any
) -> Report:
    """The stage's report; its files are in folder / "out"."""
    given = tuple(s if isinstance(s, Source) else Source(s.name) for s in sources)
    files = tuple(None if isinstance(s, Source) else s for s in sources)
    inputs = Inputs(sources=files, pass_rates=rates)
    return prompts(Prompts(source=given, **settings), inputs, work(folder / "out"))


def kept(folder: Path) -> list[records.Record]:
    return list(records.read(folder / "out" / "records.jsonl"))


def dropped(folder: Path) -> list[records.Record]:
    return list(records.read(folder / "out" / "dropped.jsonl"))


def jsonl(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------- sources


def test_a_record_has_every_field_of_a_prompt(tmp_path: Path) -> None:
    report = made(tmp_path, jsonl(tmp_path / "a.jsonl", {"problem": "1+1", "answer": "2"}))
    messages = [{"role": "user", "content": "1+1"}]
    assert kept(tmp_path) == [
        {
            "id": records.prompt_id(messages, "a.jsonl"),
            "source": "a.jsonl",
            "licence": "unknown",
            "messages": messages,
            "gold": "2",
            "answer_type": "auto",
            "task": None,
            "difficulty": None,
            "reference": None,
        }
    ]
    assert report == {
        "in": 1,
        "out": 1,
        "dropped": {},
        "sources": {
            "a.jsonl": {"rows": 1, "licence": "unknown", "bad_rows": 0, "unread_columns": []}
        },
        "forms": {"problem": 1},
        "with_gold": 1,
        "with_reference": 0,
        "with_difficulty": 0,
    }


def test_the_answers_of_rows_that_repeat_a_question_stay_with_it(tmp_path: Path) -> None:
    """As in OpenThoughts3, which has 16 rows of each question."""
    rows: list[dict[str, Any]] = [
        {"problem": "1+1", "answer": "2", "response": reply} for reply in ("2", "3", "2")
    ]
    rows[1]["finish_reason"] = "length"
    report = made(tmp_path, jsonl(tmp_path / "a.jsonl", *rows, {"problem": "1+2"}))
    assert (report["dropped"], report["with_reference"]) == ({"duplicate": 2}, 3)
    assert [row["reference"] for row in kept(tmp_path)] == [
        [{"raw": "2", "finish_reason": None}, {"raw": "3", "finish_reason": "length"}],
        None,
    ]


def test_a_task_can_be_scored_from_its_record(tmp_path: Path) -> None:
    from reasoning_gym.factory import create_dataset

    options = {"min_terms": 2, "max_terms": 3}
    source = Source("rg:chain_sum", size=20, seed=7, options=options, licence="apache-2.0")
    made(tmp_path, source)
    for row in kept(tmp_path):
        task = row["task"]
        again = create_dataset(task["name"], **task["config"])
        assert again.score_answer(row["gold"], task["entry"]) == 1
        assert row["messages"] == [{"role": "user", "content": task["entry"]["question"]}]
    assert kept(tmp_path)[0]["licence"] == "apache-2.0"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['{"problem": "1+1"}', '{"problem": "1+1"'], "line 2: is not valid JSON"),
        (["", '{"problem": ""}'], "line 2: problem is empty"),
        (
            ['{"problem": "a", "problem": "b"}'],
            "line 1: is not valid JSON: has the key problem twice",
        ),
        (['{"problem": "\\ud800"}'], "line 1: is not valid JSON"),
        (['{"problem": "a", "answer": NaN}'], "line 1: is not valid JSON: NaN"),
        (["[1]"], "line 1: is not a JSON object"),
        ([], "a.jsonl: is empty"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(DstoolsError, match=reason):
        made(tmp_path, jsonl(tmp_path / "a.jsonl", *lines))


def test_a_source_of_bad_rows_alone_is_not_called_empty(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"problem": ""})
    inputs = Inputs(sources=(tmp_path / "a.jsonl",))
    with pytest.raises(DstoolsError, match=r"none of 2 rows is a question: .*line 1: has none of"):
        prompts(Prompts(source=(Source("a.jsonl", max_bad=9),)), inputs, work(tmp_path / "out"))


def test_bad_rows_and_columns_that_are_not_read_are_reported_once_a_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"problem": f"{n}+1", "uuid": str(n)} for n in range(3)]
    jsonl(tmp_path / "a.jsonl", *rows, {"text": "x"})
    source = Source("a.jsonl", max_bad=1)
    inputs = Inputs(sources=(tmp_path / "a.jsonl",))
    report = prompts(Prompts(source=(source,)), inputs, work(tmp_path / "out"))
    assert report["sources"]["a.jsonl"] == {
        "rows": 3,
        "licence": "unknown",
        "bad_rows": 1,
        "unread_columns": ["uuid"],
    }
    unread, bad = (record.getMessage() for record in caplog.records)
    assert unread == "a.jsonl: columns that are not read: uuid"
    assert "a.jsonl: 1 rows left out, first" in bad
    assert "line 4: has none of the keys" in bad


# --------------------------------------------------------------------------- kept and dropped


def test_duplicates_are_dropped_and_name_what_they_repeat(tmp_path: Path) -> None:
    rows = [
        {"problem": "What is  1+1?"},
        {"problem": "What is 1+1?", "answer": "2"},  # the first with a gold answer is kept
        {"problem": "What is 1+1?\n", "answer": " 2"},
        {"problem": "What is 2+2?", "answer": "4"},
    ]
    report = made(tmp_path, jsonl(tmp_path / "a.jsonl", *rows))
    first, last = kept(tmp_path)
    assert (first["gold"], last["gold"]) == ("2", "4")
    assert [(row["drop_reason"], row["duplicate_of"]) for row in dropped(tmp_path)] == [
        ("duplicate", first["id"]),
        ("duplicate", first["id"]),
    ]
    assert (report["in"], report["out"], report["dropped"]) == (4, 2, {"duplicate": 2})


def test_the_same_in_two_files_is_a_duplicate(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{n}.jsonl", {"problem": "1+1"}) for n in "ab"]
    assert made(tmp_path, *files)["dropped"] == {"duplicate": 1}


def test_if_gold_answers_differ_all_are_dropped(tmp_path: Path) -> None:
    rows = [{"problem": "1+1", "answer": answer} for answer in ("2", "3", "2")]
    report = made(
        tmp_path, jsonl(tmp_path / "a.jsonl", *rows, {"problem": "1+1"}, {"problem": "x"})
    )
    assert report["dropped"] == {"conflicting-gold": 4}
    assert [row["messages"][0]["content"] for row in kept(tmp_path)] == ["x"]


@pytest.mark.parametrize(
    ("golds", "kind"),
    [
        (("1/2", "0.5"), "auto"),
        ((r"\\frac{\\sqrt2}{2}", r"\\frac{1}{\\sqrt{2}}"), "auto"),  # by two checkers
        (("Paris", "paris"), "string"),
        (("7", "007"), "integer"),  # the one is a spelling of the other, if not of the type
        (("(A) 42", "A"), "choice"),
        (("x +", "y +"), "math"),  # not comparable
    ],
)
def test_golds_of_one_value_are_duplicates_in_either_order(
    tmp_path: Path, golds: tuple[str, str], kind: str
) -> None:
    for number, order in enumerate((golds, golds[::-1])):
        rows = [{"problem": "?", "answer": gold, "answer_type": kind} for gold in order]
        report = made(tmp_path, jsonl(tmp_path / f"{number}.jsonl", *rows))
        assert report["dropped"] == {"duplicate": 1}
        assert kept(tmp_path)[0]["gold"] == order[0]


def test_golds_of_two_values_conflict_whatever_a_third_says(tmp_path: Path) -> None:
    rows = [{"problem": "?", "answer": gold} for gold in ("1/2", "0.5", "1/3")]
    report = made(tmp_path, jsonl(tmp_path / "a.jsonl", *rows))
    assert report["dropped"] == {"conflicting-gold": 3}


RIVER = "Ines rows six kilometres up the river and rests at a lock before she rows back home. "


def test_near_duplicates_are_dropped_unless_their_gold_differs(tmp_path: Path) -> None:
    rows = [
        {"problem": RIVER * 3, "answer": "6"},
        {"problem": f"{RIVER * 3} Today.", "answer": "6"},  # one 5-gram more than the first has
        {"problem": f"{RIVER * 3} Now.", "answer": "7"},
        {"problem": "Something else is asked here, in as many words as it takes", "answer": "6"},
    ]
    file = jsonl(tmp_path / "a.jsonl", *rows)
    assert made(tmp_path, file)["dropped"] == {}
    report = made(tmp_path, file, near_duplicates=0.8)
    assert report["dropped"] == {"near-duplicate": 1}
    assert dropped(tmp_path)[0]["duplicate_of"] == kept(tmp_path)[0]["id"]
    assert [row["gold"] for row in kept(tmp_path)] == ["6", "7", "6"]


def test_difficulty_is_what_the_teacher_got_wrong(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"problem": f"1+{n}", "pass_rate": 0.5} for n in range(4)))
    made(tmp_path, file)
    ids = [row["id"] for row in kept(tmp_path)]
    # of each prompt's samples, beside three that nobody can judge; the fourth was not asked
    right = [(0, 4), (1, 4), (4, 4)]
    verified = tmp_path / "verify"
    verified.mkdir()
    records.write(
        verified / "records.jsonl",
        (
            {"id": prompt, "verdict": "correct" if n < good else "incorrect" if n < count else WHO}
            for prompt, (good, count) in zip(ids, right, strict=False)
            for n in range(count + 3)
        ),
    )
    report = made(tmp_path, file, rates=verified, min_difficulty=0.1, max_difficulty=0.9)
    assert [(row["id"], row["difficulty"]) for row in kept(tmp_path)] == [
        (ids[1], 0.75),
        (ids[3], 0.5),
    ]
    assert [row["difficulty"] for row in dropped(tmp_path)] == [1.0, 0.0]
    assert report["dropped"] == {"difficulty": 2}


def test_pass_rates_need_verdicts(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "records.jsonl", {"problem": "1+1", "id": "a"})
    with pytest.raises(DstoolsError, match="line 1: has no verdict"):
        made(tmp_path, file, rates=tmp_path)


def test_prompts_of_unknown_difficulty_are_kept(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"problem": "1"}, {"problem": "2", "difficulty": 0.2})
    assert made(tmp_path, file, min_difficulty=0.3)["out"] == 1
    assert kept(tmp_path)[0]["difficulty"] is None


def test_the_first_ones_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"problem": f"{n // 2}"} for n in range(10)))
    assert made(tmp_path, file, limit=3)["dropped"] == {"duplicate": 5, "limit": 2}
    assert [row["messages"][0]["content"] for row in kept(tmp_path)] == ["0", "1", "2"]


def test_a_system_prompt_is_put_where_there_is_none(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "2"}]}
    made(tmp_path, jsonl(tmp_path / "a.jsonl", {"problem": "1"}, own), system="Think.")
    assert [row["messages"][0]["content"] for row in kept(tmp_path)] == ["Think.", "Own."]
    assert all(row["id"] == records.prompt_id(row["messages"], "a.jsonl") for row in kept(tmp_path))


def test_the_same_files_give_the_same_bytes_in_any_folder_after_any_killed_run(
    tmp_path: Path,
) -> None:
    files = []
    for name in ("one", "other"):
        folder = tmp_path / name
        (folder / "out").mkdir(parents=True)
        for left in ("records.jsonl", "dropped.jsonl", "read.jsonl", "signatures.bin"):
            (folder / "out" / left).write_text("of a try that was killed\n" * (name == "other"))
        file = jsonl(folder / "a.jsonl", *({"problem": f"What is {n % 40}?"} for n in range(90)))
        made(folder, file, Source("rg:gcd", size=50), near_duplicates=0.7)
        files.append(outputs(folder / "out"))
    assert files[0] == files[1]
    assert set(files[0]) == {"records.jsonl", "dropped.jsonl"}
