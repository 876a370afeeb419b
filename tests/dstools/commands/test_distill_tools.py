"""`dstools distill index`, `doctor` and `eval --lm-eval`: exit codes, streams, repeats."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def dstools(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["distill", *map(str, args)])


def refused(result: Result) -> tuple[str, str]:
    """The one error line and the one hint line of a command that ended with 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


# ---------------------------------------------------------------------------------------- index


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    file = tmp_path / "exam.jsonl"
    questions = ["What is the sum of 12 and 29?", "How many primes are below 100?"]
    file.write_text("".join(json.dumps({"question": each}) + "\n" for each in questions))
    return file


def test_an_index_is_written_and_its_rows_are_counted(exam: Path, tmp_path: Path) -> None:
    result = dstools("index", tmp_path / "a.ngrams", exam)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split() == ["exam", "2", "rows"]
    assert (tmp_path / "a.ngrams").exists()


def test_an_index_is_one_json_object_and_the_same_for_the_same_files(
    exam: Path, tmp_path: Path
) -> None:
    results = [dstools("index", tmp_path / name, exam, "--json") for name in ("a", "b")]
    assert [each.exit_code for each in results] == [0, 0]
    first, second = (json.loads(each.stdout) for each in results)
    assert first == second
    assert first["benchmarks"] == {"exam": 2}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bad_line_is_named_and_no_index_is_written(exam: Path, tmp_path: Path) -> None:
    with exam.open("a") as file:
        file.write("{\n")
    error, _ = refused(dstools("index", tmp_path / "a.ngrams", exam, "--json"))
    assert "exam.jsonl: line 3: is not valid JSON" in error
    assert not list(tmp_path.glob("*.ngrams*"))


