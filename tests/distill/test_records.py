"""Tests of records: lines of JSON."""

from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.records import (
    ENDS,
    Reply,
    dump,
    extended,
    how_ended,
    lines,
    message_parts,
    normalised,
    parse,
    prompt_id,
    read,
    reference,
    replies,
    without_end,
    write,
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [{"id": "a", "raw": "ä\n\u2028"}, {"id": "b", "n": 1.5, "none": None}]
    assert write(tmp_path / "r.jsonl", iter(rows)) == 2
    assert list(read(tmp_path / "r.jsonl")) == rows
    assert (tmp_path / "r.jsonl").read_bytes() == b"".join(map(dump, rows))


def test_blank_lines_are_skipped_and_numbers_count_them(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\n{}\n \t\r\n[]")
    assert list(lines(tmp_path / "r.jsonl")) == [(2, b"{}\n"), (4, b"[]")]


def test_a_byte_order_mark_is_ignored_in_the_first_line_only() -> None:
    line = b'\xef\xbb\xbf{"a": 1}'
    assert parse(line, Path("r"), 1) == {"a": 1}
    with pytest.raises(DstoolsError, match=r"^r: line 2: is not valid JSON"):
        parse(line, Path("r"), 2)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not valid JSON: Expecting property name"),
        (b'{"a": NaN}', "is not valid JSON: NaN"),
        (b'{"a": 1, "a": 2}', "is not valid JSON: has the key a twice"),
        (b'{"a": "\\ud800"}', "is not valid JSON: .*surrogates not allowed"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(DstoolsError, match=f"^r: line 7: {reason}"):
        parse(line, Path("r"), 7)


@pytest.mark.parametrize("line", [b'[{"a": 1}]', b"[\n", b"\xef\xbb\xbf{\r\n"])
def test_a_file_of_json_that_is_not_lines_gets_a_hint_of_its_own(line: bytes) -> None:
    for number, hint in ((1, "one object a line is read"), (2, "fix or remove the line")):
        with pytest.raises(DstoolsError) as caught:
            parse(line, Path("r"), number)
        assert caught.value.hint.startswith(hint)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DstoolsError, match="absent: no such file"):
        list(read(tmp_path / "absent"))
    with pytest.raises(DstoolsError, match="is a folder"):
        list(read(tmp_path))


@pytest.mark.parametrize("fields", [{"split": "train"}, {"a": None, "ö": [1, "}"]}])
def test_a_line_is_extended_as_if_dumped_again(fields: dict[str, Any]) -> None:
    row = {"id": "x", "raw": "so {}}"}
    assert extended(dump(row), fields) == dump(row | fields)


def test_an_id_depends_on_source_role_and_text_but_not_on_white_space() -> None:
    messages = [{"role": "user", "content": " What \n is 1+1?"}]
    assert normalised(messages) == [["user", "What is 1+1?"]]
    same = [{"role": "user", "content": "What is 1+1?"}]
    others = [prompt_id(same, "b"), prompt_id([same[0] | {"role": "system"}], "a")]
    assert prompt_id(messages, "a") == prompt_id(same, "a")
    assert prompt_id(same, "a") not in others
    # sha256 of ["a", [["user", "What is 1+1?"]]]
    assert prompt_id(same, "a") == "3bc6adcc1fdd3d37360abf545ff03545"


def test_a_message_may_come_in_parts_with_its_trace_among_them() -> None:
    trace = {"type": "thinking", "thinking": [{"type": "text", "text": "6*7"}]}
    texts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "42."}]
    assert message_parts([trace, *texts]) == ("6*7", "It is 42.")
    assert message_parts([{"type": "thinking", "thinking": "6*7"}]) == ("6*7", "")
    assert message_parts("42") == (None, "42")
    assert message_parts(None) == (None, "")
    cited = [texts[0], {"type": "reference", "reference_ids": [1]}, texts[1]]
    assert message_parts([trace, *cited]) == ("6*7", "It is 42.")
    blank = {"type": "text", "text": "\n"}
    assert message_parts([blank, trace, trace, *texts]) == ("6*76*7", "\nIt is 42.")
    with pytest.raises(ValueError, match="has a part that thinks after a part of the answer"):
        message_parts([trace, texts[0], trace, texts[1]])
    for content in (42, ["42"], [{"type": "image_url"}], [{"type": "text", "text": None}]):
        with pytest.raises(ValueError, match="is not a string"):
            message_parts(content)


@pytest.mark.parametrize(
    ("reason", "ended"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("STOP", "stop"),
        ("FINISH_REASON_STOP", "stop"),
        ("end_turn", "stop"),
        ("MAX_TOKENS", "length"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("Paused", "Paused"),
        (None, "unknown"),
        ("", "unknown"),
    ],
)
def test_servers_have_many_words_for_an_end(reason: str | None, ended: str) -> None:
    assert how_ended(reason) == ended


@pytest.mark.parametrize("reason", [None, "", "unknown"])
def test_where_nobody_says_how_a_text_ended_an_answer_shows_it(reason: str | None) -> None:
    assert how_ended(reason) == how_ended(reason, " \n") == "unknown"
    assert how_ended(reason, "41") == "stop"
    assert how_ended("length", "41") == "length"


def test_a_reference_says_no_more_than_it_must() -> None:
    for given, kept in (
        ([], None),
        ([Reply("4")], "4"),
        ([Reply("4", "length")], [{"raw": "4", "finish_reason": "length"}]),
    ):
        assert reference(given) == kept
        assert replies({"reference": kept}) == given


@pytest.mark.parametrize("end", ENDS)
def test_a_token_that_ends_a_text_is_cut_off_its_end_alone(end: str) -> None:
    text = f"<think>\n{end}\n</think>\n\n42"
    assert without_end(text) == (text, "")
    assert without_end(f"{text}{end}") == (text, end)
    assert without_end(f"{text}\n{end}\n") == (f"{text}\n", end)
    assert without_end(f"{text}{end}<|endoftext|>") == (text, end)
    asked_for = f"<think>\nwhy\n</think>\n\n{end}"  # the token is the answer
    assert without_end(f"{asked_for}<|im_end|>") == (asked_for, "<|im_end|>")


@pytest.mark.parametrize(
    "text", ["`</s>`", "<s>old</s>", "42 <s>", "[/INST]", "42\n", "", "<eos>", "why</think>\n<eos>"]
)
def test_what_is_not_the_end_of_a_text_stays(text: str) -> None:
    assert without_end(text) == (text, "")
