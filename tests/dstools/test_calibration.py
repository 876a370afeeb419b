"""quantize --calibrate on the command line: what data it takes, what it says, what is left behind."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dstools.cli import main
from dstools_converters.layerwise import corpus

Checkpoint = Callable[..., Path]
LINE = '{"text": " a b c d e f g h i j k l m n o p"}\n'  # 16 tokens that `tiny` has rows for


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Loading 128,000 tokens takes a second; threads of a busy machine wait for each other."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "load_tokenizer", functools.cache(corpus.load_tokenizer))
        yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(LINE * 30)
    return path


def quantize(*args: str | Path) -> Result:
    words = ["quantize", *map(str, args), "--workers", "1", "--no-fsync"]
    return CliRunner().invoke(main, words)


def calibrate(source: Path, out: Path, data: Path, *more: str | Path) -> Result:
    return quantize(source, out, "--calibrate", data, "--samples", "8", "--seq-len", "40", *more)


def one_error(result: Result, code: int = 1) -> tuple[str, str]:
    """The error and the hint, which must be all there is."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error[7:], hint[6:]


def test_it_calibrates_and_names_the_next_command(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    source, out = checkpoint("tiny-v2-lite"), tmp_path / "out"
    result = calibrate(source, out, data, "--kv-cache", "fp8", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tensors"]["gptq"] > 40
    assert result.stderr.splitlines()[-1] == f"hint: dstools verify {out} --source {source}"
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["method"] == "gptq"
    assert calibration["tokens"] == 320
    assert calibration["data"]["name"] == "data.jsonl"
    assert (calibration["device"], calibration["threads"]) == ("cpu", 1)
    checked = CliRunner().invoke(main, ["verify", str(out), "--source", str(source)])
    assert checked.exit_code == 0, checked.output


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "data.jsonl: is empty"),
    "not UTF-8": (
        LINE.encode() + b'{"text": "\xff"}\n',
        "line 2: byte 55 of the file is not UTF-8",
    ),
    "a broken line": (LINE + '{"text": "a\n', "line 2: is no JSON"),
    "no text": (LINE + '{"words": "a"}\n', "line 2: has neither of the keys text and messages"),
    "beyond the vocabulary": (LINE + '{"text": "the cat"}\n', "line 2: token 1805 (the) is beyond"),
    "too few tokens": (LINE * 3, "holds 48 tokens; 8 samples of 40 take 320"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_is_one_error_that_names_file_and_line_and_leaves_nothing(
    what: str, checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    content, wanted = BAD[what]
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    error, _ = one_error(calibrate(checkpoint("tiny-v2-lite"), tmp_path / "out", data))
    assert error.startswith(str(data))
    assert wanted in error
    assert list(tmp_path.iterdir()) == [data]


def test_a_missing_file_is_one_error_by_its_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    error, _ = one_error(
        calibrate(checkpoint("tiny-v2-lite"), tmp_path / "out", tmp_path / "none.jsonl")
    )
    assert str(tmp_path / "none.jsonl") in error


def test_coverage_that_falls_short_exits_with_3_and_a_lower_one_goes_on(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    """Then bad data loses nothing of the layer that is finished, either."""
    source, out = checkpoint("tiny-v2-lite"), tmp_path / "out"
    result = calibrate(source, out, data, "--min-coverage", "321")
    error, hint = one_error(result, 3)
    assert "model.layers.1.mlp.experts: 8 of 8 saw fewer than 321 tokens: expert 0 " in error
    assert "--min-coverage" in hint
    assert not out.exists()
    journal = tmp_path / "out.incomplete" / "journal.jsonl"
    before = journal.read_bytes()
    assert b'"layer": 0' in before
    good = data.read_bytes()
    data.write_bytes(b"\xff")
    one_error(calibrate(source, out, data))
    data.write_bytes(good.replace(b"a b", b"b a"))
    error, _ = one_error(calibrate(source, out, data))
    assert "was begun from another source" in error
    data.write_bytes(good)
    for more in (["--seed", "1"], ["--samples", "7"], ["--method", "mse"], ["--kv-cache", "fp8"]):
        error, _ = one_error(calibrate(source, out, data, *more))
        assert "was begun from another source" in error
    assert journal.read_bytes() == before
    assert calibrate(source, out, data).exit_code == 0
    assert not journal.parent.exists()


@pytest.mark.parametrize(
    "options",
    [["--method", "gptq"], ["--method", "mse"], ["--min-coverage", "1"], ["--kv-cache", "fp8"]],
    ids=" ".join,
)
def test_what_needs_data_is_refused_without(options: list[str], tiny: Path, tmp_path: Path) -> None:
    result = quantize(tiny, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "--calibrate" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_amax_needs_no_data(tiny: Path, tmp_path: Path) -> None:
    assert quantize(tiny, tmp_path / "out", "--method", "amax").exit_code == 0
    assert not (tmp_path / "out" / "calibration.json").exists()


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_torch_it_says_what_to_install(missing: str, tiny: Path, data: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"  # as if it were not installed
        "from dstools.cli import main; main(sys.argv[2:])"
    )
    out = data.with_name("out")
    words = ["quantize", str(tiny), str(out), "--calibrate", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", code, missing, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"error: running a model needs {missing}"
    assert hint == 'hint: pip install "dstools-llm[torch]"'
    assert done.stdout == ""
    assert not out.exists()


def test_a_dry_run_reads_the_data_and_writes_nothing(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    result = calibrate(checkpoint("tiny-v2-lite"), tmp_path / "out", data, "--dry-run")
    assert result.exit_code == 0
    assert "  calibrate (DeepSeek's own)" in result.stdout
    assert list(tmp_path.iterdir()) == [data]


def test_verify_of_what_was_calibrated_imports_no_torch(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    source, out = checkpoint("tiny-v2-lite"), tmp_path / "out"
    assert calibrate(source, out, data).exit_code == 0
    code = (
        "import sys; from dstools.cli import main\n"
        "assert not main(['verify', *sys.argv[1:]], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), "--source", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
