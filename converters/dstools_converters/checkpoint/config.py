"""What of a config.json does not hold of the folder, or of any output made from it.

Source: transformers, dynamic_module_utils.py: an entry of `auto_map` is "module.Class" for
module.py in the folder, or "org/repo--module.Class" for one in that repository.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.local_paths import without_local_paths
from dstools_converters.checkpoint.storage import CODE_DTYPES
from dstools_converters.errors import Finding, Level, printable
from dstools_converters.families.shapes import MAX_SIZE, Model
from dstools_converters.files import is_lfs_pointer

REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
MODULE = re.compile(r"\w+")
EOS = "eos_token_id"
TOKEN_IDS = ("bos_token_id", EOS, "pad_token_id")
MTP_LAYERS = "num_nextn_predict_layers"  # as DeepSeek-V3 and others of its kind have it
DTYPE_KEYS = ("torch_dtype", "dtype")  # until transformers 5, and since


def sound_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a copy of the config for an output: without `auto_map` if its code is missing.

    Loaders would ask to trust remote code, and then fail. The dtype is one to compute in: FP8 is
    one to store. Local paths are left out.
    """
    config: dict[str, Any]
    config, _ = without_local_paths(json.dumps(checkpoint.config))
    if missing_code(checkpoint.folder, config.get("auto_map")):
        del config["auto_map"]
    return config | dict.fromkeys(_fp8_dtypes(config), "bfloat16")


def names_mtp(folder: Path) -> bool:
    """Return whether the config.json of a folder says that the model has MTP layers."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False  # whoever loads the model says what is wrong
    return isinstance(config, dict) and bool(config.get(MTP_LAYERS))


def check_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what `sound_config` leaves out or changes, and a `fmt` that the weights are not of."""
    config = checkpoint.config
    missing = missing_code(checkpoint.folder, config.get("auto_map"))
    if missing:
        yield Finding.warning(
            "auto-map",
            "config.json",
            f"auto_map names {printable(missing[0])}, which is not in the folder",
            "copy it from the original model, or remove auto_map; an output of dstools has none",
        )
    for key in without_local_paths(json.dumps(config))[1]:
        yield local_path("config.json", key)
    for key in _fp8_dtypes(config):
        yield Finding.warning(
            "dtype",
            "config.json",
            f"{key} is {printable(config[key])}, a dtype to store weights in, not to compute in",
            f"set it to bfloat16, as dstools does in its outputs; {key} is not the quantization",
        )
    quantization = config.get("quantization_config")
    fmt = quantization.get("fmt") if isinstance(quantization, dict) else None
    has_codes = any(info.dtype in CODE_DTYPES for info in checkpoint.tensors.values())
    if fmt is not None and has_codes and "e4m3" not in str(fmt).lower():
        yield Finding.warning(
            "fmt",
            "config.json",
            f"fmt of quantization_config is {printable(repr(fmt))}, but the weights are F8_E4M3",
            'set it to "e4m3"',
        )


def local_path(file: str, key: str) -> Finding:
    """Return a note of a key that `without_local_paths` leaves out."""
    return Finding.note(
        "local-path",
        file,
        f"{printable(key)} is a path on the machine that wrote it",
        "remove it before you publish the folder; an output of dstools does not have it",
    )


def missing_code(folder: Path, auto_map: Any) -> list[str]:
    """Return the files and unknown repositories that an `auto_map` names and `folder` lacks."""
    missing = []
    for repository, module in named_code(auto_map):
        path = folder / f"{module}.py"
        if repository is not None:
            if not REPOSITORY.fullmatch(repository):  # a path on the machine that wrote it
                missing.append(repository)
        elif not MODULE.fullmatch(module) or not path.is_file() or is_lfs_pointer(path):
            missing.append(f"{module}.py")
    return missing


def named_code(auto_map: Any) -> Iterator[tuple[str | None, str]]:
    """Yield the repository, None for the folder itself, and the module of each class it names."""
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str):
                repository, separator, name = entry.rpartition("--")
                yield repository if separator else None, name.rpartition(".")[0]


def _fp8_dtypes(config: dict[str, Any]) -> list[str]:
    """Return the keys of `config` that give an FP8 dtype."""
    return [key for key in DTYPE_KEYS if "float8" in str(config.get(key))]


def check_numbers(config: dict[str, Any], model: Model) -> Iterator[Finding]:
    """Yield numbers, other than the sizes of weights, that no model can run with.

    Engines allocate by some of them, and index the embedding by others. An end token without an
    embedding is a warning: the model runs, and never ends.
    """
    moe = model.moe
    experts = moe.n_routed_experts if moe else 1
    ranges = {  # key -> least and greatest
        "max_position_embeddings": (1, MAX_SIZE - 1),
        "sliding_window": (0, MAX_SIZE - 1),
        "index_topk": (1, MAX_SIZE - 1),
        "num_key_value_heads": (1, MAX_SIZE - 1),
        "head_dim": (1, MAX_SIZE - 1),
    } | dict.fromkeys(TOKEN_IDS, (-1, model.vocab_size - 1))  # -1 of early Llama: none
    if moe is not None:
        ranges |= {"num_experts_per_tok": (1, experts), "n_group": (1, experts)}
        groups = config.get("n_group")
        if type(groups) is int and 1 <= groups <= experts:
            ranges["topk_group"] = 1, groups
            if experts % groups:
                yield _out_of_range("n_group", groups, f"a divisor of {experts}, the experts")
    for key, (least, greatest) in ranges.items():
        value = config.get(key)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not (type(number) is int and least <= number <= greatest):
                wanted = f"a whole number from {least} to {greatest}"
                yield _out_of_range(key, number, wanted, "warning" if key == EOS else "error")
                break
    yield from _check_rope(config)


def _check_rope(config: dict[str, Any]) -> Iterator[Finding]:
    """Yield numbers of the rotary embedding, by their path in the config, that are not above 0.

    transformers 5 has them all in `rope_parameters`.
    """
    numbers = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        table = config.get(key)
        if isinstance(table, dict):
            numbers |= {f"{key}.{name}": table.get(name) for name in ("rope_theta", "factor")}
        elif table is not None:
            yield _out_of_range(key, table, "an object")
    for name, value in numbers.items():
        if value is not None and not (type(value) in (int, float) and value > 0):
            yield _out_of_range(name, value, "a number above 0")


def _out_of_range(key: str, value: Any, wanted: str, level: Level = "error") -> Finding:
    return Finding(
        level,
        "config-range",
        "config.json",
        f"{key} is {printable(repr(value))}, not {wanted}",
        "restore the config.json that the tensors were saved with",
    )
