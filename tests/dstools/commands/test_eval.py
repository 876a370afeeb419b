"""`dstools eval`: what it prints, what it keeps and where, and what it refuses."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools_converters.errors import DstoolsError
from dstools_converters.layerwise import corpus

Checkpoint = Callable[..., Path]
# words whose tokens, a space before them, lie within the 1,024 rows of a tiny model's embedding
WORDS = "the of in to and for is be on that as an with it you he or are at by was from not this we"
SHORT = ("--samples", "4", "--seq-len", "24", "--workers", "1")


def dstools(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def one_error(result: Result) -> tuple[str, str]:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "held-out.jsonl"
    words = WORDS.split()
    texts = (" " + " ".join(words[n:] + words[:n]) for n in range(len(words)))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """To load 128,000 tokens takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "load_tokenizer", functools.cache(corpus.load_tokenizer))
        yield


@pytest.fixture(scope="module")
def made(tiny_aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-aligned as `dstools quantize` wrote it."""
    out = tmp_path_factory.mktemp("eval") / "tiny-fp8"
    assert dstools("quantize", tiny_aligned, out).exit_code == 0
    return out


@pytest.fixture
def model(made: Path) -> Path:
    """The same, not evaluated yet."""
    (made / "eval.json").unlink(missing_ok=True)
    return made


def test_the_json_printed_and_the_one_kept_are_the_same(
    model: Path, tiny_aligned: Path, data: Path
) -> None:
    before = {path.name for path in model.iterdir()}
    result = dstools("eval", model, "--data", data, "--against", tiny_aligned, *SHORT, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((model / "eval.json").read_text()) == found
    assert {path.name for path in model.iterdir()} == before | {"eval.json"}
    assert result.stderr.splitlines() == [
        f"wrote {model / 'eval.json'}",
        f"hint: dstools report {model}",
    ]
    assert found["tool"].startswith("dstools ")
    assert (found["model"], found["against"]) == ("tiny-fp8", tiny_aligned.name)
    assert found["data"]["name"] == "held-out.jsonl"
    assert (found["data"]["samples"], found["data"]["seq_len"]) == (4, 24)
    assert found["tokens"] == 4 * 23


def test_report_reads_what_is_kept(model: Path, tiny_aligned: Path, data: Path) -> None:
    for against in ([], ["--against", tiny_aligned]):
        assert dstools("eval", model, "--data", data, *against, *SHORT).exit_code == 0
        found = json.loads((model / "eval.json").read_text())
        result = dstools("report", model)
        assert result.exit_code == 0, result.output
        assert f"{found['perplexity']:,.1f}" in result.stdout


def test_a_person_gets_the_figures_the_roles_and_the_worst_layers(
    model: Path, tiny_aligned: Path, data: Path
) -> None:
    args = ["eval", model, "--data", data, "--against", tiny_aligned, *SHORT]
    found = json.loads(dstools(*args, "--json").stdout)
    text = dstools(*args).stdout
    for figure in (
        f"tiny-fp8 against {tiny_aligned.name}\n",
        "held-out.jsonl: 4 samples of 24, 92 tokens predicted\n",
        f"{found['perplexity']:.6g}, of the reference {found['perplexity_against']:.6g}\n",
        f"{found['kl_mean']:.4g} nats a token; 99 % below {found['kl_p99']:.4g}, "
        f"largest {found['kl_max']:.4g}\n",
        f"{found['top1_agreement']:.3%}\n",
    ):
        assert figure in text
    _, _, tables = text.partition("output error by role\n")
    roles, _, layers = tables.partition("worst layers\n")
    errors: dict[str, list[float]] = {}
    for entry in found["output_error"]:
        errors.setdefault(entry["role"], []).append(entry["error"])
    lines = [line.split() for line in roles.splitlines()[:-1]]
    assert {line[2] for line in lines} == errors.keys()
    for mean, worst, role, *_ in lines:
        assert mean == f"{sum(errors[role]) / len(errors[role]):.4%}"
        assert worst == f"{max(errors[role]):.4%}"
    assert [float(line[0][:-1]) for line in lines] == sorted(
        (float(line[0][:-1]) for line in lines), reverse=True
    )
    assert len(layers.splitlines()) == 3


def test_without_a_reference_there_is_a_perplexity_and_no_more(model: Path, data: Path) -> None:
    result = dstools("eval", model, "--data", data, *SHORT)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "model",
        "data",
        "activations",
        "perplexity",
        "activations",
        "perplexity",
    ]


def test_nothing_is_written_into_a_folder_that_dstools_did_not_make(
    tiny_aligned: Path, made: Path, data: Path, tmp_path: Path
) -> None:
    """The source, which has no manifest; the same with somebody else's; a snapshot of the Hub."""
    theirs = Path(shutil.copytree(tiny_aligned, tmp_path / "theirs"))
    theirs.chmod(0o755)
    (theirs / "manifest.json").write_text('{"tool": "another 1.0"}')
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / ("0123abcd" * 5)
    shutil.copytree(made, snapshot)
    for folder in (tiny_aligned, theirs, snapshot):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        result = dstools("eval", folder, "--data", data, *SHORT, "--json")
        assert result.exit_code == 0, result.output
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        assert result.stderr == ""
    assert json.loads(result.stdout)["model"] == "me/tiny"


def test_a_result_of_other_inputs_is_named_before_it_is_replaced(
    model: Path, tiny_aligned: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = ["eval", model, "--data", data, "--against", tiny_aligned, *SHORT]
    kept = model / "eval.json"

    def notes(*args: str | Path) -> list[str]:
        result = dstools(*args)
        assert result.exit_code == 0, result.output
        return [line for line in result.stderr.splitlines() if line.startswith("note: ")]

    assert notes(*compared) == notes(*compared) == []  # the same again
    of = f"of {data.name}, 4 samples of 24"
    (note,) = notes("eval", model, "--data", data, *SHORT)
    end = "will be replaced; copy it now to keep it"
    assert note == f"note: {kept}, {of}, against {tiny_aligned.name}, {end}"
    (note,) = notes("eval", model, "--data", data, *SHORT, "--seed", "1")
    assert note == f"note: {kept}, {of}, without --against, {end}"
    kept.write_text("{")
    (note,) = notes(*compared)
    assert note == f"note: {kept}, which cannot be read, {end}"
    # it is there until the run ends, so that it can be copied
    before = kept.read_bytes()

    def stopped(*args: Any, **options: Any) -> None:
        assert kept.read_bytes() == before
        raise DstoolsError("stopped")

    monkeypatch.setattr("dstools_converters.layerwise.evaluate.evaluate", stopped)
    result = dstools("eval", model, "--data", data, *SHORT)
    assert result.exit_code == 1
    assert end in result.stderr
    assert kept.read_bytes() == before


def test_hidden_states_spill_into_tmpdir_and_leave_nothing_there(
    model: Path, tiny_aligned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["eval", model, "--data", data, "--against", tiny_aligned, *SHORT, "--json"]
    in_memory = dstools(*args).stdout
    spills = tmp_path / "spills"
    spills.mkdir()
    monkeypatch.setenv("TMPDIR", str(spills))
    monkeypatch.setattr("tempfile.tempdir", None)  # which is read once
    opened: list[str] = []
    original = os.open

    def spy(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return original(path, *rest, **more)

    monkeypatch.setattr(os, "open", spy)
    assert dstools(*args, "--ram", "0").stdout == in_memory
    assert any(path.startswith(f"{spills}/dstools-eval-") for path in opened)
    assert list(spills.iterdir()) == []


@pytest.mark.parametrize(
    ("activations", "which"), [("fp8", "with FP8 activations"), ("none", "of the weights alone")]
)
def test_max_kl_exits_3_past_the_bound_and_keeps_the_result(
    activations: str, which: str, model: Path, tiny_aligned: Path, data: Path
) -> None:
    args = ["--data", data, "--against", tiny_aligned, *SHORT, "--activations", activations]
    assert dstools("eval", model, *args, "--max-kl", 10).exit_code == 0
    result = dstools("eval", model, *args, "--max-kl", 1e-9)
    assert result.exit_code == 3
    kl = json.loads((model / "eval.json").read_text())["kl_mean"]
    error = f"error: the mean KL {which} is {kl:.3g} nats a token, more than 1e-09"
    assert result.stderr.splitlines()[-1] == error


def test_max_kl_judges_the_figure_that_activations_names(
    model: Path, tiny_aligned: Path, data: Path
) -> None:
    """The bound is between the two; FP8 activations are the default."""
    args = ["--data", data, "--against", tiny_aligned, *SHORT]
    report = json.loads(dstools("eval", model, *args, "--json").stdout)
    other = report["other_activations"]
    assert (report["activations"], other["activations"]) == ("fp8", "none")
    assert report["kl_mean"] > other["kl_mean"]
    args += ["--max-kl", (report["kl_mean"] + other["kl_mean"]) / 2]
    for more, code in (([], 3), (["--activations", "fp8"], 3), (["--activations", "none"], 0)):
        result = dstools("eval", model, *args, *more)
        assert result.exit_code == code
        for figures in (report, other):
            assert f"{figures['kl_mean']:.4g} nats a token; 99 % below" in result.stdout
            assert f"{figures['perplexity']:.6g}" in result.stdout
        first = next(x for x in result.stdout.splitlines() if x.startswith("activations"))
        assert first.split()[1] == ("fp8:" if code else "none:")


def test_a_bf16_model_has_one_figure_and_no_activations_to_round(
    tiny_aligned: Path, data: Path
) -> None:
    args = ["eval", tiny_aligned, "--data", data, "--against", tiny_aligned, *SHORT]
    for more in ([], ["--activations", "none"]):
        result = dstools(*args, *more, "--max-kl", 0)
        assert result.exit_code == 0, result.output
        assert "activations" not in result.stdout
        assert "KL                0 nats a token" in result.stdout
    error, hint = one_error(dstools(*args, "--activations", "fp8"))
    assert error == f"{tiny_aligned}: has no FP8 weights, so no engine rounds its activations"
    assert hint.startswith("leave out --activations")


@pytest.mark.parametrize(
    "args", [["M"], ["M", "--data", "D", "--max-kl", "1"], ["M", "--data", "D", "--seq-len", "1"]]
)
def test_what_is_misused_exits_2(args: list[str]) -> None:
    assert dstools("eval", *args).exit_code == 2


def test_what_cannot_be_evaluated_is_one_error_and_one_hint(
    model: Path, checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    error, _ = one_error(dstools("eval", model, "--data", data))
    assert error.startswith(f"{data}: holds ")  # too few tokens for the defaults
    error, _ = one_error(dstools("eval", model, "--data", tmp_path / "none", *SHORT))
    assert error == f"{tmp_path / 'none'}: no such file"
    error, hint = one_error(dstools("eval", tmp_path / "none", "--data", data, *SHORT))
    assert error == f"{tmp_path / 'none'}: no such folder"
    other = checkpoint("tiny-v2")
    error, hint = one_error(dstools("eval", model, "--data", data, "--against", other, *SHORT))
    assert f"{model / 'config.json'}: model_type is 'deepseek_v3'" in error
    assert hint == "only checkpoints of one architecture can be compared"
    assert not (model / "eval.json").exists()
    bare = Path(shutil.copytree(model, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").unlink()
    error, _ = one_error(dstools("eval", bare, "--data", data, *SHORT))
    assert error == f"{bare}: has no tokenizer"


@pytest.mark.parametrize("is_reference", [False, True])
def test_a_tied_model_with_another_head_is_one_error(
    is_reference: bool, model: Path, data: Path, tmp_path: Path
) -> None:
    tied = Path(shutil.copytree(model, tmp_path / "tied"))
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    words = (model, "--against", tied) if is_reference else (tied,)
    error, hint = one_error(dstools("eval", *words, "--data", data, *SHORT))
    assert error.startswith(f"{tied}/model-")
    assert "lm_head.weight: differs from" in error
    assert hint.startswith("set tie_word_embeddings to false in config.json to use lm_head.weight")
