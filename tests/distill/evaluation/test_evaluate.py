"""Tests of evaluating models with the real sampler and judge: figures, errors, killed runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.data.prompts import prompts
from dstools_distill.evaluation.evaluate import _record, evaluate, last_answer
from dstools_distill.evaluation.statistics import paired_difference
from dstools_distill.evaluation.tally import as_json
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Eval, Prompts, Source, Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Report, Work
from dstools_distill.teachers.sampling import Sampled

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 3}
GREEDY = Eval((), max_tokens=128, batch_size=20, precision="float32")
SAMPLED = replace(
    GREEDY, samples=4, temperature=1.2, top_p=1.0, k=(1, 2, 4), max_tokens=48, batch_size=5
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def work(folder: Path, progress: list[int] | None = None) -> Work:
    """Where a stage works; `progress` gets the counts of its progress."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        Work(folder)
        if progress is None
        else Work(folder, 1, lambda *_: nullcontext(progress.append))
    )


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """sums(n): the folder of n sums as `prompts` makes it."""

    def make(size: int) -> Path:
        folder = tmp_path_factory.mktemp("sums")
        source = Source("rg:chain_sum", size=size, seed=987654, options=SUMS)
        prompts(Prompts((source,)), Inputs(sources=(None,)), work(folder))
        return folder

    return make


def test_a_student_whose_logits_are_not_finite_is_wrong_and_not_unjudged() -> None:
    problem = {"gold": "4", "answer_type": "integer", "task": None}
    judged = _record(problem, 0, Sampled([5], "4", "error"), False, Judge(Verify()))
    assert judged["verdict"] == "incorrect"
    assert judged["verdict_reason"] == "unfinished: logits are not finite"


def run(settings: Eval, problems: Path, folder: Path, model: Path = SAMPLE, **more: Any) -> Report:
    models = more.pop("models", {"after": model})
    tokenizer = more.pop("tokenizer", model)
    inputs = Inputs(problems=problems, models=models, tokenizer=tokenizer, judge=Verify())
    return evaluate(settings, inputs, work(folder, **more))


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


# ------------------------------------------------------------------------------------- figures


