"""A tokenizer that no output can be used with is an error by its file, and by the token."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.sidefiles.tokenizer import (
    ADDED_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_tokenizer,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def bpe(*added: object, **vocabulary: object) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": list(added)}


def token(number: object, content: str) -> dict[str, object]:
    return {"id": number, "content": content, "special": True}


@pytest.mark.parametrize("name", [TOKENIZER, TOKENIZER_CONFIG])
@pytest.mark.parametrize(
    ("content", "code", "why"),
    [
        (b"", "broken-json", "is empty"),
        (b'{"a": ', "broken-json", "is not valid JSON: Expecting value: line 1 column 7"),
        (b"\xff", "broken-json", "is not valid JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[]", "broken-json", "is not a JSON object"),
        (b"[" * 100_000, "broken-json", "is not valid JSON"),
        (POINTER, "lfs-pointer", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_loaders_cannot_read_is_an_error(
    name: str, content: bytes, code: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    (finding,) = check_tokenizer(tmp_path, 10)
    assert (finding.level, finding.code, finding.where) == ("error", code, name)
    assert finding.message.startswith(why)
    assert finding.hint


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_is_not_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / TOKENIZER)
    (finding,) = check_tokenizer(tmp_path, 10)
    assert finding.message == "is not a regular file of 64 MiB or less"


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (bpe(a=0, b=10), "the id 10 of 'b' is beyond the 10 rows of the embedding"),
        (bpe(a=12, b=11, c=9), "the id 11 of 'b' is beyond the 10 rows of the embedding, as 1 "),
        (bpe(token(10, "<\x1b>"), a=0), "the id 10 of '<\\x1b>' is beyond the 10 rows"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.5]] * 11}}, "the id 10 of '10' is bey"),
        (bpe(a=-1), "the id of 'a' is -1, not 0 or more"),
        (bpe(a="\x1b"), "the id of 'a' is '\\x1b', not 0 or more"),
        (bpe(token(None, "a")), "the id of 'a' is None, not 0 or more"),
        (bpe(5, a=1), "has an added token without content"),
        ({}, "has no model with a vocabulary"),
        ({"model": {"vocab": 5}}, "has no model with a vocabulary"),
    ],
)
def test_ids_that_the_model_has_no_row_for_are_an_error(
    tokenizer: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / TOKENIZER).write_text(json.dumps(tokenizer))
    (finding,) = check_tokenizer(tmp_path, 10)
    assert (finding.level, finding.where) == ("error", TOKENIZER)
    assert finding.message.startswith(why)
    assert finding.message.isprintable()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (ADDED_TOKENS, {"<a>": 9, "<x\x1b>": 10}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"10": token(0, "<x\x1b>"), "9": {}, "8": 5}}),
    ],
)
def test_added_tokens_that_the_model_has_no_row_for_are_an_error_once(
    name: str, content: object, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    (finding,) = check_tokenizer(tmp_path, 10)
    assert (finding.level, finding.code, finding.where) == ("error", "token-ids", name)
    assert finding.message == "the id 10 of '<x\\x1b>' is beyond the 10 rows of the embedding"
    (tmp_path / TOKENIZER).write_text(json.dumps(bpe(token(10, "<x\x1b>"), a=0)))
    (finding,) = check_tokenizer(tmp_path, 10)
    assert finding.where == TOKENIZER
    assert not list(check_tokenizer(tmp_path, 11))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (ADDED_TOKENS, {"a": "5"}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"x": token(0, "a")}}),
    ],
)
def test_an_added_token_s_id_that_is_not_a_number_is_an_error(
    name: str, content: object, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    (finding,) = check_tokenizer(tmp_path, 10)
    assert (finding.level, finding.where) == ("error", name)
    assert finding.message.startswith("the id of 'a' is ")


@pytest.mark.parametrize("rows", [10, 1000, None, "10", -1, 0])
def test_a_sound_tokenizer_has_no_finding(rows: object, tmp_path: Path) -> None:
    assert not list(check_tokenizer(tmp_path, rows))
    (tmp_path / TOKENIZER).write_text(json.dumps(bpe(token(9, "<end>"), a=0, b=8)))
    (tmp_path / TOKENIZER_CONFIG).write_text("{}")
    assert not list(check_tokenizer(tmp_path, rows))
