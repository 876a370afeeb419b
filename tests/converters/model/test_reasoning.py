"""Reasoning and answer of a text are divided, joined and put after a prompt without a loss."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstools_converters.model.reasoning import (
    Answer,
    Parts,
    after_thought,
    answer_after,
    join,
    opens_think,
    other_tag,
    plain_opening,
    split,
    tag_hint,
    thought,
    without_tags,
)


@pytest.mark.parametrize(
    ("raw", "prefilled", "rest"),
    [
        ("a", False, "a"),
        ("a", True, ""),
        ("<think>a", False, ""),
        ("<think>a</think>\nb", False, "\nb"),
        ("a</think>b", True, "b"),
        ("a</think>b", False, "b"),
        ("<think>a</think>b<think>c</think>d", False, "d"),
        ("<think>a</think>b<think>c", False, ""),
    ],
)
def test_what_follows_the_last_block_is_not_a_part_of_one(
    raw: str, prefilled: bool, rest: str
) -> None:
    assert after_thought(raw, prefilled) == rest


@pytest.mark.parametrize(
    ("raw", "prefilled", "parts"),
    [
        ("<think>a</think>b", False, Parts("a", "b")),
        ("<think>\n\n</think>\n\n4", False, Parts("\n\n", "\n\n4")),
        (" \r\n\t<think>a</think>b", False, Parts("a", "b")),
        ("a</think>b", True, Parts("a", "b")),
        ("a</think>b", False, Parts(None, "a</think>b")),  # never opened
        ("<think>a</think>b", True, Parts(None, "<think>a</think>b")),  # opened twice
        ("<think>a", False, Parts(None, "<think>a")),
        ("x<think>a</think>b", False, Parts(None, "x<think>a</think>b")),
        ("<think>a</think>b</think>", False, Parts(None, "<think>a</think>b</think>")),
        ("</think>a<think>", False, Parts(None, "</think>a<think>")),
        ("<Think>a</Think>b", False, Parts(None, "<Think>a</Think>b")),
    ],
)
def test_a_text_with_one_think_block_has_two_parts(raw: str, prefilled: bool, parts: Parts) -> None:
    assert split(raw, prefilled) == parts


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "])), st.booleans())
def test_join_restores_any_text_that_split_divided(pieces: list[str], prefilled: bool) -> None:
    raw = "".join(pieces)
    parts = split(raw, prefilled)
    is_opened = parts.reasoning is not None and not prefilled
    assert join(parts, prefilled) == (raw.lstrip() if is_opened else raw)


@pytest.mark.parametrize(
    ("reasoning", "answer", "prefilled", "text"),
    [
        ("a", "b", False, "<think>\na\n</think>\n\nb"),
        ("\n\na \n", "\nb", False, "<think>\n\na \n</think>\nb"),  # existing line feeds stay
        ("a", "b", True, "a\n</think>\n\nb"),
        ("a", "", False, "<think>\na"),  # may be unfinished
        ("", "b", False, "b"),
        (None, "b", False, "b"),
        (5, "b", False, "b"),
    ],
)
def test_reasoning_and_answer_become_one_text(
    reasoning: Any, answer: str, prefilled: bool, text: str
) -> None:
    assert thought(reasoning, answer, prefilled) == text


@pytest.mark.parametrize(
    ("trace", "bare"),
    [
        ("<think>\na\n</think>", "\na\n"),
        (" <think>a</think>\n", "a"),
        ("<think>\na", "\na"),  # cut
        ("a</think>", "a"),
        (" a\n", " a\n"),
        ("it writes <think> here", "it writes <think> here"),
        ("<think>a</think> b", "<think>a</think> b"),  # not the whole of it
        ("<think><think>a</think></think>", "<think><think>a</think></think>"),
        ("", ""),
    ],
)
def test_tags_around_a_whole_trace_are_taken_off(trace: str, bare: str) -> None:
    assert without_tags(trace) == bare


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("<｜Assistant｜><think>\n", True),
        ("<think>", True),
        ("<｜Assistant｜>", False),
        ("<think>\n\n</think>\n\n", False),
        ("<think>\nOkay", False),
    ],
)
def test_a_prompt_opens_the_think_block_where_it_ends_in_the_opener(text: str, opens: bool) -> None:
    assert opens_think(text) is opens


@pytest.mark.parametrize(
    ("prompt", "before", "plain"),
    [
        ("<A>", "<A>", ""),
        ("<A><think>\n", "<A>", "\n</think>\n\n"),
        ("<A><think>", "<A>", "\n\n</think>\n\n"),
        ("<A>", "<A><think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),  # Qwen3
        ("<A>", "<B>", ""),  # the template does not begin as the prompt does
    ],
)
def test_an_answer_without_reasoning_closes_the_block_or_gets_the_templates_empty_one(
    prompt: str, before: str, plain: str
) -> None:
    assert plain_opening(prompt, before) == plain


@pytest.mark.parametrize(
    ("prompt", "parts", "answer"),
    [
        ("<A>", Parts("\na\n", "\n\nb"), Answer("<think>\na\n</think>\n\nb", "\na\n")),
        ("<A><think>\n", Parts("\na\n", "\n\nb"), Answer("a\n</think>\n\nb", "a\n")),
        ("<A><think>", Parts("\na\n", "\n\nb"), Answer("\na\n</think>\n\nb", "\na\n")),
        ("<A><think>\n", Parts("a", "b"), Answer("a</think>b", "a")),
        ("<A>", Parts(None, "\nb"), Answer("(plain)\nb", "")),
        ("<A>", Parts("\n \n", "\n\nb"), Answer("(plain)b", "")),  # an empty block
    ],
)
def test_a_trace_follows_the_prompt_with_one_opening_tag(
    prompt: str, parts: Parts, answer: Answer
) -> None:
    assert answer_after(prompt, parts, "(plain)") == answer


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("\n<reasoning>a\nb</reasoning> c", "reasoning"),
        ("<thought>a</think>", ""),
        ("<think>a</think>b", ""),
        ("so <b>a</b>", ""),
    ],
)
def test_another_tag_for_a_trace_is_found_where_a_text_begins_with_it(text: str, tag: str) -> None:
    assert other_tag(text) == tag


def test_the_hint_for_other_tags_names_three_of_them_and_nothing_else_that_is_counted() -> None:
    counts = ["begins with d", "begins with a", "rows", "begins with c", "begins with b"]
    hint = "answers begin with <a>, <b>, <c>: put their traces between <think> and </think>"
    assert tag_hint(counts) == hint
    assert tag_hint(["rows"]) == ""
