"""The words of the Hub: each in one place, and spelled as it spells them."""

from inspect import signature

from huggingface_hub import ModelCardData

from dstools.hub.vocabulary import (
    BENCHMARKS,
    EITHER,
    KEYS,
    MISSPELLED,
    RELATIONS,
    TABLES,
    TASKS,
    TEXT,
    TEXTS,
)


def test_each_key_has_one_type() -> None:
    assert len(set(KEYS)) == len(KEYS) == len(TEXT) + len(TEXTS) + len(EITHER) + len(TABLES)


def test_a_misspelled_key_stands_for_a_known_one_and_is_none_itself() -> None:
    assert set(MISSPELLED.values()) <= set(KEYS)
    assert not set(MISSPELLED) & set(KEYS)


def test_the_keys_of_the_hubs_client_are_known() -> None:
    names = signature(ModelCardData.__init__).parameters.keys()
    assert names - {"self", "eval_results", "ignore_metadata_errors", "kwargs"} <= set(KEYS)
    assert {"text-generation", "image-text-to-text"} <= TASKS
    assert {"quantized", "finetune"} < set(RELATIONS)


def test_the_words_are_in_lower_case_and_data_sets_have_an_owner() -> None:
    assert all(word == word.lower() for word in (*TASKS, *RELATIONS, *KEYS))
    assert all(name.count("/") == 1 for name in BENCHMARKS)
