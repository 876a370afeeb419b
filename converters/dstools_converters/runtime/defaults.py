"""The sampling that a checkpoint's generation_config.json asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.runtime.draw import Sampling
from dstools_converters.tables import json_table

FILE = "generation_config.json"
NOT_APPLIED = {  # settings that change what is drawn -> the values that change nothing
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
}


@dataclass(frozen=True)
class Defaults:
    """How a checkpoint asks to be sampled."""

    sampling: Sampling
    source: str  # FILE, or "default" where it says nothing
    not_applied: dict[str, Any]  # settings that are not implemented, and their values


def read_defaults(folder: Path) -> Defaults:
    """Return the sampling of a checkpoint: greedy where nothing asks for anything else.

    `do_sample: false` is greedy whatever the temperature. Raises DstoolsError for a temperature or
    top_p that is not a number or out of range.
    """
    path = folder / FILE
    config = json_table(path)
    if config is None:
        return Defaults(Sampling(), "default", {})
    asked = config.get("do_sample")
    temperature = 0.0 if asked is False else _number(config, "temperature", float(asked is True))
    top_p = _number(config, "top_p", 1.0)
    try:
        sampling = Sampling(temperature, top_p)
    except DstoolsError as error:
        raise DstoolsError(f"{path}: {error}", "restore the file from the release") from error
    says = {"do_sample", "temperature", "top_p"} & config.keys()
    others = {
        key: config[key]
        for key, neutral in NOT_APPLIED.items()
        if key in config and config[key] not in neutral
    }
    return Defaults(sampling, FILE if says else "default", others)


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float):
        raise DstoolsError(
            f"{FILE}: {key} is {printable(repr(value))}, not a number",
            "restore the file from the release",
        )
    return float(value)
