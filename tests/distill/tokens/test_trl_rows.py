"""TRL's rows come from its own code; the tokenizer becomes the one that it would save."""

import logging
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens import trl_rows as module
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.trl_rows import trl_rows

CONVERSATION = [
    {"role": "user", "content": "3+4?"},
    {"role": "assistant", "content": "<think>\n3+4=7\n</think>\n\n7"},
]
PROMPT = "<｜begin▁of▁sentence｜><｜User｜>3+4?<｜Assistant｜>"
TARGET = "<think>\n3+4=7\n</think>\n\n7<｜end▁of▁sentence｜>"
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture
def tokenizer(tokenizer_folder: Any) -> Any:
    return load_tokenizer(tokenizer_folder("sample-v3"))


def test_messages_are_trained_on_whole_and_completions_alone(tokenizer: Any) -> None:
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    start = len(tokenizer.encode(PROMPT, add_special_tokens=False))
    [messages] = trl_rows(tokenizer, {}, "messages", [CONVERSATION])
    [completion] = trl_rows(tokenizer, {}, "prompt-completion", [CONVERSATION])
    assert messages == (ids, ids)
    assert completion == (ids, [IGNORED] * start + ids[start:])


def test_max_length_cuts_the_row_of_each_conversation(tokenizer: Any) -> None:
    rows = trl_rows(tokenizer, {"max_length": 9}, "messages", [CONVERSATION] * 2)
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    assert rows == [(ids[:9], ids[:9])] * 2


def test_the_tokenizer_keeps_the_template_of_the_config(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    [row] = trl_rows(tokenizer, {"chat_template": template}, "messages", [CONVERSATION])
    assert tokenizer.chat_template == template
    assert tokenizer.decode(row.ids) == "3+4?" + TARGET


@pytest.mark.parametrize("path", ["org/name", "{{ messages }}"])
def test_a_template_path_that_does_not_exist_is_refused(tokenizer: Any, path: str) -> None:
    with pytest.raises(DstoolsError, match="no such file or folder") as error:
        trl_rows(tokenizer, {"chat_template_path": path}, "messages", [CONVERSATION])
    assert str(error.value).startswith(f"chat_template_path: {path}: ")
    assert "nothing is downloaded here" in error.value.hint


def test_a_refusal_has_the_words_of_trl_and_leaves_logs_and_bars_on(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    caplog.set_level(17, "trl")
    with pytest.raises(DstoolsError, match=r"^TRL refuses: ValueError: .*'no such token'"):
        trl_rows(tokenizer, {"eos_token": "no such token"}, "messages", [CONVERSATION])
    assert logging.getLogger("trl").level == 17
    assert not datasets.are_progress_bars_disabled()


def test_a_template_that_loops_for_ever_is_stopped(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT_SECONDS", 3)
    with pytest.raises(DstoolsError, match="TRL takes more than 3 s with this chat template"):
        trl_rows(tokenizer, {"chat_template": LOOPS}, "messages", [CONVERSATION])
