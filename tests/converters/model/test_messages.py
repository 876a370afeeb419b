"""Conversations become text with the reasoning of the last answer in, by any template."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.model.messages import Rendered, read_conversation, render
from dstools_converters.model.tokenizer import load_tokenizer

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
TRACE, ANSWER = "\nSeven times eight,\nis 56.\n", "\n\nIt is 56."
WHOLE = f"<think>{TRACE}</think>{ANSWER}"
DEEPSEEK = f"<｜begin▁of▁sentence｜><｜User｜>7?<｜Assistant｜>{WHOLE}<｜end▁of▁sentence｜>"
ASK = {"role": "user", "content": "What is 7 x 8?"}
# deepseek-ai/DeepSeek-V3.1, tokenizer_config.json, without tools
V31 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{{ bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{{ '<｜Assistant｜></think>' }}"
    "{%- set content = message['content'] -%}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>', 1)[1] -%}"
    "{%- endif %}"
    "{{ content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}"
    "{%- if not thinking %}{{ '</think>' }}{%- else %}{{ '<think>' }}{% endif %}{% endif %}"
)
# moonshotai/Kimi-K2-Thinking, chat_template.jinja, its rule for the assistant
KIMI = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "<think>{{ m.reasoning_content or '' }}</think>{{ m.content }}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTIONS_ALONE = "{% for m in messages if m.role == 'user' %}<U>{{ m.content }}{% endfor %}<A>"
VERBATIM = "the sample's own"
INLINE = {"role": "assistant", "content": WHOLE}
BESIDE = {"role": "assistant", "content": "It is 56.", "reasoning_content": TRACE.strip()}


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_tokenizer(SAMPLE)


@pytest.fixture
def rendered(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rendered]:
    """rendered(template, *messages, **other keys of the row); a name is one of TRL's copies."""

    def get(template: str, *messages: dict[str, Any], **row: Any) -> Rendered:
        if "{" not in template and template != VERBATIM:
            spec = importlib.util.find_spec("trl")
            assert spec is not None
            assert spec.origin is not None
            file = Path(spec.origin).parent / "chat_templates" / f"{template}.jinja"
            template = file.read_text(encoding="utf-8")
        if template != VERBATIM:
            monkeypatch.setattr(loaded, "chat_template", template)
        return render(loaded, read_conversation({"messages": [*messages], **row}).turns)

    return get


def squeezed(text: str) -> str:
    return " ".join(text.split())


TEMPLATES = [
    VERBATIM,
    "deepseek_r1_distill",
    "deepseekv3",  # R1-0528's
    V31,
    KIMI,
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "qwen3_instruct_2507",
    "nemotron_3_nano",
    "glm4moe",
    "lfm2_2_5",
    "llama3",
]
SPELLINGS = {
    "in the content": [INLINE],
    "in reasoning_content": [BESIDE],
    "in reasoning": [{"role": "assistant", "content": "It is 56.", "reasoning": TRACE}],
    "in thinking": [{"role": "assistant", "content": "It is 56.", "thinking": TRACE}],
    "without the opening tag": [{"role": "assistant", "content": WHOLE.removeprefix("<think>\n")}],
    "in thought": [{"role": "assistant", "content": "It is 56.", "thought": TRACE}],
    "in thoughts": [{"role": "assistant", "content": "It is 56.", "thoughts": TRACE}],
    "in parts": [{"role": "assistant", "content": [{"type": "text", "text": WHOLE}]}],
    "in both": [BESIDE | {"content": WHOLE}],
    "beside nulls": [INLINE | {"reasoning_content": None, "tool_calls": None, "name": None}],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template[:20])
