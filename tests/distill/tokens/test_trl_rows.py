"""TRL's rows come from its own code; the tokenizer becomes the one that it would save."""

from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens import trl_rows as module
from dstools_distill.tokens.invariant import IGNORED, Trained
from dstools_distill.tokens.prepared import parts
from dstools_distill.tokens.templates import load_tokenizer
from dstools_distill.tokens.trl_rows import prepare

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


@pytest.fixture
def trl_rows(tokenizer: Any) -> Any:
    """trl_rows(count=1, **config): the rows that TRL makes of as many conversations."""

    def make(count: int = 1, **config: Any) -> list[Trained]:
        made = prepare(tokenizer, config, [CONVERSATION] * count)
        return [part.row for part in parts((("", row) for row in made), len(tokenizer), "TRL")]

    return make


def test_messages_are_trained_on_whole(tokenizer: Any, trl_rows: Any) -> None:
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    assert trl_rows() == [(ids, ids)]


def test_a_loss_on_completions_leaves_the_prompt_out(tokenizer: Any, trl_rows: Any) -> None:
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    start = len(tokenizer.encode(PROMPT, add_special_tokens=False))
    assert trl_rows(completion_only_loss=True) == [(ids, [IGNORED] * start + ids[start:])]


def test_max_length_cuts_each_row(tokenizer: Any, trl_rows: Any) -> None:
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    assert trl_rows(2, max_length=9) == [(ids[:9], ids[:9])] * 2


def test_packed_rows_are_told_apart(tokenizer: Any, trl_rows: Any) -> None:
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    assert trl_rows(2, packing=True) == [(ids, ids)] * 2


def test_the_tokenizer_keeps_the_template_of_the_config(tokenizer: Any, trl_rows: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    [row] = trl_rows(chat_template=template)
    assert tokenizer.chat_template == template
    assert tokenizer.decode(row.ids) == "3+4?" + TARGET


def test_a_template_path_that_does_not_exist_is_refused(trl_rows: Any) -> None:
    with pytest.raises(DstoolsError, match="no such file or folder") as error:
        trl_rows(chat_template_path="org/name")
    assert str(error.value).startswith("chat_template_path: org/name: ")
    assert "nothing is downloaded here" in error.value.hint


def test_a_refusal_has_the_words_of_trl(trl_rows: Any) -> None:
    """Only keys that it names are to be checked; all are where it names none."""
    with pytest.raises(DstoolsError, match=r"^TRL refuses: ValueError: .*'no such tok") as error:
        trl_rows(eos_token="no such token", max_length=99)
    assert error.value.hint == "check eos_token: no such token"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_length": "lots"}, "ArgumentError: argument --max_length/--max-length: invalid int"),
        ({"assistant_only_loss": "maybe"}, "ArgumentError: argument --assistant_only_loss"),
        ({"max_length": 1.5}, "TypeError: slice indices"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_as_trl_does(
    trl_rows: Any, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(DstoolsError, match=f"^TRL refuses: {words}") as error:
        trl_rows(**config)
    [(key, value)] = config.items()
    assert error.value.hint == f"check {key}: {value}"


def test_values_are_read_as_trl_reads_them(tokenizer: Any, trl_rows: Any) -> None:
    """Of a string it makes a number; what it takes for true packs."""
    ids = tokenizer.encode(PROMPT + TARGET, add_special_tokens=False)
    assert trl_rows(2, packing=1, max_length="99") == [(ids, ids)] * 2
    assert trl_rows(max_length="9") == [(ids[:9], ids[:9])]


def test_nothing_is_written_into_temporary_or_working_folders(
    trl_rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(module.OWN, "output_dir", str(tmp_path))
    trl_rows()
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_loops_for_ever_is_stopped(
    trl_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT_SECONDS", 3)
    with pytest.raises(DstoolsError, match="TRL takes more than 3 s with this chat template"):
        trl_rows(chat_template=LOOPS)
