"""A batch is written, read when answers come, and written again for what is missing."""

import json
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.store.stage import Work
from dstools_distill.teachers import batchfile
from dstools_distill.teachers.batchfile import batch_files, remove_batch_files
from dstools_distill.teachers.generate import generate
from dstools_distill.teachers.teacher import Answer, Ask, Failed, Missed, Outcome

SETTINGS = Generate(backend="openai-batch", model="r1", samples=2, seed=7)
PROMPTS = [
    {"id": letter * 4, "messages": [{"role": "user", "content": f"What is {letter}?"}]}
    for letter in "abcde"
]
ASKS = [Ask(row * 2 + n, n, prompt) for row, prompt in enumerate(PROMPTS) for n in range(2)]


def outcomes(
    folder: Path, logged: tuple[int, ...] = (), settings: Generate = SETTINGS
) -> dict[int, Outcome]:
    """Return what the teacher yields for ASKS, some of which are logged already."""
    (folder / "samples.jsonl").unlink(missing_ok=True)
    with closing(SampleLog(folder / "samples.jsonl", len(ASKS))) as log:
        for number in logged:
            log.add(number, {})
        return dict(batch_files(settings, folder, len(ASKS))(iter(ASKS), log))


def requests_in(folder: Path) -> list[dict[str, Any]]:
    """Ask without answers; return the requests that were written."""
    with pytest.raises(DstoolsError, match="10 of 10 samples have no answer yet"):
        outcomes(folder)
    return list(records.read(folder / "requests-1.jsonl"))


def completion(content: Any, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **more}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def answered(request: dict[str, Any], status: int, body: Any) -> dict[str, Any]:
    response = {"status_code": status, "request_id": "q", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}


def test_requests_are_written_for_every_sample_and_the_error_says_what_to_do(
    tmp_path: Path,
) -> None:
    with pytest.raises(DstoolsError) as error:
        outcomes(tmp_path)
    assert str(error.value) == (
        f"10 of 10 samples have no answer yet; the requests are in {tmp_path}: requests-1.jsonl"
    )
    assert f"save its answers as {tmp_path / 'answers-1.jsonl'} and so on" in error.value.hint
    written = list(records.read(tmp_path / "requests-1.jsonl"))
    assert [line["custom_id"] for line in written] == [
        f"{number}-{sample}-{prompt['id']}" for number, sample, prompt in ASKS
    ]
    assert written[1] == {
        "custom_id": "1-1-aaaa",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "r1",
            "messages": PROMPTS[0]["messages"],
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 32768,
            "seed": 8,
        },
    }


def test_answers_in_any_order_are_read_and_only_what_is_missing_is_asked_again(
    tmp_path: Path,
) -> None:
    requests = requests_in(tmp_path)
    answers = [
        answered(request, 200, completion(str(n), reasoning_content=f"why {n}"))
        for n, request in enumerate(requests)
    ]
    error = {"error": {"type": "context_length_exceeded", "message": "too long"}}
    answers[2] = answered(requests[2], 400, error)
    answers[3] = answered(requests[3], 500, {})
    answers[5] = answered(requests[5], 404, {"error": "no such model"})
    answers[4] = {"custom_id": requests[4]["custom_id"], "response": None, "error": {}}  # expired
    del answers[9]
    random.Random(0).shuffle(answers)
    again = {"custom_id": requests[0]["custom_id"], "response": None, "error": {}}
    records.write(tmp_path / "answers-1.jsonl", [again, *answers, again])  # the answer wins
    with pytest.raises(DstoolsError, match="3 of 10 samples have no answer yet, 1 of them: 500, 1"):
        outcomes(tmp_path)
    missing = list(records.read(tmp_path / "requests-1.jsonl"))
    assert missing == [requests[n] for n in (3, 4, 9)]

    late = [answered(request, 200, completion("late")) for request in missing]
    records.write(tmp_path / "answers-2.jsonl", late)
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    assert outcomes(tmp_path) == {
        n: Answer("late", "stop", False, usage)
        if n in (3, 4, 9)
        else Answer(f"<think>\nwhy {n}\n</think>\n\n{n}", "stop", False, usage)
        for n in range(10)
        if n not in (2, 5)
    } | {
        2: Missed("request refused: 400 context_length_exceeded", "too long"),
        5: Missed("request refused: 404", "no such model"),
    }
    assert list(tmp_path.glob("requests*")) == []


