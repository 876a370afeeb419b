"""Pieces of text, joined, are the text of all tokens, and no piece ends inside a character."""

import random
from collections.abc import Callable
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dstools_converters.model.stream import BROKEN, TextStream, decoded
from dstools_converters.model.tokenizer import load_tokenizer

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
TEXT = "Hé 你好\uff0c世界! 👩\u200d💻🎉 naïve ﬁ ½\n\n    x  한국어\t<think>हिन्दी don't . , ? 'm"


@pytest.fixture(scope="module")
def with_byte_fallback() -> Any:
    """A tokenizer as SentencePiece makes them: 256 byte tokens, blanks as \u2581."""
    tokens = [*ascii_letters, *"é.,?'<>!\u2581", "\u2581a", "\u2581\u2581"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {token: 256 + i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    blanks = decoders.Replace("\u2581", " ")
    tokenizer.decoder = decoders.Sequence(
        [blanks, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def tokenizers(with_byte_fallback: Any, checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """Byte-level ones of 320 and of all of DeepSeek's tokens, and one with byte fallback."""
    return {
        "sample-v3": load_tokenizer(SAMPLE),
        "tiny": load_tokenizer(checkpoint("tiny")),
        "byte fallback": with_byte_fallback,
    }


def pieces(tokenizer: Any, ids: list[int], at_once: Callable[[], int] = lambda: 1) -> list[str]:
    """Return what a stream returns for a few tokens at a time, and at the end."""
    stream, found, rest = TextStream(tokenizer), [], list(ids)
    while rest:
        count = at_once()
        found.append(stream.add(rest[:count]))
        del rest[:count]
    return [*found, stream.end()]


@pytest.mark.parametrize("name", ["sample-v3", "tiny", "byte fallback"])
def test_no_piece_of_a_text_of_many_scripts_ends_inside_a_character(
    name: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    found = pieces(tokenizer, ids)
    assert "".join(found) == decoded(tokenizer, ids)
    assert BROKEN not in "".join(found)
    assert len([piece for piece in found if piece]) > 10  # it is a stream
    assert len(ids) > len([piece for piece in found if piece])  # some tokens are parts of one


@pytest.mark.parametrize("name", ["sample-v3", "tiny", "byte fallback"])
def test_pieces_of_any_tokens_join_to_the_text_of_all(
    name: str, tokenizers: dict[str, Any]
) -> None:
    """Also of bytes that are no character, of special tokens and of ids without a token."""
    tokenizer = tokenizers[name]
    source = random.Random(0)
    known = tokenizer.encode(TEXT, add_special_tokens=False)
    vocabulary = len(tokenizer) + 20
    for _ in range(400):
        ids = [
            source.choice(known) if source.random() < 0.5 else source.randrange(vocabulary)
            for _ in range(source.randrange(1, 40))
        ]
        found = pieces(tokenizer, ids, lambda: source.choice([1, 1, 2, 3]))
        assert "".join(found) == decoded(tokenizer, ids), ids


def test_a_run_of_byte_tokens_is_held_until_it_ends(with_byte_fallback: Any) -> None:
    """The decoder writes 4 signs for E4 BD A0 FF, so U+4F60 is not one before the run ends."""
    you, a = [0xE4, 0xBD, 0xA0], with_byte_fallback.convert_tokens_to_ids("a")
    assert pieces(with_byte_fallback, [*you, a]) == ["", "", "", "\u4f60a", ""]
    assert pieces(with_byte_fallback, [*you, 0xFF, a]) == ["", "", "", "", BROKEN * 4 + "a", ""]
    assert pieces(with_byte_fallback, you) == ["", "", "", "\u4f60"]


def test_an_id_without_a_token_changes_nothing_around_it(with_byte_fallback: Any) -> None:
    blank = with_byte_fallback.convert_tokens_to_ids("\u2581a")
    unknown = len(with_byte_fallback) + 5
    assert pieces(with_byte_fallback, [blank, blank, unknown, blank]) == ["a", " a", "", " a", ""]
    assert pieces(with_byte_fallback, [0xC3, unknown, 0xA9]) == ["", "", "", "é"]


def test_only_a_window_of_the_last_tokens_is_decoded_again(
    with_byte_fallback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    decode = with_byte_fallback.decode

    def counted(ids: list[int], **options: Any) -> Any:
        lengths.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(with_byte_fallback, "decode", counted)
    stream = TextStream(with_byte_fallback)
    for token in [256, 257, 0xC3, 0xA8, 258] * 50:
        stream.add([token])
    assert max(lengths) == 4  # the token before, two bytes, the token after


def test_special_tokens_and_blanks_before_punctuation_are_text() -> None:
    tokenizer = load_tokenizer(SAMPLE)
    tokenizer.clean_up_tokenization_spaces = True
    # a tokenizer_config.json may set this, too
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = "<think> 1 . 2\n</think>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert decoded(tokenizer, [*ids, 1]) == text + "<｜end▁of▁sentence｜>"
