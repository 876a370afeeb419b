"""The sampling that a checkpoint's generation_config.json asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.tables import json_table

FILE = "generation_config.json"
RESTORE = "restore the file from the release"
# Settings that change an answer -> the values that change nothing. Sources: transformers' 5.23
# GenerationConfig, and the sampling parameters that vLLM reads from the file.
NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0, -1),
    **dict.fromkeys(("top_h", "typical_p", "repetition_penalty"), (None, 1)),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), (None, 0)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "diversity_penalty"), (None, 0)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (None, 0)),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), (None, 1)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (None, 1)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (None, 0)),
    **dict.fromkeys(("max_length", "max_new_tokens", "max_time"), (None,)),
    **dict.fromkeys(("stop_strings", "bad_words_ids", "force_words_ids"), (None, [], "")),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "sequence_bias"), (None, [], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "constraints"), (None, [])),
    **dict.fromkeys(("penalty_alpha", "exponential_decay_length_penalty"), (None,)),
    **dict.fromkeys(("watermarking_config", "dola_layers"), (None, {}, [])),
}
# Those that choose among tokens to draw from, and always keep the most probable one
OF_DRAWS = {"top_k", "top_h", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"}


@dataclass(frozen=True)
class Defaults:
    """How a checkpoint asks to be sampled."""

    sampling: Sampling
    source: str  # FILE, or "default" where it says nothing
    not_applied: dict[str, Any]  # settings that are not implemented, and their values

    def lost(self, temperature: float) -> dict[str, Any]:
        """Return those of `not_applied` that would change an answer at a temperature."""
        settings = self.not_applied.items()
        return {key: value for key, value in settings if temperature or key not in OF_DRAWS}


def read_defaults(folder: Path) -> Defaults:
    """Return the sampling of a checkpoint: greedy where nothing asks for anything else.

    `do_sample: false` is greedy whatever the temperature. Raises DstoolsError for a temperature or
    top_p that is not a number or out of range, and a do_sample that is not true or false.
    """
    path = folder / FILE
    config = json_table(path, RESTORE)
    if config is None:
        return Defaults(Sampling(), "default", {})
    asked = config.get("do_sample")
    if asked not in (None, True, False) or type(asked) in (int, float):
        raise DstoolsError(
            f"{path}: do_sample is {printable(repr(asked))}, not true or false", RESTORE
        )
    temperature = _number(path, config, "temperature", float(asked is True))
    top_p = _number(path, config, "top_p", 1.0)
    try:
        sampling = Sampling(0.0 if asked is False else temperature, top_p)
    except DstoolsError as error:
        raise DstoolsError(f"{path}: {error}", RESTORE) from error
    named = {"do_sample", "temperature", "top_p"} & config.keys()
    others = {
        key: config[key]
        for key, neutral in NOT_APPLIED.items()
        if key in config and config[key] not in neutral
    }
    return Defaults(sampling, FILE if named else "default", others)


def _number(path: Path, config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float):
        raise DstoolsError(f"{path}: {key} is {printable(repr(value))}, not a number", RESTORE)
    return float(value)
