import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from dstools import machine
from dstools.cli import main
from dstools_converters.export.folder import require_export

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *(str(arg) for arg in args)])


def test_a_report_says_what_was_written_and_what_to_run_next(
    tmp_path: Path, exported_sample: Path, digest: Callable[[Path], dict[str, str]]
) -> None:
    """And what was written is what all other tests of exports look at."""
    result = run(SAMPLE, tmp_path / "out", "--onnx", "--context", "512")
    assert result.exit_code == 0, result.output
    assert "4 rows of 512 tokens" in result.stderr
    assert "98 tensors (4 copied as they are, 88 converted, 6 made here)" in result.stdout
    assert "hint: dstools generate" in result.stderr
    assert len(result.stderr.splitlines()) == 2  # nothing of torch's
    assert digest(tmp_path / "out") == digest(exported_sample)


def test_what_does_not_run_here_is_not_a_hint(tmp_path: Path) -> None:
    result = run(SAMPLE, tmp_path / "out", "--onnx", "--context", "256", "--dtype", "bfloat16")
    assert "98 tensors (88 copied as they are, 4 converted, 6 made here)" in result.stdout
    assert "dstools generate" not in result.stderr


def test_json_has_the_figures(tmp_path: Path) -> None:
    result = run(SAMPLE, tmp_path / "out", "--onnx", "--context", "128", "--no-mtp", "--json")
    report = json.loads(result.stdout)
    assert report["graphs"] == ["model.onnx"]
    assert report["pool"]["num_blocks"] == 8
    assert sum(report["tensors"].values()) == 75


def test_the_config_of_genai_names_the_tokens_of_the_checkpoint(exported_sample: Path) -> None:
    config = json.loads((exported_sample / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [1]
    assert config["model"]["bos_token_id"] == 0
    batching = config["engine"]["dynamic_batching"]
    assert batching["num_blocks"] == 2 * 4 * 8  # 512 tokens are 8 pages of 64


def test_the_tokenizer_goes_along(exported_sample: Path) -> None:
    written = require_export(exported_sample)
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= written.files.keys()
    assert (exported_sample / "tokenizer.json").read_bytes() == (
        SAMPLE / "tokenizer.json"
    ).read_bytes()


def test_a_pool_that_does_not_fit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = machine.memory()
    monkeypatch.setattr(machine, "memory", lambda: replace(now, available=10**6))
    result = run(SAMPLE, tmp_path / "out", "--onnx", "--context", "512")
    assert result.exit_code == 0
    assert "warning: 1 MB of memory is free here: lower --context" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "say what to write"),
        (["--onnx", "--context", "4096"], 1, "error: --context 4096: the model has 512 positions"),
        (["--onnx", "--tp", "3"], 1, "error: --tp 3: does not divide num_attention_heads, 4"),
        (["--onnx", "--page-size", "16"], 1, "error: --page-size 16: the kernels read pages of 64"),
        (["--onnx", "--tp", "2", "--ep", "4"], 1, "error: --tp 2 --ep 4: they must be equal"),
        (["--onnx", "--dtype", "int8"], 2, "int8"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    result = run(SAMPLE, tmp_path / "out", *options)
    assert result.exit_code == code
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_way_or_inside_the_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "out: exists" in run(SAMPLE, tmp_path / "out", "--onnx").stderr
    source = tmp_path / "source"
    shutil.copytree(SAMPLE, source)
    assert "is inside" in run(source, source / "out", "--onnx").stderr


def test_a_checkpoint_without_mtp_is_exported_without_and_refused_with(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "v2"
    shutil.copytree(checkpoint("tiny-v2"), source)
    source.chmod(0o755)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLE / name, source / name)
    result = run(source, tmp_path / "out", "--onnx", "--mtp")
    assert result.exit_code == 1
    assert "has no MTP layer" in result.stderr
    assert run(source, tmp_path / "out", "--onnx").exit_code == 0
    assert not (tmp_path / "out" / "mtp.onnx").exists()


def test_the_layout_of_deepseek_s_code_is_written_for_some_ranks(tmp_path: Path) -> None:
    result = run(SAMPLE, tmp_path / "out", "--format", "deepseek-inference", "--tp", "2")
    assert result.exit_code == 0, result.output
    written = require_export(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model0-mp2.safetensors", "model1-mp2.safetensors", "export.json"} <= names
    assert names == {"export.json", *written.files}
    assert (written.kind, written.tp) == ("deepseek-inference", 2)
    assert "dstools generate" not in result.stderr
    assert "left out" not in result.stderr


def test_tensors_that_deepseek_s_code_does_not_read_are_named_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(SAMPLE, source)
    tensors = load_file(source / "model.safetensors")
    tensors |= {f"extra.{number}": tensors["model.norm.weight"].clone() for number in range(4)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    result = run(source, tmp_path / "out", "--format", "deepseek-inference")
    assert result.exit_code == 0, result.output
    assert (
        "\nwarning: left out, 4 in all, since DeepSeek's code reads none: extra.0, extra.1, "
        in (f"\n{result.stderr}")
    )
    assert "extra.3" not in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "deepseek-inference", "--context", "9"], "--context is not for --format"),
        (["--format", "deepseek-inference", "--workers", "2"], "--workers is not for --format"),
        (["--format", "deepseek-inference", "--onnx"], "are two exports"),
    ],
)
def test_options_that_change_nothing_are_misuse(
    tmp_path: Path, options: list[str], words: str
) -> None:
    result = run(SAMPLE, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_what_genai_s_builder_writes_takes_no_workers(
    dense_source: Callable[..., Path], tmp_path: Path
) -> None:
    result = run(dense_source("tiny-llama"), tmp_path / "out", "--onnx", "--workers", "2")
    assert result.exit_code == 2
    assert "--workers is not for a model of llama" in result.stderr


def test_a_check_that_the_disk_has_no_room_for_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7.7 MB of BF16, and a twin of it in float32: 20 MB are room for the twin alone."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000_000))
    result = run(SAMPLE, tmp_path / "out", "--onnx", "--dtype", "bfloat16", "--check")
    assert result.exit_code == 1
    assert "out.twin: needs " in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "missing", lambda extra: ["onnx>=1.23"])
    result = run(SAMPLE, tmp_path / "out", "--onnx")
    assert "error: export needs onnx>=1.23" in result.stderr
    assert 'hint: pip install "dstools-llm[export]"' in result.stderr


def test_float16_is_refused_where_states_exceed_it_and_other_dtypes_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SAMPLE, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.shared_experts.down_proj.weight"] *= 2**17  # the states reach 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    how = ("--onnx", "--no-mtp", "--context", "128")
    result = run(folder, tmp_path / "half", *how, "--dtype", "float16")
    assert result.exit_code == 1
    assert "error: layer 1: a number of " in result.stderr
    assert "--dtype bfloat16 or float32" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert run(folder, tmp_path / "whole", *how).exit_code == 0


def test_float16_that_was_not_judged_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 20, 1 << 20, None))
    how = ("--onnx", "--no-mtp", "--context", "128", "--dtype", "float16")
    result = run(SAMPLE, tmp_path / "out", *how)
    assert result.exit_code == 0
    assert "warning: float16 was not judged: " in result.stderr
    assert require_export(tmp_path / "out").notes[0].startswith("float16 was not judged: ")