def begun(folder: Path, prompts: list[records.Record]) -> tuple[Inputs, Work]:
    """Return the input and the empty result of a stage that asks for answers to some prompts."""
    records.write(folder / "records.jsonl", prompts)
    (folder / "out").mkdir()
    return Inputs(prompts=folder), Work(folder / "out")


def test_samples_that_expired_are_told_and_lost_where_that_is_accepted(tmp_path: Path) -> None:
    inputs, work = begun(tmp_path, PROMPTS[:2])
    out = work.folder
    with pytest.raises(DstoolsError, match="4 of 4 samples have no answer yet; the requests"):
        generate(SETTINGS, inputs, work)
    asked = list(records.read(out / "requests-1.jsonl"))
    error = {"code": "batch_expired", "message": "not executed in time"}
    expired = [
        {"custom_id": request["custom_id"], "response": None, "error": error}
        for request in asked[2:]
    ]
    answers = [answered(request, 200, completion("1")) for request in asked[:2]]
    records.write(out / "answers-1.jsonl", [*answers, *expired])
    for share in (0.0, 0.25):
        with pytest.raises(DstoolsError) as caught:
            generate(replace(SETTINGS, max_failed=share), inputs, work)
        shown = "2 of 4 samples have no answer yet, 2 of them: batch_expired; the requests are in "
        assert str(caught.value).startswith(shown)
        assert caught.value.hint.endswith("; or accept the loss with generate.max_failed = 0.5")
        assert list(records.read(out / "requests-1.jsonl")) == asked[2:]
    records.write(out / "answers-1.jsonl", [*answers, expired[0]])  # the last has no line at all
    with pytest.raises(DstoolsError, match="yet, 1 of them: batch_expired; the") as caught:
        generate(replace(SETTINGS, max_failed=0.5), inputs, work)
    assert "max_failed" not in caught.value.hint
    records.write(out / "answers-1.jsonl", [*answers, *expired])
    report = generate(replace(SETTINGS, max_failed=0.5), inputs, work)
    assert (report["out"], report["dropped"]) == (2, {"batch_expired": 2})
    assert report["details"] == {"batch_expired": "not executed in time"}
    assert sorted(path.name for path in out.iterdir()) == ["dropped.jsonl", "records.jsonl"]


def test_answers_that_came_for_a_run_of_fewer_samples_are_used_by_one_of_more(
    tmp_path: Path,
) -> None:
    """The answers to the first batch were saved, and `samples` raised before they were read."""
    records.write(tmp_path / "records.jsonl", PROMPTS[:2])
    inputs, works = Inputs(prompts=tmp_path), [tmp_path / f"generate-{n}.incomplete" for n in "23"]
    for folder in works:
        folder.mkdir()
    with pytest.raises(DstoolsError, match="4 of 4 samples have no answer yet"):
        generate(SETTINGS, inputs, Work(works[0]))
    sent = list(records.read(works[0] / "requests-1.jsonl"))
    lines = [answered(request, 200, completion("yes")) for request in sent[:3]]
    records.write(works[0] / "answers-1.jsonl", [*lines, answered(sent[3], 500, {})])
    with pytest.raises(DstoolsError, match="3 of 6 samples have no answer yet"):
        generate(replace(SETTINGS, samples=3), inputs, Work(works[1]))
    left = [row["body"]["seed"] for row in records.read(works[1] / "requests-1.jsonl")]
    assert left == [9, 8, 9]  # the third samples, and the second of the other prompt


