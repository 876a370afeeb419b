"""Every sample is written once, in order, whatever happened to the runs before."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work, digest
from dstools_distill.teachers import generate as module
from dstools_distill.teachers.generate import generate
from dstools_distill.teachers.teacher import Answer, Failed, Missed

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
REPLAY = Generate(backend="replay", model="given.jsonl", samples=2)
HF = Generate(
    backend="hf",
    model="sample-v3",
    samples=2,
    temperature=1.0,
    top_p=0.9,
    max_tokens=40,
    batch_size=4,
)


def prompt(row: int, text: str, reference: str | None = None) -> records.Record:
    messages = [{"role": "user", "content": text}]
    return {
        "id": records.prompt_id(messages, "here"),
        "source": "here",
        "licence": "mit",
        "messages": messages,
        "gold": str(row),
        "answer_type": "integer",
        "task": None,
        "difficulty": None,
        "reference": reference,
    }


PROMPTS = [
    prompt(row, f"State the final answer to the following arithmetic problem: {text} =", reference)
    for row, (text, reference) in enumerate(
        [
            ("5 + 8", "<think>5+8</think>13"),
            ("977 - 899 + 576", None),
            ("12 + 30", "42"),
            ("97 + 97 + 33", None),
            ("640 - 215", None),
        ]
    )
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts").mkdir()
    records.write(tmp_path / "prompts" / "records.jsonl", PROMPTS)
    return tmp_path / "prompts"


def work_in(folder: Path, progress: list[int] | None = None) -> Work:
    folder.mkdir(parents=True, exist_ok=True)
    return (
        Work(folder)
        if progress is None
        else Work(folder, 1, lambda *_: nullcontext(progress.append))
    )


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def given_file(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    records.write(tmp_path / "given.jsonl", rows)
    return tmp_path / "given.jsonl"


def all_given(tmp_path: Path) -> Path:
    """Return a file with two samples of each prompt, in another order than the prompts."""
    rows = [
        {"id": record["id"], "raw": f"<think>{'é' * n}\n</think>\n{n}", "finish_reason": "stop"}
        for n in range(2)
        for record in reversed(PROMPTS)
    ]
    return given_file(tmp_path, rows)


# -------------------------------------------------------------------------------------------- hf


def test_a_model_in_this_process_answers_each_prompt_and_the_records_say_how(
    prompts: Path, tmp_path: Path
) -> None:
    progress: list[int] = []
    settings = replace(HF, temperature=0.01, max_tokens=100)  # greedy in all but name
    report = generate(
        settings, Inputs(prompts=prompts, model=SAMPLE), work_in(tmp_path / "out", progress)
    )
    assert sum(progress) == 10
    assert sorted(bytes_in(tmp_path / "out")) == ["dropped.jsonl", "records.jsonl"]
    assert (tmp_path / "out" / "dropped.jsonl").read_bytes() == b""
    written = list(records.read(tmp_path / "out" / "records.jsonl"))
    assert [(record["id"], record["sample"]) for record in written] == [
        (record["id"], sample) for record in PROMPTS for sample in range(2)
    ]
    first = written[0]
    assert {key: first[key] for key in PROMPTS[0]} == PROMPTS[0]
    assert first["raw"] == f"<think>{first['reasoning']}</think>{first['answer']}"
    assert first["answer"] == "\n\n13"
    assert first["finish_reason"] == "stop"
    assert first["prefilled_think"] is False
    assert first["usage"] == {"prompt_tokens": 8, "completion_tokens": 24}
    assert first["teacher"]["name"] == "sample-v3"
    assert len(first["teacher"]["revision"]) == 16
    assert written[1]["sampling"] == {
        "temperature": 0.01,
        "top_p": 0.9,
        "max_tokens": 100,
        "seed": 0,
        "index": 1,
    }
    tokens = Counter[str]()
    for record in written:
        tokens.update(record["usage"])
    assert report == {
        "in": 5,
        "out": 10,
        "dropped": {},
        "finish_reasons": {"stop": 10},
        "with_one_trace": 10,
        "tokens": dict(sorted(tokens.items())),
    }


def test_a_prefilled_opener_is_in_the_prompt_and_not_in_the_text(
    prompts: Path, tmp_path: Path
) -> None:
    settings = replace(HF, prefill_think=True, temperature=0.0, max_tokens=100, samples=1)
    generate(settings, Inputs(prompts=prompts, model=SAMPLE), work_in(tmp_path / "out"))
    for record in records.read(tmp_path / "out" / "records.jsonl"):
        assert record["prefilled_think"] is True
        assert "<think>" not in record["raw"]
        assert record["raw"] == f"{record['reasoning']}</think>{record['answer']}"


DRIVER = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from dstools_distill.teachers import sampling
from dstools_distill.teachers.generate import generate
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work, digest

prompts, model, out = map(Path, sys.argv[1:4])
settings = Generate(**eval(sys.argv[4]))

def run(folder):
    folder.mkdir(exist_ok=True)
    generate(settings, Inputs(prompts=prompts, model=model), Work(folder))

def child(folder):
    if pid := os.fork():
        return pid
    run(folder)
    os._exit(0)

run(out / "straight")  # in this process: a fork has all that it imports
kills = 0
for bytes_more in map(int, sys.argv[5:]):
    log = out / "killed" / "samples.jsonl"
    before = log.stat().st_size if log.exists() else 0
    pid = child(out / "killed")
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if log.exists() and log.stat().st_size > before + bytes_more:
            os.kill(pid, signal.SIGKILL)
            kills += os.waitpid(pid, 0)[1] == signal.SIGKILL
            break
        time.sleep(0.001)
os.waitpid(child(out / "killed"), 0)
print(kills)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(
    prompts: Path, tmp_path: Path
) -> None:
    settings = {"backend": "hf", "model": "sample-v3", "samples": 4, "temperature": 1.0}
    settings |= {"max_tokens": 30, "batch_size": 3}
    moments = [str(random.Random(seed).randrange(1500)) for seed in range(3)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, (prompts, SAMPLE, tmp_path, settings)), *moments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 3
    assert bytes_in(tmp_path / "killed") == bytes_in(tmp_path / "straight")
    assert len((tmp_path / "killed" / "records.jsonl").read_bytes().splitlines()) == 20


def test_several_greedy_answers_to_a_prompt_are_refused_unless_they_are_replayed(
    prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(DstoolsError, match=r"generate\.samples: 2 greedy answers are all the same"):
        generate(
            replace(HF, temperature=0.0),
            Inputs(prompts=prompts, model=SAMPLE),
            work_in(tmp_path / "out"),
        )
    given = replace(REPLAY, temperature=0.0)
    report = generate(
        given, Inputs(prompts=prompts, model=all_given(tmp_path)), work_in(tmp_path / "replayed")
    )
    assert report["out"] == 10


# ---------------------------------------------------------------------------------------- the log


@pytest.fixture
def stopped(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The log of a run that has all samples and was stopped before it wrote records."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(
                REPLAY,
                Inputs(prompts=prompts, model=all_given(tmp_path)),
                work_in(tmp_path / "stopped"),
            )
    return (tmp_path / "stopped" / "samples.jsonl").read_bytes()


@examples(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_run_resumes_from_a_log_cut_at_any_byte(
    stopped: bytes, prompts: Path, tmp_path: Path, data: st.DataObject
) -> None:
    given = tmp_path / "given.jsonl"
    generate(REPLAY, Inputs(prompts=prompts, model=given), work_in(tmp_path / "straight"))
    lines = stopped.splitlines(keepends=True)
    # in any order: a teacher may answer in another one
    random.Random(data.draw(st.integers(0, 9))).shuffle(lines)
    log = b"".join(lines)
    ends = [at for at, byte in enumerate(log) if byte == ord("\n")]  # a line without its end
    cut = data.draw(st.integers(0, len(log)) | st.sampled_from(ends))
    garbage = data.draw(st.sampled_from([b"", b"\0\0\0\0", b"\0\0\n", b'{"number"', b"\xff\n"]))
    work = work_in(tmp_path / "cut")
    for path in work.folder.iterdir():
        path.unlink()
    (work.folder / "samples.jsonl").write_bytes(log[:cut] + garbage)
    progress: list[int] = []
    generate(REPLAY, Inputs(prompts=prompts, model=given), work_in(tmp_path / "cut", progress))
    whole = log[:cut].count(b"\n")
    assert progress[:1] == ([whole] if whole < 10 else [])  # no complete line is asked again
    assert bytes_in(tmp_path / "cut") == bytes_in(tmp_path / "straight")


def test_a_sample_that_is_logged_twice_counts_once(
    stopped: bytes, prompts: Path, tmp_path: Path
) -> None:
    first, *_ = stopped.splitlines(keepends=True)
    other = first.replace(b"think", b"other")
    (work_in(tmp_path / "out").folder / "samples.jsonl").write_bytes(first + other + first)
    progress: list[int] = []
    inputs = Inputs(prompts=prompts, model=tmp_path / "given.jsonl")
    generate(REPLAY, inputs, work_in(tmp_path / "out", progress))
    generate(REPLAY, inputs, work_in(tmp_path / "straight"))
    assert progress[0] == 1
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "straight")


def test_a_run_stopped_after_its_records_has_the_same_report(
    prompts: Path, tmp_path: Path, stopped: bytes
) -> None:
    report = generate(
        REPLAY, Inputs(prompts=prompts, model=tmp_path / "given.jsonl"), work_in(tmp_path / "out")
    )
    before = bytes_in(tmp_path / "out")
    (tmp_path / "out" / "samples.jsonl").write_bytes(stopped)
    (tmp_path / "given.jsonl").unlink()  # no sample is asked for
    inputs = Inputs(prompts=prompts, model=tmp_path / "given.jsonl")
    assert generate(REPLAY, inputs, work_in(tmp_path / "out")) == report
    assert bytes_in(tmp_path / "out") == before


def test_samples_that_came_before_a_teacher_failed_are_not_asked_for_again(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def teacher(limit: int) -> Any:
        def answers(asks: Iterator[Any], done: Any) -> Iterator[tuple[int, Any]]:
            missing = [ask.number for ask in asks if ask.number not in done]
            for count, number in enumerate(reversed(missing)):
                if count == limit:
                    raise DstoolsError("down")
                asked.append(number)
                yield (
                    number,
                    Failed("too long") if number == 3 else Answer("a", "stop", False, None),
                )

        return answers

    work = work_in(tmp_path / "out")
    for limit in (4, 4):
        monkeypatch.setattr(module, "_teacher", lambda *_, limit=limit: teacher(limit))
        with pytest.raises(DstoolsError, match="down"):
            generate(REPLAY, Inputs(prompts=prompts), work)
    monkeypatch.setattr(module, "_teacher", lambda *_: teacher(99))
    report = generate(REPLAY, Inputs(prompts=prompts), work)
    assert asked == list(reversed(range(10)))
    assert report["dropped"] == {"too long": 1}
    assert (report["in"], report["out"]) == (5, 9)
    (dropped,) = records.read(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["id"], dropped["sample"]) == (PROMPTS[1]["id"], 1)
    assert dropped["drop_reason"] == "too long"
    assert "raw" not in dropped


def failing(missed: dict[int, str], failed: dict[int, str]) -> Any:
    """Return a teacher that answers all samples but these."""

    def answers(asks: Iterator[Any], done: Any) -> Iterator[tuple[int, Any]]:
        for number in [ask.number for ask in asks if ask.number not in done]:
            if number in missed:
                yield number, Missed(missed[number])
            elif number in failed:
                yield number, Failed(failed[number])
            else:
                yield number, Answer("a", "stop", False, None)

    return lambda *_: answers


def test_no_more_samples_may_be_missed_than_max_failed(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 of 15 are 26.67 %: the hint is the next hundredth."""
    away = {3: "time-out", 5: "503", 7: "time-out", 9: "time-out"}
    monkeypatch.setattr(module, "_teacher", failing(away, {8: "too long"}))
    work, settings = work_in(tmp_path / "out"), replace(REPLAY, samples=3)
    for share in (0.0, 0.26):
        with pytest.raises(DstoolsError) as error:
            generate(replace(settings, max_failed=share), Inputs(prompts=prompts), work)
        assert str(error.value) == "4 of 15 samples are missing: 1 x 503, 3 x time-out"
        assert error.value.hint.endswith("generate.max_failed = 0.27")
        assert (work.folder / "samples.jsonl").read_bytes().count(b"\n") == 11
    report = generate(replace(settings, max_failed=4 / 15), Inputs(prompts=prompts), work)
    assert (report["out"], report["dropped"]) == (10, {"503": 1, "time-out": 3, "too long": 1})
    dropped = [
        (PROMPTS.index(prompt_of(record)), record["sample"], record["drop_reason"])
        for record in records.read(work.folder / "dropped.jsonl")
    ]
    assert dropped == [
        (1, 0, "time-out"),
        (1, 2, "503"),
        (2, 1, "time-out"),
        (2, 2, "too long"),
        (3, 0, "time-out"),
    ]


