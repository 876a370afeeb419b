"""The text that a model runs on: its options, and what running a model needs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dstools.options import Command
from dstools.text import TextOptions, read_text, require_torch, text_options
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.errors import DstoolsError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": " the of in to and for is be on that"}\n' * 9)
    return path


def test_a_command_gets_the_options_of_a_text_as_one_record() -> None:
    records: list[TextOptions] = []

    @click.command(cls=Command)
    @text_options("Text")
    def command(text: TextOptions) -> None:
        records.append(text)

    for words in ([], ["--samples", "3", "--seq-len", "5", "--seed", "7", "--ram", "1MB"]):
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, result.output
    assert records == [
        TextOptions(samples=None, seq_len=None, seed=0, ram_bytes=4 * 10**9, device="cpu"),
        TextOptions(samples=3, seq_len=5, seed=7, ram_bytes=10**6, device="cpu"),
    ]


def test_a_text_is_read_with_the_tokenizer_of_the_checkpoint(
    data: Path, checkpoint: Callable[..., Path]
) -> None:
    with open_checkpoint(checkpoint("tiny-v2-lite")) as opened:
        corpus = read_text(data, require_sound(opened), TextOptions(2, 8, 1, 0, "cpu"))
    assert corpus.ids.shape == (2, 8)
    assert (corpus.name, corpus.seed) == ("data.jsonl", 1)
    assert corpus.ids.max() < 1024  # rows of its embedding


@pytest.mark.parametrize(
    ("kind", "seq_len"),
    [("tiny-v2-lite", 2048), ("tiny-v32", 16)],  # index_topk
)
def test_without_options_the_text_gives_as_many_samples_of_the_models_length_as_it_has(
    kind: str, seq_len: int, data: Path, checkpoint: Callable[..., Path], capsys: Any
) -> None:
    data.write_text('{"text": " the of in to and for is be on that"}\n' * 500)  # 5000 tokens
    with open_checkpoint(checkpoint(kind)) as opened:
        corpus = read_text(data, require_sound(opened), TextOptions(None, None, 1, 0, "cpu"))
    assert corpus.ids.shape == (5000 // seq_len, seq_len)
    assert capsys.readouterr().err == (
        f"note: {data} holds 5,000 tokens: {5000 // seq_len} samples of {seq_len} are taken, "
        "fewer than 512\n"
    )


def test_less_than_one_sample_is_refused_with_a_length_that_would_do(
    data: Path, checkpoint: Callable[..., Path]
) -> None:
    with open_checkpoint(checkpoint("tiny-v2-lite")) as opened:
        inventory = require_sound(opened)
        with pytest.raises(
            DstoolsError, match="holds 90 tokens; 1 of --samples and 2048"
        ) as caught:
            read_text(data, inventory, TextOptions(None, None, 1, 0, "cpu"))
        option, length = caught.value.hint.split()[:2]
        assert option == "--seq-len"
        corpus = read_text(data, inventory, TextOptions(None, int(length), 1, 0, "cpu"))
    assert corpus.ids.shape == (1, 90)


def test_an_explicit_number_of_samples_is_a_demand(
    data: Path, checkpoint: Callable[..., Path]
) -> None:
    with open_checkpoint(checkpoint("tiny-v2-lite")) as opened:
        inventory = require_sound(opened)
        with pytest.raises(
            DstoolsError, match="holds 90 tokens; 10 of --samples and 10 of --seq-len take 100"
        ) as e:
            read_text(data, inventory, TextOptions(10, 10, 1, 0, "cpu"))
        assert e.value.hint == "--samples 9 would do, or add text"
        read_text(data, inventory, TextOptions(9, 10, 1, 0, "cpu"))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    require_torch("cpu")
    with pytest.raises(DstoolsError, match="--device cuda: torch finds no CUDA device"):
        require_torch("cuda")


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