def test_the_reasoning_of_the_last_answer_is_in_one_block(
    template: str, spelling: str, rendered: Callable[..., Rendered]
) -> None:
    result = rendered(template, ASK, *SPELLINGS[spelling])
    text = squeezed(result.text)
    assert text.count("Seven times eight, is 56.") == text.count("It is 56.") == 1
    assert (text.count("<think>"), text.count("</think>")) == (1, 1)
    start, end = text.index("<think>"), text.index("</think>")
    assert start < text.index("Seven times") < end < text.index("It is 56.")
    assert result.characters == len("Seven times eight, is 56.") + len("It is 56.")
    assert (result.dropped, result.earlier_reasoning) == (0, 0)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (VERBATIM, DEEPSEEK),
        ("deepseek_r1_distill", DEEPSEEK),
        (V31, DEEPSEEK),
        ("qwen3", f"<|im_start|>user\n7?<|im_end|>\n<|im_start|>assistant\n{WHOLE}<|im_end|>\n"),
    ],
)
@pytest.mark.parametrize("last", [INLINE, BESIDE])
def test_the_text_is_what_serving_shows_and_the_model_generates(
    template: str, text: str, last: dict[str, Any], rendered: Callable[..., Rendered]
) -> None:
    assert rendered(template, {"role": "user", "content": "7?"}, last).text == text


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (VERBATIM, ""),
        ("deepseek_r1_distill", ""),
        (V31, "</think>"),
        ("qwen3", "<think>\n\n</think>\n\n"),
        ("nemotron_3_nano", "<think></think>"),
    ],
)
def test_an_answer_without_reasoning_is_what_the_template_makes_of_it(
    template: str, opening: str, rendered: Callable[..., Rendered]
) -> None:
    result = rendered(template, ASK, {"role": "assistant", "content": "It is 56."})
    assert f"{opening}It is 56." in result.text
    assert result.text.count("</think>") == opening.count("</think>")
    assert result.dropped == 0


@pytest.mark.parametrize("template", ["deepseek_r1_distill", "qwen3", V31, "nemotron_3_nano"])
@pytest.mark.parametrize("first", [INLINE, BESIDE])
def test_earlier_turns_are_as_in_serving_and_their_reasoning_is_counted(
    template: str, first: dict[str, Any], rendered: Callable[..., Rendered]
) -> None:
    last = {"role": "assistant", "content": "<think>\nNine by nine.\n</think>\n\n81"}
    result = rendered(template, ASK, first, {"role": "user", "content": "And 9 x 9?"}, last)
    text = squeezed(result.text)
    assert "Seven times" not in text
    assert "It is 56." in text
    assert "<think> Nine by nine. </think> 81" in text
    assert result.earlier_reasoning == len("Seven times eight, is 56.")
    assert result.dropped == 0


def test_a_template_that_writes_turns_as_they_are_keeps_earlier_reasoning(
    rendered: Callable[..., Rendered],
) -> None:
    result = rendered(VERBATIM, ASK, INLINE, ASK, INLINE)
    assert result.text.count(WHOLE) == 2
    assert (result.dropped, result.earlier_reasoning) == (0, 0)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template[:20])
def test_a_system_prompt_that_explains_the_tags_is_not_reasoning(
    template: str, rendered: Callable[..., Rendered]
) -> None:
    system = {"role": "system", "content": "Think in <think> and </think>, then answer."}
    text = squeezed(rendered(template, system, ASK, INLINE).text)
    assert text.count("Seven times eight, is 56.") == 1
    assert text.rindex("<think>") < text.index("Seven times") < text.rindex("</think>")
    assert text.count("</think>") == 1 + text.count("Think in")


CALL = {"type": "function", "function": {"name": "times", "arguments": '{"a": 7, "b": 8}'}}


@pytest.mark.parametrize("template", ["deepseekv3", "qwen3"])
def test_turns_that_call_tools_are_kept_with_their_calls(
    template: str, rendered: Callable[..., Rendered]
) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = rendered(template, ASK, calls, {"role": "tool", "content": "56"}, INLINE)
    text = squeezed(result.text)
    assert "times" in text
    assert text.index('"b": 8') < text.index("Seven times eight, is 56.") < text.index("It is 56.")
    assert result.dropped == 0


def test_a_last_turn_that_calls_a_tool_has_its_reasoning_and_the_call(
    rendered: Callable[..., Rendered],
) -> None:
    last = {"role": "assistant", "content": None, "reasoning": "I multiply.", "tool_calls": [CALL]}
    for template in ("deepseekv3", "qwen3"):
        text = rendered(template, ASK, last).text
        assert text.index("<think>\nI multiply.\n</think>") < text.index('"b": 8')


RECORD = {"reasoning": TRACE, "answer": ANSWER, "gold": "56", "sample": 0}


@pytest.mark.parametrize(
    "row",
    [
        RECORD | {"raw": WHOLE, "prefilled_think": False},
        RECORD | {"raw": WHOLE.removeprefix("<think>\n"), "prefilled_think": True},
        RECORD,
        {"raw": WHOLE},
    ],
)
@pytest.mark.parametrize("template", [VERBATIM, "deepseek_r1_distill", "qwen3", V31])
def test_a_record_of_distill_is_its_question_and_its_trace(
    template: str, row: dict[str, Any], rendered: Callable[..., Rendered]
) -> None:
    assert rendered(template, ASK, **row) == rendered(template, ASK, INLINE)