def test_an_index_that_is_there_is_not_written_over(exam: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ngrams").write_text("mine")
    error, hint = refused(dstools("index", tmp_path / "a.ngrams", exam))
    assert "already exists" in error
    assert "remove it" in hint
    assert (tmp_path / "a.ngrams").read_text() == "mine"


# --------------------------------------------------------------------------------------- doctor


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Path]:
    """prepared(end=True): a data set of one row, with or without its end: the quickest to judge."""
    from dstools_distill.tokens.templates import load_tokenizer

    encode = load_tokenizer(SAMPLE).encode

    def make(*, end: bool = True) -> Path:
        prompt = encode(
            "<｜begin▁of▁sentence｜><｜User｜>3+4?<｜Assistant｜>", add_special_tokens=False
        )
        answer = encode(
            "<think>\n3+4=7\n</think>\n\n7<｜end▁of▁sentence｜>", add_special_tokens=False
        )
        ids = prompt + answer
        labels = [-100] * len(prompt) + answer[:-1] + ([answer[-1]] if end else [-100])
        file = tmp_path / "prepared.jsonl"
        file.write_text(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
        return file

    return make


def test_a_trainer_that_loses_nothing_is_exit_code_0(prepared: Any) -> None:
    result = dstools("doctor", SAMPLE, "--prepared", prepared())
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "prepared data (1 conversation read)"
    assert lines[-1] == "nothing would be lost"


def test_a_trainer_that_loses_something_is_exit_code_3(prepared: Any) -> None:
    result = dstools("doctor", SAMPLE, "--prepared", prepared(end=False))
    assert result.exit_code == 3, result.output
    assert "error: row 1: <｜end▁of▁sentence｜> is not trained on after the answer" in result.stdout
    assert "nothing would be lost" not in result.stdout


@pytest.mark.parametrize(("end", "code"), [(True, 0), (False, 3)])
def test_a_diagnosis_is_one_json_object_whatever_the_exit_code(
    prepared: Any, end: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that prints a warning to stdout does not spoil it."""
    from dstools_distill.tokens import doctor

    def noisy(*args: Any) -> Any:
        print("a warning of a library")  # noqa: T201
        return original(*args)

    original = doctor.load_tokenizer
    monkeypatch.setattr(doctor, "load_tokenizer", noisy)
    result = dstools("doctor", SAMPLE, "--prepared", prepared(end=end), "--json")
    assert result.exit_code == code, result.output
    assert "a warning of a library" in result.stderr
    found = json.loads(result.stdout)
    assert [case["name"] for case in found["cases"]] == ["row 1"]
    errors = [each["code"] for each in found["findings"] if each["level"] == "error"]
    assert errors == (["end-missing"] if code else [])


def test_options_of_the_doctor_that_contradict_are_refused() -> None:
    result = dstools("doctor", SAMPLE, "--prepared", "a", "--config", "b")
    assert result.exit_code == 2
    assert "leave out --config" in result.stderr


@pytest.mark.parametrize(
    ("config", "data", "message"),
    [
        ("{", "", "trainer.yaml: is not valid YAML: "),
        ("colour: blue", "", "trainer.yaml: is not a configuration of "),
        (
            "stage: dpo\ntemplate: qwen3",
            "",
            "has stage: dpo, so it is not of supervised fine-tuning",
        ),
        ("max_length: 9", "{", "row.jsonl: line 1: is not valid JSON"),
        (
            "max_length: 9",
            '{"problem": "2+2?", "answer": "4"}',
            "row.jsonl: no question with an answer in 1 row",
        ),
    ],
)
def test_a_file_that_the_doctor_cannot_read_is_one_error_and_one_hint(
    tmp_path: Path, config: str, data: str, message: str
) -> None:
    (tmp_path / "trainer.yaml").write_text(config)
    (tmp_path / "row.jsonl").write_text(data)
    own = ["--data", str(tmp_path / "row.jsonl")] if data else []
    error, _ = refused(
        dstools("doctor", SAMPLE, "--config", tmp_path / "trainer.yaml", "--json", *own)
    )
    assert message in error


def test_a_tokenizer_that_is_not_here_is_one_error_and_one_hint(tmp_path: Path) -> None:
    error, _ = refused(dstools("doctor", tmp_path / "none"))
    assert "none: no such folder" in error


# ------------------------------------------------------------------------------ eval --lm-eval

RECIPE = """
[student]
model = "{sample}"

[[eval.source]]
path = "exam.jsonl"

[eval]
max_tokens = 1
precision = "float32"
"""


class Harness:
    """In the place of the process of lm_eval: ends with the codes that it was given, one a call."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.tasks: list[str] = []
        self.found_there: list[bool] = []  # was the output folder there before?

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        """Leave a file of results, as lm_eval does before the model's own name, and end."""
        option = dict(pairwise(command))
        assert option["-m"] == "lm_eval"
        out = Path(option["--output_path"])
        self.found_there.append(out.exists())
        self.tasks.append(option["--tasks"])
        (out / "model").mkdir(parents=True)
        found = {
            "results": {"sums": {"exact_match,none": 0.5 + len(self.tasks) / 100}},
            "n-samples": {"sums": {"effective": 8}},
            "configs": {"sums": {"generation_kwargs": {}}},
            "config": {"model_args": {}, "model_dtype": "torch.float32", "limit": None},
            "versions": {"sums": 1},
            "lm_eval_version": "0",
            "transformers_version": "0",
        }
        (out / "model" / "results_now.json").write_text(json.dumps(found))
        return subprocess.CompletedProcess(command, self.codes.pop(0))


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Harness:
    ours = Harness()
    monkeypatch.setattr("dstools_distill.evaluation.harness.subprocess.run", ours.run)
    return ours


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that evaluates the sample model on one sum, which takes a token."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "exam.jsonl").write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    path = folder / "mini.toml"
    path.write_text(RECIPE.format(sample=SAMPLE))
    return path


def scores(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    (stage,) = json.loads(result.stdout)["stages"]
    found: dict[str, Any] = stage["report"]["lm_eval"]
    return found


def test_a_second_call_of_the_harness_finds_the_report_of_the_first(
    recipe: Path, lm_eval: Harness
) -> None:
    lm_eval.codes = [0, 0]
    command = ["eval", str(recipe), "--lm-eval", "sums", "--json"]
    first = scores(dstools(*command))
    assert first["tasks"] == {"sums": {"exact_match,none": 0.51}}
    assert scores(dstools(*command)) == first
    assert lm_eval.tasks == ["sums"]  # one process for both
    other = scores(dstools("eval", recipe, "--lm-eval", "sums,gpqa", "--json"))
    assert other["tasks"] == {"sums": {"exact_match,none": 0.52}}
    assert lm_eval.tasks == ["sums", "sums,gpqa"]


def test_a_failed_call_of_the_harness_can_be_tried_again(recipe: Path, lm_eval: Harness) -> None:
    lm_eval.codes = [1, 0]
    command = ["eval", str(recipe), "--lm-eval", "tasks/mine.yaml"]
    error, hint = refused(dstools(*command))
    assert "lm_eval ended with code 1" in error
    assert "tasks and data" in hint
    out = recipe.with_suffix("")
    assert [path.suffix for path in out.glob("lm-eval-*mine.yaml*")] == [".incomplete"]
    result = dstools(*command)
    assert result.exit_code == 0, result.output
    assert "sums" in result.stdout
    assert lm_eval.found_there == [False, False]  # what was left was removed first
    (done,) = out.glob("lm-eval-*mine.yaml*")
    assert sorted(path.name for path in done.iterdir()) == ["lm-eval.json", "model"]
    assert str(done) in result.stdout
