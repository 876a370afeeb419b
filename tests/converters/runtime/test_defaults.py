"""Sampling that generation_config.json asks for, and what of it is not applied."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.defaults import NOT_APPLIED, Defaults, read_defaults
from dstools_converters.runtime.sampling import Sampling


def read(folder: Path, **config: Any) -> Defaults:
    (folder / "generation_config.json").write_text(json.dumps(config))
    return read_defaults(folder)


@pytest.mark.parametrize(
    ("config", "temperature", "top_p"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95}, 0.6, 0.95),  # DeepSeek-R1
        ({"temperature": 0.6, "top_p": 0.95}, 0.6, 0.95),
        ({"do_sample": False, "temperature": 0.6}, 0.0, 1.0),
        ({"do_sample": True}, 1.0, 1.0),
        ({"do_sample": True, "temperature": 0}, 0.0, 1.0),
        ({"do_sample": None, "temperature": None, "top_p": 0.5}, 0.0, 0.5),
    ],
)
def test_a_file_that_says_something_is_the_source(
    config: dict[str, Any], temperature: float, top_p: float, tmp_path: Path
) -> None:
    wanted = Defaults(Sampling(temperature, top_p), "generation_config.json", {})
    assert read(tmp_path, **config) == wanted


def test_without_a_word_it_is_greedy(tmp_path: Path) -> None:
    wanted = Defaults(Sampling(0.0, 1.0), "default", {})
    assert read_defaults(tmp_path) == wanted
    assert read(tmp_path, eos_token_id=1) == wanted


def test_settings_that_are_not_applied_are_named_where_they_change_something(
    tmp_path: Path,
) -> None:
    qwen = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
    assert read(tmp_path, **qwen).not_applied == {"top_k": 20, "repetition_penalty": 1.05}
    neutral = {"top_k": 0, "repetition_penalty": 1.0, "min_p": None, "typical_p": 1.0}
    assert read(tmp_path, **neutral).not_applied == {}
    longer = {"no_repeat_ngram_size": 3, "suppress_tokens": [1], "num_beams": 4, "max_length": 20}
    longer |= {"stop_strings": ["\n"], "min_p": 0.1, "typical_p": 0.9, "guidance_scale": 1.5}
    assert read(tmp_path, **longer).not_applied == longer


def test_a_greedy_answer_loses_no_setting_of_draws(tmp_path: Path) -> None:
    of_draws = {"top_k": 20, "top_h": 0.4, "min_p": 0.1, "typical_p": 0.9}
    of_draws |= {"epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4}
    found = read(tmp_path, do_sample=False, repetition_penalty=1.1, num_beams=4, **of_draws)
    assert found.lost(0.0) == {"repetition_penalty": 1.1, "num_beams": 4}
    assert found.lost(0.6) == found.not_applied
    assert found.not_applied.keys() == {"repetition_penalty", "num_beams", *of_draws}


def test_every_setting_of_transformers_is_applied_named_or_changes_no_answer() -> None:
    said = {"temperature", "top_p", "do_sample", "eos_token_id"}
    of_beams = {"early_stopping", "length_penalty"}  # num_beams is named
    of_speed = {  # and of what is returned
        *("use_cache", "cache_implementation", "cache_config", "compile_config"),
        *("disable_compile", "prefill_chunk_size", "low_memory", "continuous_batching_config"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "return_legacy_cache", "pad_token_id", "bos_token_id"),
        *("decoder_start_token_id", "is_assistant", "transformers_version", "generation_kwargs"),
        *("renormalize_logits", "remove_invalid_values", "token_healing"),
        *("max_cache_len", "speculation_type", "use_mtp"),
    }
    unsaid = vars(GenerationConfig()).keys() - NOT_APPLIED.keys() - said - of_beams - of_speed
    drafts = ("assistant", "num_assistant", "prompt_lookup", "max_matching", "target_lookbehind")
    assert {key for key in unsaid if not key.startswith(("_", *drafts))} == set()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"temperature": True}, "temperature is True, not a number"),
        ({"temperature": 1e-9}, "temperature 1e-09 is not 0, nor finite and at least 1e-06"),
        ({"do_sample": "yes"}, "do_sample is 'yes', not true or false"),
        ({"do_sample": 1}, "do_sample is 1, not true or false"),
        ({"top_p": 2}, "top_p 2 is not between 0 and 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_file(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(
        DstoolsError, match=rf"{tmp_path}/generation_config\.json: {message}"
    ) as error:
        read(tmp_path, **config)
    assert error.value.hint == "restore the file from the release"


def test_a_broken_file_is_to_be_restored_and_not_deleted(tmp_path: Path) -> None:
    """Without it, end tokens and temperature would be others, without a word."""
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(DstoolsError, match=r"generation_config\.json: is not valid JSON") as error:
        read_defaults(tmp_path)
    assert error.value.hint == "restore the file from the release"