def test_an_unfinished_trace_stays_after_one_opening_tag(rendered: Callable[..., Rendered]) -> None:
    for template in (VERBATIM, "deepseek_r1_distill"):
        result = rendered(template, ASK, raw="<think>\nSeven times")
        assert result.text.count("<think>\nSeven times") == result.text.count("<think>") == 1
        assert result.dropped == 0


def test_a_template_that_writes_questions_alone_drops_all_turns_but_the_last(
    rendered: Callable[..., Rendered],
) -> None:
    plain = {"role": "assistant", "content": "Fifty-six."}
    result = rendered(QUESTIONS_ALONE, ASK, plain, ASK, INLINE)
    assert result.text.endswith(f"<A>{WHOLE}<｜end▁of▁sentence｜>")
    assert result.dropped == len("Fifty-six.")


@pytest.mark.parametrize(
    ("messages", "turns", "is_answered"),
    [
        ([ASK], 1, False),
        ([ASK, INLINE], 2, True),
        ([ASK, INLINE, ASK], 2, False),
        ([{"role": "system", "content": ""}, ASK, INLINE], 3, True),
        ([INLINE], 1, True),
    ],
)
def test_a_conversation_ends_with_the_last_answer(
    messages: list[dict[str, Any]], turns: int, is_answered: bool
) -> None:
    conversation = read_conversation({"messages": messages})
    assert (len(conversation.turns), conversation.is_answered) == (turns, is_answered)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "assistant"}, "messages[1] must have role and content"),
        ({"content": "a"}, "messages[1] must have role and content"),
        ({"role": "assistant", "content": None}, "messages[1] must have role and content"),
        ({"role": "assistant", "content": []}, "messages[1].content is empty"),
        ({"role": "assistant", "content": [{"type": "image"}]}, "content is not a string"),
        ({"role": "assistant", "content": [{"type": "text"}]}, "content is not a string"),
        ({"role": "assistant", "content": "a\ud800"}, "content holds half a surrogate pair"),
        ({"role": "assistant", "content": "a", "thinking": "\ud800"}, "thinking holds half"),
        ({"role": "system", "content": 5}, "messages[1].content is not a string"),
    ],
)
def test_a_message_that_is_not_one_is_named(message: dict[str, Any], error: str) -> None:
    with pytest.raises(DstoolsError) as caught:
        read_conversation({"messages": [ASK, message]})
    assert error in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "record",
    [
        {"raw": WHOLE + " No."},
        {"raw": "It is 56."},
        {"reasoning": "I know.", "answer": "It is 56."},
    ],
)
@pytest.mark.parametrize("last", [INLINE, BESIDE])
def test_a_record_with_another_answer_than_the_messages_is_refused(
    record: dict[str, Any], last: dict[str, Any]
) -> None:
    with pytest.raises(DstoolsError, match="another answer than") as caught:
        read_conversation({"messages": [ASK, last], **record})
    assert str(caught.value).endswith(" and ".join(record))
    assert f"remove {' and '.join(record)}, or remove the last" in caught.value.hint
    # each half of the hint works
    for row in ({"messages": [ASK, last]}, {"messages": [ASK], **record}):
        assert read_conversation(row).is_answered


@pytest.mark.parametrize(
    "record",
    [
        {"raw": WHOLE},
        {"raw": WHOLE.removeprefix("<think>\n")},
        RECORD,
        {"raw": ""},
        {"answer": "56"},
        {"reasoning": None, "answer": None},
        {"reasoning": None, "answer": "56"},
    ],
)
def test_a_record_that_says_the_same_as_the_messages_is_read_once(record: dict[str, Any]) -> None:
    rows = [{"messages": [ASK, BESIDE]}, {"messages": [ASK, BESIDE], **record}]
    first, second = (read_conversation(row) for row in rows)
    assert first == second


def test_text_under_an_unknown_key_is_counted_unless_it_is_said_elsewhere(
    rendered: Callable[..., Rendered],
) -> None:
    plain = {"role": "assistant", "content": "It is 56."}
    words = squeezed(TRACE)
    for key, value in {
        "reasoning_details": [{"type": "reasoning.text", "text": TRACE, "id": "rs_1"}],
        "cot": TRACE,
        "reasoning": {"text": TRACE},  # a known key that holds no text
    }.items():
        for template in (VERBATIM, "qwen3", "deepseek_r1_distill"):
            result = rendered(template, ASK, plain | {key: value})
            assert (result.unread, result.unread_key) == (len(words), key)
            assert result.characters == len("It is 56.") + len(words)
            assert result.dropped == 0
            assert rendered(template, ASK, BESIDE | {"x": value}).unread == 0  # a copy
    # another trace than the one that is read
    result = rendered("qwen3", ASK, BESIDE | {"thinking": "Eight times seven is known to me."})
    assert (result.unread, result.unread_key) == (
        len("Eight times seven is known to me."),
        "thinking",
    )
    # Chinese has no blanks
    assert rendered("qwen3", ASK, plain | {"cot": "\u4e03\u516b\u4e94\u5341\u516d"}).unread == 5


