"""The files of a tokenizer, read as JSON and never run: whether they are whole and fit the model.

Source of the format: tokenizers, tokenizer.json: `model.vocab` is {token: id}, of Unigram a list of
[token, score]; `added_tokens` is a list of {"id": ..., "content": ...}. transformers,
tokenization_utils_base.py: added_tokens.json is {token: id}, and `added_tokens_decoder` of
tokenizer_config.json is {"id": {"content": token, ...}}.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dstools_converters.errors import Finding, printable
from dstools_converters.files import LFS_HINT, is_lfs_pointer, json_object

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
MAX_BYTES = 64 << 20  # those of releases take 7 to 33 MB
DIGITS = re.compile(r"[0-9]{1,18}")
HINT = "copy it from the original model; or remove it, and convert without"


def check_tokenizer(folder: Path, rows: Any) -> Iterator[Finding]:
    """Yield why a tokenizer cannot be used with an embedding of `rows` rows.

    `rows` is what config.json says, and not used where that is not a number.
    """
    reported: set[str] = set()  # tokens
    for name, read_ids in READERS.items():
        path = folder / name
        if not path.exists():
            continue
        content = _read(path)
        if isinstance(content, Finding):
            if name != ADDED_TOKENS:  # which few loaders read
                yield content
            continue
        ids = read_ids(content)
        if isinstance(ids, Finding):
            yield ids
        else:
            unlike = {token: number for token, number in ids.items() if token not in reported}
            finding, tokens = _check_ids(name, unlike, rows)
            reported |= tokens
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
    content = json_object(path)
    if isinstance(content, str):
        return Finding.error("broken-json", path.name, content, HINT)
    return content


def _ids(tokenizer: dict[str, Any]) -> dict[str, Any] | Finding:
    """Return {token: id} of a tokenizer.json, or why there is none."""
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
    return ids


def _decoder_ids(config: dict[str, Any]) -> dict[str, Any]:
    """Return {token: id} of a tokenizer_config.json, as far as it gives any."""
    decoder = config.get("added_tokens_decoder")
    ids = {}
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str):
            ids[content] = int(number) if DIGITS.fullmatch(number) else number
    return ids


READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | Finding]] = {
    TOKENIZER: _ids,
    TOKENIZER_CONFIG: _decoder_ids,
    ADDED_TOKENS: lambda content: content,
}


def _check_ids(name: str, ids: dict[str, Any], rows: Any) -> tuple[Finding | None, set[str]]:
    """Return that tokens have ids that the embedding has no row for, and these tokens."""
    for token, number in ids.items():
        if type(number) is not int or number < 0:
            given = f"the id of {_quoted(token)} is {printable(repr(number))}"
            return Finding.error("tokenizer", name, f"{given}, not 0 or more", HINT), {token}
    is_known = type(rows) is int and rows > 0
    beyond = [token for token, number in ids.items() if is_known and number >= rows]
    if not beyond:
        return None, set()
    first = min(beyond, key=ids.__getitem__)
    given = f"the id {printable(str(ids[first]))} of {_quoted(first)}"
    more = f", as {len(beyond) - 1} more are" if beyond[1:] else ""
    finding = Finding.error(
        "token-ids",
        name,
        f"{given} is beyond the {rows} rows of the embedding{more}",
        "resize the embedding (transformers: resize_token_embeddings), or restore the tokenizer "
        "that the model was trained with",
    )
    return finding, set(beyond)


def _quoted(token: str) -> str:
    return f"'{printable(token)}'"
