"""Tests of encoding: fastokens runs where it gives the ids of tokenizers, and nowhere else."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from dstools_distill.tokens import encoding
from dstools_distill.tokens.encoding import encoder, is_fast

NAMES = ["deepseek", "qwen2.5", "qwen3", "llama3", "smollm2", "sample-v3"]
HELD_OUT = Path(__file__).parents[2] / "data" / "sample-v3-heldout.jsonl"


def traces() -> list[str]:
    """Questions and answers as the presets' teacher writes them, and awkward texts around them."""
    rows = [json.loads(line) for line in HELD_OUT.read_text().splitlines()[:100]]
    texts = [message["content"] for row in rows for message in row["messages"]]
    return [*texts, *(f"{text}{odd}{text}" for text in texts[:4] for odd in encoding.AWKWARD)]


@pytest.mark.parametrize("name", NAMES)
def test_both_give_the_same_ids_for_the_tokenizers_of_all_families(
    name: str, tokenizer_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    backend = tokenizer_of(name).backend_tokenizer
    texts = traces()
    assert is_fast(backend, texts[:20])
    assert encoder(backend, fast=True)(texts) == encoder(backend, fast=False)(texts)
    assert not caplog.records


def test_a_tokenizer_that_fastokens_does_not_know_is_left_to_tokenizers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not is_fast(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), ["a"])
    [record] = caplog.records
    assert "tokenizers encodes, as fastokens does not: " in record.getMessage()


def test_a_difference_in_any_text_of_the_run_leaves_it_to_tokenizers(
    tokenizer_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = tokenizer_of("sample-v3").backend_tokenizer

    def wrong(backend: Any, *, fast: bool) -> encoding.Encode:
        right = encoder(backend, fast=False)
        return lambda texts: [
            [*ids, 7] if fast and text == "4+4" else ids
            for text, ids in zip(texts, right(texts), strict=True)
        ]

    monkeypatch.setattr(encoding, "encoder", wrong)
    assert is_fast(backend, ["4+3"])
    assert not is_fast(backend, ["4+3", "4+4"])
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("as fastokens gives other ids for '4+4'")


def test_without_fastokens_tokenizers_encodes_without_a_word(
    tokenizer_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "find_spec", lambda name: None)
    assert not is_fast(tokenizer_of("sample-v3").backend_tokenizer, [])
    assert not caplog.records