def test_labels_and_what_the_template_reads_are_not_unread(
    rendered: Callable[..., Rendered],
) -> None:
    labels = {"id": "msg_1", "model": "x y", "weight": 1, "time": "2026-01-01 10:00", "tags": []}
    assert rendered("qwen3", ASK, INLINE | labels).unread == 0
    template = "{% for m in messages %}{{ m.cot }}{{ m.content }}{% endfor %}"
    assert rendered(template, ASK, INLINE | {"cot": "Seven and eight make it."}).unread == 0
    asked = ASK | {"cot": "Nobody generates what is here."}
    assert rendered("qwen3", asked, INLINE).unread == 0


WITHOUT_CALLS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
QUOTED = {"query": 'say "What is 7 x 8?"\nand \u00e9', "top": 5, "lang": None}


@pytest.mark.parametrize("content", [None, "", "I look it up.", "I ask search for it."])
@pytest.mark.parametrize("arguments", [QUOTED, json.dumps(QUOTED), "{broken"])
def test_calls_that_the_template_does_not_write_are_dropped(
    content: str | None, arguments: Any, rendered: Callable[..., Rendered]
) -> None:
    function = {"name": "search", "arguments": arguments}
    for calls in ({"tool_calls": [{"id": "c", "function": function}]}, {"function_call": function}):
        messages = [ASK, {"role": "assistant", "content": content} | calls, INLINE]
        result = rendered(WITHOUT_CALLS, *messages)
        words = ["search", "{broken"]
        if "broken" not in str(arguments):
            words = ["search", "query", "top", 'say "What is 7 x 8?" and \u00e9']
        assert result.dropped == sum(map(len, words))
        answers = (content or "", "Seven times eight, is 56.", "It is 56.")
        assert result.characters == result.dropped + sum(map(len, answers))


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        ("qwen3", QUOTED),
        ("qwen3", json.dumps(QUOTED)),
        ("deepseekv3", json.dumps(QUOTED)),
        ("deepseekv3", json.dumps(QUOTED, ensure_ascii=False)),
        ("glm4moe", QUOTED),
        ("qwen3_5_think", QUOTED),
    ],
)
def test_calls_are_found_as_json_and_as_xml(
    template: str, arguments: Any, rendered: Callable[..., Rendered]
) -> None:
    call = {"type": "function", "function": {"name": "search", "arguments": arguments}}
    calls = {"role": "assistant", "content": "Let me search.", "tool_calls": [call, call]}
    result = rendered(template, ASK, calls, {"role": "tool", "content": "56"}, INLINE)
    assert result.text.count("search") == 3
    assert (result.dropped, result.unread) == (0, 0)


def test_the_words_of_a_dropped_call_elsewhere_do_not_hide_it(
    rendered: Callable[..., Rendered],
) -> None:
    ask = {"role": "user", "content": "times 7 8"}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    asked = [ask, call, {"role": "tool", "content": "times"}, INLINE]
    assert rendered(WITHOUT_CALLS, *asked).dropped == len("times") + len("b")  # an a is everywhere
    assert rendered("qwen3", *asked).dropped == 0


@pytest.mark.parametrize(
    ("message", "token"),
    [
        ({"role": "assistant", "content": f"{WHOLE}<｜end▁of▁sentence｜>"}, "end"),
        ({"role": "user", "content": "<｜User｜>7?<｜Assistant｜>"}, "User"),
        ({"role": "user", "content": "<｜begin▁of▁sentence｜>7?"}, "begin"),
    ],
)
def test_a_content_that_went_through_a_template_is_noticed(
    message: dict[str, Any], token: str, rendered: Callable[..., Rendered]
) -> None:
    assert token in rendered(VERBATIM, ASK, INLINE, message, INLINE).doubled
    # <think> is a token, too, and a text may speak of tokens
    speaks = {"role": "user", "content": "What is <｜User｜> for?"}
    assert rendered(VERBATIM, speaks, INLINE, ASK, INLINE).doubled == ""
