"""axolotl's rows: which entries of a config count, which turns are trained on, what is cut."""

from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.tokens.axolotl_rows import (
    axolotl_entries,
    axolotl_row,
    set_axolotl_template,
    unread_of_entries,
)
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.tokens.templates import load_tokenizer

# an end within three tokens of a user's turn would count as its own: the answer is longer
ANSWER = "The answer is 7."
TURNS = [
    {"role": "user", "content": "3+4?"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "4+3?"},
    {"role": "assistant", "content": ANSWER},
]


def trained_texts(tokenizer: Any, **settings: Any) -> list[str]:
    """Return the runs of tokens of TURNS that are trained on, decoded."""
    row = axolotl_row(tokenizer, settings, TURNS)
    assert row is not None
    runs: list[list[int]] = []
    for n, label in enumerate(row.labels):
        if label != IGNORED:
            assert label == row.ids[n]
            if n == 0 or row.labels[n - 1] == IGNORED:
                runs.append([])
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({}, [True, True]),
        ({"train_on_eos": "last"}, [False, True]),
        ({"train_on_eos": "none"}, [False, False]),
        ({"roles_to_train": ["user"]}, [False, False]),
        ({"roles_to_train": ["user"], "train_on_eos": "all"}, [True, True]),
        ({"train_on_eos": "none", "train_on_eot": "last"}, [False, True]),
    ],
)
def test_which_ends_of_two_answers_are_trained_on(
    tokenizer_of: Any, settings: dict[str, Any], trained: list[bool]
) -> None:
    tokenizer = tokenizer_of("sample-v3")
    row = axolotl_row(tokenizer, settings, TURNS)
    assert row is not None
    ends = [n for n, token in enumerate(row.ids) if token == tokenizer.eos_token_id]
    assert [row.labels[n] == tokenizer.eos_token_id for n in ends] == trained


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({}, [ANSWER, ANSWER]),
        ({"roles_to_train": ["human"]}, ["3+4?", "4+3?"]),  # another name of user
        ({"roles_to_train": []}, []),
        ({"train_on_inputs": True}, ["3+4?", ANSWER, "4+3?", ANSWER]),
    ],
)
def test_which_turns_are_trained_on(
    tokenizer_of: Any, settings: dict[str, Any], texts: list[str]
) -> None:
    assert trained_texts(tokenizer_of("sample-v3"), train_on_eos="none", **settings) == texts


def test_a_row_over_sequence_len_is_dropped_or_truncated(tokenizer_of: Any) -> None:
    tokenizer = tokenizer_of("sample-v3")
    whole = axolotl_row(tokenizer, {}, TURNS)
    assert whole is not None
    length = len(whole.ids)
    assert axolotl_row(tokenizer, {"sequence_len": length}, TURNS) == whole
    assert axolotl_row(tokenizer, {"sequence_len": length - 1}, TURNS) is None
    settings = {"sequence_len": length - 1, "excess_length_strategy": "truncate"}
    assert axolotl_row(tokenizer, settings, TURNS) == (whole.ids[:-1], whole.labels[:-1])


def test_masks_are_read_from_entries_and_all_else_from_the_top() -> None:
    config = {
        "sequence_len": 9,
        "roles_to_train": ["user"],
        "chat_template": "chatml",
        "datasets": [
            {"train_on_eos": "last", "sequence_len": 7},
            {"type": "alpaca"},
            {"type": "chat_template", "chat_template_jinja": "{{ a }}"},
        ],
    }
    shared = {key: config[key] for key in ("sequence_len", "chat_template", "datasets")}
    assert axolotl_entries(config) == {
        0: shared | {"train_on_eos": "last"},
        2: shared | {"chat_template": None, "chat_template_jinja": "{{ a }}"},
    }


def test_a_config_without_datasets_has_one_entry_of_defaults() -> None:
    assert axolotl_entries({"base_model": "a"}) == {0: {"base_model": "a"}}


def test_what_is_ignored_in_entries_is_listed_by_its_place() -> None:
    entries = [{"roles": {"user": ["a"]}, "path": "b"}, {"type": "alpaca", "field_thinking": ""}]
    assert unread_of_entries({"datasets": entries}) == ["datasets[0].roles", "datasets[1].type"]


@pytest.mark.parametrize(
    "config", [{"chat_template": "jinja"}, {}], ids=["named jinja", "not named"]
)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_template_is_taken_from_the_config_or_from_a_file_that_it_names(
    tokenizer_folder: Any, tmp_path: Path, config: dict[str, Any], in_a_file: bool
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("sample-v3"))
    (tmp_path / "a.jinja").write_text("{{ messages }}")
    jinja = str(tmp_path / "a.jinja") if in_a_file else "{{ messages }}"
    set_axolotl_template(tokenizer, config | {"chat_template_jinja": jinja})
    assert tokenizer.chat_template == "{{ messages }}"


def test_the_tokenizers_own_template_is_kept_by_default(tokenizer_folder: Any) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("sample-v3"))
    own = tokenizer.chat_template
    set_axolotl_template(tokenizer, {})
    set_axolotl_template(tokenizer, {"chat_template": "tokenizer_default_fallback_chatml"})
    assert tokenizer.chat_template == own


def test_the_default_is_refused_for_a_tokenizer_without_a_template(tokenizer_folder: Any) -> None:
    tokenizer = load_tokenizer(tokenizer_folder("deepseek"))
    with pytest.raises(DstoolsError, match="chat_template: tokenizer_default of axolotl is not"):
        set_axolotl_template(tokenizer, {})
