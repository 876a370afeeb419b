"""Paths that trainers leave in JSON: folders of the machine that wrote it, of no use elsewhere.

A name such as org/name is kept: it says where a model is from. It is taken for a path where a file
or folder of the working folder has it, as trainers write outputs/run-3, too.
Source: transformers 5.23 leaves `_name_or_path` out of config.json, but not of the configs in it
(to_diff_dict), and takes the others for private information of a tokenizer (save_pretrained);
version 4 wrote all of them. peft 0.19 has `base_model_name_or_path` in adapter_config.json.
"""

import json
import os
import re
from typing import Any

SUFFIX = "name_or_path"
FILES = ("tokenizer_file", "special_tokens_map_file")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def without_local_paths(raw: str | bytes) -> tuple[Any, list[str]]:
    """Return what JSON holds without the keys that have a local path, and these keys, each once.

    They are left out at any depth. Raises ValueError or RecursionError as json.loads does.
    """
    left_out: dict[str, None] = {}

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        left_out.update((key, None) for key, value in pairs if _is_local(key, value))
        return {key: value for key, value in pairs if not _is_local(key, value)}

    return json.loads(raw, object_pairs_hook=kept), list(left_out)


def is_local(value: str) -> bool:
    """Return whether the name of a model or file is a path, or that of something that is here."""
    return HUB_NAME.fullmatch(value) is None or os.path.lexists(value)


def _is_local(key: str, value: Any) -> bool:
    if not (key.endswith(SUFFIX) or key in FILES) or not isinstance(value, str) or not value:
        return False
    return is_local(value)