def test_samples_that_fail_for_good_count_as_lost_unless_a_file_does_not_have_them(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's prompt that is too long, say; asking again would not help, so no hint says so."""
    monkeypatch.setattr(module, "_teacher", failing({}, {8: "too long"}))
    with pytest.raises(DstoolsError, match="1 of 10 samples are missing: 1 x too long") as error:
        generate(HF, Inputs(prompts=prompts), work_in(tmp_path / "out"))
    assert error.value.hint == "accept the loss with generate.max_failed = 0.1"
    accepted = replace(HF, max_failed=0.1)
    report = generate(accepted, Inputs(prompts=prompts), work_in(tmp_path / "out"))
    assert (report["out"], report["dropped"]) == (9, {"too long": 1})
    report = generate(REPLAY, Inputs(prompts=prompts), work_in(tmp_path / "replayed"))
    assert report["dropped"] == {"too long": 1}


def prompt_of(record: records.Record) -> records.Record:
    return {key: record[key] for key in PROMPTS[0]}


def test_a_teacher_is_closed_when_its_answers_cannot_be_kept(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def answers(asks: Iterator[Any], done: Any) -> Iterator[tuple[int, Any]]:
        try:
            yield 0, Answer("a", "stop", False, None)
        finally:
            closed.append(True)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_teacher", lambda *_: answers)
    monkeypatch.setattr(module.SampleLog, "add", full)
    with pytest.raises(OSError, match="No space") as error:
        generate(REPLAY, Inputs(prompts=prompts), work_in(tmp_path / "out"))
    assert error.tb is not None  # it keeps the generator alive
    assert closed == [True]


def test_a_run_without_one_sample_is_refused_even_if_every_loss_is_accepted(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = dict.fromkeys(range(9), "time-out")
    monkeypatch.setattr(module, "_teacher", failing(away, {9: "too long"}))
    with pytest.raises(DstoolsError, match="all 10 samples failed: time-out, too long"):
        generate(
            replace(REPLAY, max_failed=1.0), Inputs(prompts=prompts), work_in(tmp_path / "out")
        )


def test_a_log_of_parts_that_were_kept_as_they_came_is_read(
    stopped: bytes, prompts: Path, tmp_path: Path
) -> None:
    """An earlier version logged them before it knew that it could not read them."""
    parts = [{"type": "thinking", "thinking": "5+8"}, {"type": "text", "text": "13"}]
    paid = {"number": 0, "raw": parts, "finish_reason": "stop", "prefilled_think": False}
    log = records.dump(paid | {"usage": None}) + stopped
    (work_in(tmp_path / "out").folder / "samples.jsonl").write_bytes(log)
    inputs = Inputs(prompts=prompts, model=tmp_path / "given.jsonl")
    assert generate(REPLAY, inputs, work_in(tmp_path / "out"))["out"] == 10
    first = next(records.read(tmp_path / "out" / "records.jsonl"))
    assert (first["reasoning"], first["answer"]) == ("\n5+8\n", "\n\n13")


def test_a_log_of_parts_that_no_one_can_order_keeps_the_sample_as_lost(
    stopped: bytes, prompts: Path, tmp_path: Path
) -> None:
    parts = [{"type": kind, kind: word} for word in ("5", "8") for kind in ("text", "thinking")]
    paid = {"number": 0, "raw": parts, "finish_reason": "stop", "prefilled_think": False}
    log = records.dump(paid | {"usage": None}) + stopped
    (work_in(tmp_path / "out").folder / "samples.jsonl").write_bytes(log)
    inputs = Inputs(prompts=prompts, model=tmp_path / "given.jsonl")
    report = generate(replace(REPLAY, max_failed=0.5), inputs, work_in(tmp_path / "out"))
    assert (report["out"], sum(report["dropped"].values())) == (9, 1)


# ----------------------------------------------------------------------------------------- replay


def test_records_of_an_earlier_run_are_replayed_as_they_were(prompts: Path, tmp_path: Path) -> None:
    generate(
        REPLAY, Inputs(prompts=prompts, model=all_given(tmp_path)), work_in(tmp_path / "first")
    )
    earlier = tmp_path / "first" / "records.jsonl"
    generate(
        replace(REPLAY, model="again.jsonl"),
        Inputs(prompts=prompts, model=earlier),
        work_in(tmp_path / "second"),
    )
    names = ("id", "sample", "raw", "reasoning", "answer", "finish_reason", "prefilled_think")
    first, second = (
        [
            [record[name] for name in names]
            for record in records.read(tmp_path / out / "records.jsonl")
        ]
        for out in ("first", "second")
    )
    assert first == second


@pytest.mark.parametrize("name", ["/home/a/given.jsonl", "./b/given.jsonl", "dstools:given.jsonl"])
def test_records_name_a_teacher_without_the_folder_of_its_files(
    name: str, prompts: Path, tmp_path: Path
) -> None:
    inputs = Inputs(prompts=prompts, model=all_given(tmp_path))
    generate(replace(REPLAY, model=name), inputs, work_in(tmp_path / "out"))
    written = list(records.read(tmp_path / "out" / "records.jsonl"))
    (teacher,) = {(row["teacher"]["name"], row["teacher"]["revision"]) for row in written}
    assert teacher == ("replay of given.jsonl", digest(tmp_path / "given.jsonl")[:16])


@pytest.mark.parametrize(
    ("columns", "teacher"),
    [
        ({"model": "r1"}, ("r1", None)),
        ({"generator": " deepseek-ai/DeepSeek-R1\n"}, ("deepseek-ai/DeepSeek-R1", None)),
        ({"model": "the student", "teacher": "r1"}, ("r1", None)),
        ({"teacher": {"name": "r1", "revision": "2f"}}, ("r1", "2f")),
        ({"teacher": {"name": "r1"}, "model": "the student"}, ("r1", None)),
        ({"teacher": None, "generator": " ", "model": "r1"}, ("r1", None)),
        ({"teacher": {"revision": "2f"}, "model": ["r1"]}, None),
        ({"teacher": 7}, None),
    ],
)
def test_a_replayed_line_tells_its_teacher(
    columns: dict[str, Any], teacher: tuple[str, str | None] | None, prompts: Path, tmp_path: Path
) -> None:
    rows = list(records.read(all_given(tmp_path)))
    given = given_file(tmp_path, [rows[0] | columns, *rows[1:]])
    inputs = Inputs(prompts=prompts, model=given)
    report = generate(REPLAY, inputs, work_in(tmp_path / "out"))
    written = list(records.read(tmp_path / "out" / "records.jsonl"))
    plain = ("replay of given.jsonl", digest(given)[:16])
    named = {(row["id"], row["sample"]): tuple(row["teacher"].values()) for row in written}
    assert named.pop((rows[0]["id"], 0)) == (teacher or plain)
    assert set(named.values()) == {plain}
    counted = {teacher[0]: 1, plain[0]: 9} if teacher else {plain[0]: 10}
    assert report["teachers"] == dict(sorted(counted.items()))


def test_records_keep_their_teacher_through_a_replay_and_a_resumed_one(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row | {"teacher": "r1"} for row in records.read(all_given(tmp_path))]
    inputs = Inputs(prompts=prompts, model=given_file(tmp_path, rows))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(REPLAY, inputs, work_in(tmp_path / "first"))
    generate(REPLAY, inputs, work_in(tmp_path / "first"))
    earlier = tmp_path / "first" / "records.jsonl"
    generate(REPLAY, Inputs(prompts=prompts, model=earlier), work_in(tmp_path / "second"))
    written = records.read(tmp_path / "second" / "records.jsonl")
    assert [row["teacher"] for row in written] == [{"name": "r1", "revision": None}] * 10


def test_references_are_replayed_if_no_file_is_named(
    prompts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = generate(replace(REPLAY, model=""), Inputs(prompts=prompts), work_in(tmp_path / "out"))
    written = list(records.read(tmp_path / "out" / "records.jsonl"))
    assert [(record["raw"], record["reasoning"]) for record in written] == [
        ("<think>5+8</think>13", "5+8"),
        ("42", None),
    ]
    assert written[0]["teacher"] == {"name": "reference", "revision": None}
    lacking = next(records.read(prompts / "records.jsonl"))["messages"][-1]["content"]
    assert f"sample 1 of ...{lacking[-60:]!r} failed: no reference" in caplog.text
    assert report == {
        "in": 5,
        "out": 2,
        "dropped": {"no reference": 8},
        "finish_reasons": {"unknown": 2},  # nobody says
        "with_one_trace": 1,
        "tokens": {},
    }


def test_a_token_that_ended_an_answer_is_cut_off_and_counted(prompts: Path, tmp_path: Path) -> None:
    asked = list(records.read(prompts / "records.jsonl"))
    ends = ["</s>", "<|im_end|>\n", "</s>", "", "`</s>`"]
    rows = [
        {"id": record["id"], "content": f"4{end}", "reasoning": "2+2"}
        for record, end in zip(asked, ends, strict=True)
    ]
    file = tmp_path / "samples.jsonl"
    records.write(file, rows)
    inputs = Inputs(prompts=prompts, model=file)
    report = generate(replace(REPLAY, samples=1), inputs, work_in(tmp_path / "out"))
    written = list(records.read(tmp_path / "out" / "records.jsonl"))
    assert [record["answer"].strip() for record in written] == ["4", "4", "4", "4", "4`</s>`"]
    tokens = ["</s>", "<|im_end|>", "</s>", None, None]
    assert [record.get("end_token") for record in written] == tokens
    assert report["end_tokens_cut"] == {"</s>": 2, "<|im_end|>": 1}


def test_prompts_without_any_answer_are_told_apart_from_a_teacher_of_others(
    prompts: Path, tmp_path: Path
) -> None:
    records.write(prompts / "records.jsonl", [row | {"reference": None} for row in PROMPTS])
    with pytest.raises(DstoolsError, match="all 10 samples failed: no reference") as caught:
        generate(replace(REPLAY, model=""), Inputs(prompts=prompts), work_in(tmp_path / "out"))
    assert caught.value.hint.startswith("no row has an answer in a column that `prompts` reads")


def test_a_run_without_one_sample_is_refused_and_asks_again_the_next_time(
    prompts: Path, tmp_path: Path
) -> None:
    given = given_file(tmp_path, [{"prompt": "something else", "raw": "x"}])
    with pytest.raises(DstoolsError, match="all 10 samples failed: not in the file"):
        generate(REPLAY, Inputs(prompts=prompts, model=given), work_in(tmp_path / "out"))
    assert (
        generate(
            REPLAY, Inputs(prompts=prompts, model=all_given(tmp_path)), work_in(tmp_path / "out")
        )["out"]
        == 10
    )
