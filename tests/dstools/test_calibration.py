"""`quantize --calibrate`: the text it takes, its messages, and what it leaves on failure."""

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dstools.calibration import require_length
from dstools.cli import main
from dstools.text import TextOptions
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError
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
    """The error and the hint, which must be all there is after warnings and their hints."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    *before, error, hint = result.stderr.splitlines()
    assert all(line.startswith(("warning: ", "hint: ")) for line in before)
    assert not before or before[0].startswith("warning: ")
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


@pytest.mark.parametrize("kind", ["tiny-aligned", "tiny-v2-lite", "tiny-llama", "tiny-qwen3"])
def test_scales_for_a_cache_of_mla_are_a_warning_as_no_engine_loads_them(
    kind: str, checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    source = tmp_path / kind
    shutil.copytree(checkpoint(kind), source)
    source.chmod(0o755)
    has_mla = (source / "tokenizer.json").exists()
    if not has_mla:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint("tiny-aligned") / name, source / name)
    result = calibrate(source, tmp_path / "out", data, "--kv-cache", "fp8", "--dry-run")
    assert result.exit_code == 0, result.output
    assert ("warning: --kv-cache fp8: vLLM 0.32" in result.stderr) == has_mla


BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "data.jsonl: is empty"),
    "not UTF-8": (
        LINE.encode() + b'{"text": "\xff"}\n',
        "line 2: byte 55 of the file is not UTF-8",
    ),
    "a broken line": (LINE + '{"text": "a\n', "line 2: is not valid JSON"),
    "no text": (LINE + '{"words": "a"}\n', "line 2: has neither text nor messages, but words"),
    "too few tokens": (LINE * 3, "holds 48 tokens; 8 of --samples and 40 of --seq-len take 320"),
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
    assert "layer 1: 8 of 8 experts saw fewer than 321 tokens: expert 0 " in error
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
    assert f"was begun with --calibrate {data.name} " in error
    data.write_bytes(good)
    for more, named in (
        (["--seed", "1"], "with --seed 0"),
        (["--samples", "7"], "with --samples "),
        (["--method", "mse"], "with --method gptq"),
        (["--kv-cache", "fp8"], "without --kv-cache"),
    ):
        error, _ = one_error(calibrate(source, out, data, *more))
        assert f"out.incomplete: was begun {named}" in error
        assert " and " not in error
    assert journal.read_bytes() == before
    assert calibrate(source, out, data).exit_code == 0
    assert not journal.parent.exists()


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


@pytest.mark.parametrize(
    ("kind", "seq_len", "error"),
    [
        ("tiny-llama", 4097, "--seq-len 4097: config.json limits the model to 4096 tokens"),
        ("tiny-v32", 17, "--seq-len 17: config.json limits the model to 16 tokens"),  # index_topk
        ("tiny", 2, "--seq-len 2: is too short for 1 MTP layers"),
    ],
)
def test_a_sample_that_the_model_cannot_run_on_is_refused(
    kind: str, seq_len: int, error: str, checkpoint: Checkpoint
) -> None:
    with open_checkpoint(checkpoint(kind)) as opened:
        inventory = require_sound(opened)
        with pytest.raises(DstoolsError) as caught:
            require_length(inventory, TextOptions(None, seq_len, 0, 0, "cpu"))
        assert str(caught.value) == error
        allowed = int(caught.value.hint.split()[1])
        assert abs(allowed - seq_len) == 1
        require_length(inventory, TextOptions(None, allowed, 0, 0, "cpu"))


def test_a_calibration_records_the_cpu_that_its_sums_depend_on(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    import torch

    assert calibrate(tiny, tmp_path / "out", data).exit_code == 0
    recorded = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert recorded["cpu"].split(" ")[0] == torch.backends.cpu.get_cpu_capability()
    assert recorded["versions"].keys() == {"torch", "transformers", "tokenizers"}