def test_the_sample_model_solves_what_it_was_trained_on(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    report = run(GREEDY, sums(40), tmp_path)
    figures = report["models"]["after"]
    assert (report["in"], report["out"], report["dropped"]) == (40, 40, {})
    assert report["sources"] == {"rg:chain_sum": 40}
    assert figures["pass@1"] == {
        "value": 0.95,
        "low": 0.834961,
        "high": 0.986179,
    }  # Wilson, 38 of 40
    assert sum(figures["reasons"].values()) - figures["reasons"]["correct: equal"] == 2
    assert (figures["truncated"], figures["not_well_formed"], figures["context"]) == (0, 0, 512)
    assert report["difference"] is None
    rows = list(records.read(tmp_path / "answers-after.jsonl"))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores == {"after": {row["id"]: [int(row["verdict"] == "correct"), 1] for row in rows}}


def test_two_models_are_compared_problem_by_problem(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    report = run(GREEDY, sums(3), tmp_path, models={"before": SAMPLE, "after": SAMPLE})
    assert report["models"]["before"] == report["models"]["after"]
    difference = {"from": "before", "to": "after"} | as_json(
        paired_difference([1.0] * 3, [1.0] * 3)
    )
    assert report["difference"] == difference
    files = {"answers-before.jsonl", "answers-after.jsonl", "scores.json"}
    assert {file.name for file in tmp_path.iterdir()} == files


def test_samples_of_a_problem_differ_and_are_counted_together(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    report = run(SAMPLED, sums(5), tmp_path)
    rows = list(records.read(tmp_path / "answers-after.jsonl"))
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 5
    assert len({row["raw"] for row in rows}) > 5
    figures = report["models"]["after"]
    right = sum(row["verdict"] == "correct" for row in rows)
    assert figures["pass@1"]["value"] == pytest.approx(right / 20, abs=1e-6)
    rates = [figures["pass@k"][k]["value"] for k in ("1", "2", "4")]
    assert rates == sorted(rates)


def test_an_unfinished_answer_is_wrong_and_counted_apart(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    """Both are right; the first has 56 tokens with its end, the second 41."""
    report = run(replace(GREEDY, max_tokens=55), sums(2), tmp_path)
    figures = report["models"]["after"]
    assert (figures["truncated"], figures["pass@1"]["value"]) == (1 / 2, 1 / 2)
    rows = list(records.read(tmp_path / "answers-after.jsonl"))
    lucky = [row for row in rows if row["lenient"] and row["verdict"] != "correct"]
    assert [row["finish_reason"] for row in lucky] == ["length"]
    assert [row["vote"] for row in lucky] == [None]
    assert figures["lenient"]["value"] == 1.0


@pytest.fixture
def answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample model, but what it says is the answer without the trace."""
    from dstools_distill.teachers.sampling import Sampler

    whole = Sampler._sampled

    def bare(self: Any, ids: list[int], reason: Any) -> Any:
        sampled = whole(self, ids, reason)
        return sampled._replace(text=sampled.text.rpartition("</think>")[2].strip())

    monkeypatch.setattr(Sampler, "_sampled", bare)


@pytest.mark.usefixtures("answers_alone")
def test_answers_without_a_trace_are_right_only_where_that_was_asked_for(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    strict = run(GREEDY, sums(3), tmp_path / "strict")["models"]["after"]
    assert (strict["pass@1"]["value"], strict["not_well_formed"]) == (0.0, 1.0)
    assert strict["lenient"]["value"] == 1.0
    bare = run(replace(GREEDY, reasoning=False), sums(3), tmp_path / "bare")["models"]["after"]
    assert (bare["pass@1"]["value"], bare["not_well_formed"]) == (1.0, 0.0)


def test_problems_without_a_gold_answer_are_dropped_and_counted(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    rows = list(records.read(sums(3) / "records.jsonl"))
    rows[1] |= {"gold": None, "task": None, "answer_type": "none"}
    records.write(tmp_path / "records.jsonl", rows)
    report = run(GREEDY, tmp_path, tmp_path / "out")
    assert (report["in"], report["out"], report["dropped"]) == (3, 2, {"no-gold": 1})
    assert report["models"]["after"]["problems"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{12} or \boxed{\frac{1}{2}}, i.e. 0.5", r"\frac{1}{2}"),
        (r"<think>\boxed{7", "7"),  # no end: the last number
        ("3+4=7, and 1,234", "1,234"),
        ("7, -3.5,", "-3.5"),
        ("a half is 1/2.", "1/2"),
        ("well\nParis", "Paris"),
        ("", ""),
    ],
)
def test_the_last_answer_of_any_text(text: str, expected: str) -> None:
    assert last_answer(text) == expected


# ------------------------------------------------------------------------------ killed, resumed


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}]
import importlib.util
spec = importlib.util.spec_from_file_location("test_evaluate", {file!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.torch.set_num_threads(1)
module.run(module.SAMPLED, Path({problems!r}), Path({out!r}))
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_bytes(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    problems, out = sums(4), tmp_path / "killed"
    straight = run(SAMPLED, problems, tmp_path / "straight")
    script = SCRIPT.format(
        here=str(Path(__file__).parent), file=__file__, problems=str(problems), out=str(out)
    )
    log = out / "answers-after.log"
    child = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": ""})
    while child.poll() is None and not (log.exists() and log.stat().st_size > 4_000):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert log.exists(), "it was killed too late"
    with log.open("ab") as file:
        file.write(b'{"number": 3, "rec')  # as a kill in the middle of a write leaves it
    known = log.read_bytes().count(b"\n")
    assert known > 0
    progress: list[int] = []
    resumed = run(SAMPLED, problems, out, progress=progress)
    assert progress[0] == known
    assert sum(progress[1:]) == 16 - known
    assert resumed == straight
    assert bytes_of(out) == bytes_of(tmp_path / "straight")


def test_a_window_that_is_half_logged_is_drawn_again(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    problems, out = sums(2), tmp_path / "out"
    straight = run(SAMPLED, problems, tmp_path / "straight")
    rows = list(records.read(tmp_path / "straight" / "answers-after.jsonl"))
    out.mkdir()
    logged = [{"number": place, "record": rows[place]} for place in (0, 4)]
    records.write(out / "answers-after.log", logged)
    assert run(SAMPLED, problems, out) == straight
    assert bytes_of(out) == bytes_of(tmp_path / "straight")


def test_a_model_that_is_done_is_not_loaded_again(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    problems = sums(2)
    first = run(GREEDY, problems, tmp_path / "out")
    model = tmp_path / "model"
    shutil.copytree(SAMPLE, model)
    (model / "model.safetensors").unlink()
    assert run(GREEDY, problems, tmp_path / "out", model) == first


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"k": (1, 4)}, "eval.k: cannot draw 4 answers from 1"),
        ({"k": (0,)}, "eval.k"),
        ({"samples": 3}, "3 greedy answers are all the same"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DstoolsError, match=reason):
        run(replace(GREEDY, **change), tmp_path, tmp_path / "out")


def test_problems_that_nobody_can_judge_are_refused(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    rows = [row | {"gold": None, "task": None} for row in records.read(sums(2) / "records.jsonl")]
    records.write(tmp_path / "records.jsonl", rows)
    with pytest.raises(DstoolsError, match="none of 2 problems has an answer"):
        run(GREEDY, tmp_path, tmp_path / "out")


def test_a_student_without_a_chat_template_is_refused_by_name(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(SAMPLE, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DstoolsError, match="model: the tokenizer has no chat template"):
        run(GREEDY, sums(2), tmp_path / "out", model)
    endless = template.replace("{{ eos_token }}", "")
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": endless}))
    with pytest.raises(DstoolsError, match="model: the chat template writes no end token"):
        run(GREEDY, sums(2), tmp_path / "out", model)


def test_a_folder_without_a_model_is_refused(sums: Callable[[int], Path], tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match=r"has no config\.json"):
        run(GREEDY, sums(2), tmp_path / "out", tmp_path, tokenizer=SAMPLE)
    shutil.copy(SAMPLE / "config.json", tmp_path)
    with pytest.raises(DstoolsError, match="cannot be loaded"):
        run(GREEDY, sums(2), tmp_path / "out", tmp_path, tokenizer=SAMPLE)


def test_a_tokenizer_of_another_model_is_refused(
    sums: Callable[[int], Path], tmp_path: Path
) -> None:
    config = json.loads((SAMPLE / "tokenizer_config.json").read_text())
    config["chat_template"] = "<|new|>" + config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((SAMPLE / "tokenizer.json").read_text())
    for number, content in ((319, "<|last|>"), (320, "<|new|>")):
        token = tokenizer["added_tokens"][0] | {"id": number, "content": content}
        tokenizer["added_tokens"].append(token)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DstoolsError, match="has 320 tokens, but the prompts contain token 320"):
        run(GREEDY, sums(2), tmp_path / "out", tokenizer=tmp_path)
