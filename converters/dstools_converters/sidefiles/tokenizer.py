"""The files of a tokenizer, read as JSON and never run: whether they are whole and fit the model.

Source of the format: tokenizers, tokenizer.json: `model.vocab` is {token: id}, of Unigram a list of
[token, score]; `added_tokens` is a list of {"id": ..., "content": ...}.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.errors import Finding, printable
from dstools_converters.files import LFS_HINT, is_lfs_pointer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
MAX_BYTES = 64 << 20  # those of releases take 7 to 33 MB
HINT = "copy it from the original model; or remove it, and convert without"


def check_tokenizer(folder: Path, rows: Any) -> Iterator[Finding]:
    """Yield why a tokenizer cannot be used with an embedding of `rows` rows.

    `rows` is what config.json says, and not used where that is not a number.
    """
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        path = folder / name
        if not path.exists() or path.is_dir():
            continue
        content = _read(path)
        if isinstance(content, Finding):
            yield content
        elif name == TOKENIZER:
            finding = _check_ids(content, rows)
            if finding is not None:
                yield finding


def _read(path: Path) -> dict[str, Any] | Finding:
    """Return the object in a JSON file, or why there is none."""
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        message = f"is not a regular file of {MAX_BYTES >> 20} MiB or less"
        return Finding.error("tokenizer", path.name, message, HINT)
    if is_lfs_pointer(path):
        message = "is a Git LFS pointer, not the file"
        return Finding.error("lfs-pointer", path.name, message, LFS_HINT)
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        message = f"is not valid JSON: {error}" if raw else "is empty"
        return Finding.error("broken-json", path.name, message, HINT)
    if not isinstance(content, dict):
        return Finding.error("broken-json", path.name, "is not a JSON object", HINT)
    return content


def _check_ids(tokenizer: dict[str, Any], rows: Any) -> Finding | None:
    """Return that a token has an id that the embedding has no row for, None if none has."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(added, list):
        return Finding.error("tokenizer", TOKENIZER, "has no model with a vocabulary", HINT)
    if isinstance(vocabulary, list):  # of Unigram
        vocabulary = {str(number): number for number in range(len(vocabulary))}
    ids = dict(vocabulary)
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            return Finding.error("tokenizer", TOKENIZER, "has an added token without content", HINT)
        ids[token["content"]] = token.get("id")
    for token, number in ids.items():
        if type(number) is not int or number < 0:
            given = f"the id of {_quoted(token)} is {printable(repr(number))}"
            return Finding.error("tokenizer", TOKENIZER, f"{given}, not 0 or more", HINT)
    beyond = [token for token, number in ids.items() if type(rows) is int and number >= rows]
    if not beyond:
        return None
    first = min(beyond, key=ids.__getitem__)
    more = f", as {len(beyond) - 1} more are" if beyond[1:] else ""
    return Finding.error(
        "token-ids",
        TOKENIZER,
        f"the id {ids[first]} of {_quoted(first)} is beyond the {rows} rows of the embedding{more}",
        "resize the embedding (transformers: resize_token_embeddings), or restore the tokenizer "
        "that the model was trained with",
    )


def _quoted(token: str) -> str:
    return f"'{printable(token)}'"
