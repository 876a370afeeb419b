"""Tests of encoding: fastokens runs where it gives the ids of tokenizers, and nowhere else."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

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


def small_bpe(**parts: Any) -> Tokenizer:
    """A tokenizer of all bytes, with a normalizer, a pre-tokenizer or added tokens of its own."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(sorted(alphabet))}, []))
    made.pre_tokenizer = parts.get(
        "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    if "normalizer" in parts:
        made.normalizer = parts["normalizer"]
    made.add_tokens(parts.get("added", []))
    return made


@pytest.mark.parametrize(
    "backend",
    [
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        Tokenizer(models.Unigram([("a", 0.0)], 0)),
        small_bpe(normalizer=normalizers.NFKC()),
        small_bpe(normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
        small_bpe(pre_tokenizer=pre_tokenizers.Metaspace()),
    ],
    ids=["word level", "unigram", "NFKC", "accents", "metaspace"],
)
def test_a_tokenizer_that_fastokens_does_not_know_is_left_to_tokenizers(
    backend: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_fast(backend, ["a"])
    [record] = caplog.records
    assert "tokenizers encodes, as fastokens does not: " in record.getMessage()


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_of_all_kinds_are_found_where_tokenizers_finds_them(flag: str) -> None:
    tokens = [
        AddedToken("<X>", **{flag: True}),
        AddedToken("<X>y"),
        AddedToken("no", **{flag: True}),
    ]
    backend = small_bpe(added=tokens, normalizer=normalizers.Lowercase())
    texts = ["a <X> b", "a<X>y", "<x>", "no, know NO no", "\n<X>\n<X><X>y "]
    assert is_fast(backend, texts)
    assert encoder(backend, fast=True)(texts) == encoder(backend, fast=False)(texts)


# SmolLM2's vocabulary has no token for some bytes; an alternative in a group is matched on a stack.
AFTER_THE_PROBE = {
    "a byte that no token has": (None, "private \U00093456 character"),
    "a text beyond the stack": (r"(?:x|b)+|[^xb]+", "xb" * 300_000),
}


@pytest.mark.parametrize("kind", AFTER_THE_PROBE)
def test_texts_at_which_fastokens_fails_are_encoded_by_tokenizers(
    kind: str, tokenizer_of: Callable[..., Any]
) -> None:
    pattern, text = AFTER_THE_PROBE[kind]
    if pattern is None:
        backend = tokenizer_of("smollm2").backend_tokenizer
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend = small_bpe(pre_tokenizer=pre_tokenizers.Sequence([split, bytes_of]))
    assert is_fast(backend, [])
    with pytest.raises(ValueError, match=r"no token|stack limit"):
        encoding._fastokens(backend)([text])
    assert encoder(backend, fast=True)(["4+4", text]) == encoder(backend, fast=False)(["4+4", text])


def test_a_panic_of_fastokens_leaves_it_to_tokenizers_and_ctrl_c_does_not(
    tokenizer_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = tokenizer_of("sample-v3").backend_tokenizer
    raised: list[BaseException] = [type("PanicException", (BaseException,), {})("index 7")]

    def failing(texts: list[str]) -> list[list[int]]:
        raise raised[0]

    monkeypatch.setattr(encoding, "_fastokens", lambda backend: failing)
    assert encoder(backend, fast=True)(["4+4"]) == encoder(backend, fast=False)(["4+4"])
    assert not is_fast(backend, [])
    [record] = caplog.records
    assert record.getMessage().endswith("tokenizers encodes, as fastokens does not: index 7")
    raised[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        encoder(backend, fast=True)(["4+4"])
    with pytest.raises(KeyboardInterrupt):
        is_fast(backend, [])


def test_a_difference_in_any_text_of_the_run_leaves_it_to_tokenizers(
    tokenizer_of: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = tokenizer_of("sample-v3").backend_tokenizer

    def wrong(backend: Any) -> encoding.Encode:
        right = encoder(backend, fast=False)
        return lambda texts: [
            [*ids, 7] if text == "4+4" else ids
            for text, ids in zip(texts, right(texts), strict=True)
        ]

    monkeypatch.setattr(encoding, "_fastokens", wrong)
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