def test_answers_beside_one_of_another_run_are_used_by_a_run_of_more_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that stops keeps its requests, and a line that a kill cut is left out by others."""
    records.write(tmp_path / "records.jsonl", PROMPTS[:2])
    inputs, works = Inputs(prompts=tmp_path), [tmp_path / f"generate-{n}.incomplete" for n in "12"]
    for folder in works:
        folder.mkdir()
    one = replace(SETTINGS, samples=1)
    with pytest.raises(DstoolsError, match="2 of 2 samples have no answer yet"):
        generate(one, inputs, Work(works[0]))
    requests = works[0] / "requests-1.jsonl"
    sent = requests.read_bytes()
    asked = list(records.read(requests))
    foreign = answered({"custom_id": "0-0-another"}, 200, completion("no"))
    records.write(works[0] / "answers-1.jsonl", [foreign, answered(asked[1], 200, completion("b"))])
    with pytest.raises(DstoolsError, match="custom_id '0-0-another' is not of a request"):
        generate(one, inputs, Work(works[0]))
    assert requests.read_bytes() == sent
    for path in (requests, works[0] / "answers-1.jsonl"):
        path.write_bytes(path.read_bytes() + b'[]\n{"custom_id": [2]}\n{"custom_id": "2-0')
    with pytest.raises(DstoolsError, match="3 of 4 samples have no answer yet"):
        generate(SETTINGS, inputs, Work(works[1]))
    left = [row["custom_id"][:3] for row in records.read(works[1] / "requests-1.jsonl")]
    assert left == ["0-0", "1-1", "3-1"]
    for name in ("requests", "answers"):
        assert caplog.text.count(f"{name}-1.jsonl: line 3: is not a JSON object; it is left") == 1
        assert caplog.text.count(f"{name}-1.jsonl: line 5: is not valid JSON: ") == 1


def test_a_refused_request_is_written_again_once_its_answer_is_deleted(tmp_path: Path) -> None:
    inputs, work = begun(tmp_path, PROMPTS[:1])
    out = work.folder
    with pytest.raises(DstoolsError, match="2 of 2 samples have no answer yet"):
        generate(SETTINGS, inputs, work)
    first, second = records.read(out / "requests-1.jsonl")
    refusal = answered(second, 400, {"error": {"message": "too long"}})
    records.write(out / "answers-1.jsonl", [answered(first, 200, completion("1")), refusal])
    with pytest.raises(DstoolsError, match=r"1 x request refused: 400 \(too long\)") as error:
        generate(SETTINGS, inputs, work)
    assert error.value.hint.startswith(f"delete their lines in {out}/answers*.jsonl and run it")
    records.write(out / "answers-1.jsonl", [])
    with pytest.raises(DstoolsError, match="1 of 2 samples have no answer yet"):
        generate(SETTINGS, inputs, work)
    assert list(records.read(out / "requests-1.jsonl")) == [second]


def test_an_answer_that_was_not_read_is_asked_for_again_without_its_lines_in_log_and_answers(
    tmp_path: Path,
) -> None:
    inputs, work = begun(tmp_path, PROMPTS[:1])
    out = work.folder
    with pytest.raises(DstoolsError, match="2 of 2 samples have no answer yet"):
        generate(SETTINGS, inputs, work)
    first, second = records.read(out / "requests-1.jsonl")
    odd = answered(second, 200, completion([{"type": "poem"}]))
    records.write(out / "answers-1.jsonl", [answered(first, 200, completion("1")), odd])
    with pytest.raises(DstoolsError, match="1 x answer not read: ") as error:
        generate(SETTINGS, inputs, work)
    log = out / "samples.jsonl"
    assert error.value.hint.startswith(
        f'delete the lines with "body" in {log} and theirs in {out}/answers*.jsonl, and run it'
    )
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if b'"body"' not in line))
    records.write(out / "answers-1.jsonl", [])
    with pytest.raises(DstoolsError, match="1 of 2 samples have no answer yet"):
        generate(SETTINGS, inputs, work)
    assert list(records.read(out / "requests-1.jsonl")) == [second]


def test_samples_in_the_log_are_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="2 of 10 samples have no answer yet"):
        outcomes(tmp_path, logged=(0, 1, 2, 3, 4, 5, 6, 7))
    numbers = [line["custom_id"][:2] for line in records.read(tmp_path / "requests-1.jsonl")]
    assert numbers == ["8-", "9-"]


def test_requests_are_split_at_the_limits_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchfile, "MAX_LINES", 4)
    with pytest.raises(DstoolsError, match=r"requests-1\.jsonl, requests-2\.jsonl, requests-3"):
        outcomes(tmp_path)
    counts = [len(list(records.read(tmp_path / f"requests-{n}.jsonl"))) for n in (1, 2, 3)]
    assert counts == [4, 4, 2]
    monkeypatch.setattr(batchfile, "MAX_BYTES", 700)
    with pytest.raises(DstoolsError):
        outcomes(tmp_path)
    files = sorted(tmp_path.glob("requests*"))
    assert len(files) > 3
    assert all(path.stat().st_size <= 700 for path in files)


@pytest.mark.parametrize("name", ["99-0-x", "-1", "0-0-another prompt", None])
def test_an_answer_of_another_run_is_refused(name: str | None, tmp_path: Path) -> None:
    line = {"custom_id": name, "response": None, "error": None}
    records.write(tmp_path / "answers-1.jsonl", [line])
    with pytest.raises(DstoolsError, match=r"answers-1\.jsonl: line 1: custom_id .* is not of a"):
        outcomes(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason", "detail"),
    [
        (None, "200, no chat completion", "null"),
        ({}, "200, no chat completion", "{}"),
        ({"error": {"type": "busy", "message": "later"}}, "200 with an error busy", "later"),
        ("<html>", "200, not JSON", "<html>"),
    ],
)
def test_an_answer_that_is_not_a_completion_is_lost_alone_and_asked_for_again(
    body: Any, reason: str, detail: str, tmp_path: Path
) -> None:
    requests = requests_in(tmp_path)
    answers = [answered(request, 200, completion("1")) for request in requests[1:]]
    bad = answered(requests[0], 200, body)
    records.write(tmp_path / "answers-1.jsonl", [bad, *answers])
    accepted = replace(SETTINGS, max_failed=0.1)
    assert outcomes(tmp_path, settings=accepted)[0] == Missed(reason, detail)
    with pytest.raises(DstoolsError, match=f"1 of 10 samples have no answer yet, 1 of .*{reason}"):
        outcomes(tmp_path)
    assert list(records.read(tmp_path / "requests-1.jsonl")) == requests[:1]
    records.write(tmp_path / "answers-2.jsonl", [answered(requests[0], 200, completion("2")), bad])
    assert outcomes(tmp_path)[0] == outcomes(tmp_path)[1]._replace(raw="2")  # the answer wins


def test_a_second_answer_that_differs_is_refused_with_both_lines(tmp_path: Path) -> None:
    requests = requests_in(tmp_path)
    first = [answered(request, 200, completion("1")) for request in requests]
    again = answered(requests[3], 200, completion("1") | {"id": "another", "created": 7})
    records.write(tmp_path / "answers-1.jsonl", first)
    records.write(tmp_path / "answers-2.jsonl", [again])
    assert {outcome[0] for outcome in outcomes(tmp_path).values()} == {"1"}
    records.write(
        tmp_path / "answers-2.jsonl", [again, answered(requests[3], 200, completion("2"))]
    )
    with pytest.raises(DstoolsError) as error:
        outcomes(tmp_path)
    name = requests[3]["custom_id"]
    assert str(error.value) == (
        f"{tmp_path}/answers-2.jsonl: line 2: custom_id {name} has another answer in "
        "answers-1.jsonl, line 4"
    )


def test_an_answer_that_cannot_be_read_fails_alone_with_its_body(tmp_path: Path) -> None:
    requests = requests_in(tmp_path)
    odd = completion([{"type": "poem"}])
    answers = [answered(request, 200, completion("1")) for request in requests[1:]]
    records.write(tmp_path / "answers-1.jsonl", [answered(requests[0], 200, odd), *answers])
    made = outcomes(tmp_path)
    assert made[0] == Failed(
        "answer not read: the content is not a string: list with a part of type 'poem'",
        body=json.dumps(odd),
    )
    assert isinstance(made[9], Answer)


def test_requests_and_answers_are_removed_and_nothing_else_is(tmp_path: Path) -> None:
    killed = ".requests-2.jsonl.partial"
    for name in ("requests-1.jsonl", killed, "answers-7.jsonl", "answers.txt", "records.jsonl"):
        (tmp_path / name).touch()
    remove_batch_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.txt", "records.jsonl"]
