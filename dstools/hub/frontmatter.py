"""Front matter of a model card: the YAML at its top, read, written, and checked.

The Hub refuses some front matter only after everything is uploaded, and its client's validation
only asks the server; so the rules are here, and are checked before a byte is hashed.
Sources: huggingface/hub-docs, modelcard.md, docs/hub/model-cards.md and eval-results.md at 242f4a1,
2026-08-22; huggingface_hub 2.4, repocard.py and utils/_validators.py.
"""

import re
from collections.abc import Collection, Iterator
from math import isfinite
from posixpath import normpath
from reprlib import repr as short
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dstools.hub.vocabulary import EITHER, KEYS, MISSPELLED, RELATIONS, TABLES, TASKS, TEXT, TEXTS
from dstools.hub.yamltext import dump, load
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.sidefiles.carried import README
from dstools_converters.sidefiles.licences import LICENCES, identifier, licence_name
from dstools_converters.tables import nearest

BEGIN = re.compile(r"\s*---[ \t]*\r?\n")
END = re.compile(r"^---[ \t]*(\r?\n|\Z)", re.MULTILINE)
TOP_KEY = re.compile(r"""["']?([^\s#"'-][^"':]*)["']?\s*:""")
NAME = re.compile(r"[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
FILES = re.compile(r".*\.(jsonl?|parquet|csv|tsv|txt|gz|zst|arrow|safetensors|bin|pt|gguf|git)")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")  # ISO 639, BCP 47


class Card(NamedTuple):
    """A card, its front matter parsed."""

    metadata: dict[str, Any]
    body: str  # all that follows the closing ---, with its own line ends


def read_card(raw: bytes, where: str = README) -> Card:
    """Return a card's metadata, {} without front matter, and its text.

    Raises DstoolsError, naming `where` and the line, for text that is not UTF-8 or begins with a
    byte-order mark, and for front matter that does not end, is not valid YAML, has a key twice, an
    alias or a merge key, or is not a mapping.
    """
    yaml, body = _split(_decoded(raw, where), where)
    metadata = load(yaml, where, first_line=2) if yaml else None
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise DstoolsError(
            f"{where}: the front matter is not a mapping", "write it as lines of `key: value`"
        )
    return Card(metadata, body)


def write_card(card: Card) -> bytes:
    """Return the bytes of a card. Text that a YAML reader may take for another type is quoted."""
    yaml = f"---\n{dump(card.metadata)}---\n" if card.metadata else ""
    newline = "\r\n" if "\r\n" in card.body else "\n"
    return (yaml.replace("\n", newline) + card.body).encode()


def rewrite_card(raw: bytes, card: Card, where: str = README) -> bytes:
    """Return `card`, with the front matter of `raw` as it is written there where it says the same.

    Keys that `card` adds or changes follow the other lines, so that comments and order stay.
    """
    text = _decoded(raw, where)
    yaml, _ = _split(text, where)
    newline = "\r\n" if "\r\n" in text else "\n"
    known = read_card(raw, where).metadata
    same = {key for key in known.keys() & card.metadata if known[key] == card.metadata[key]}
    added = {key: value for key, value in card.metadata.items() if key not in same}
    yaml = _without(yaml, known.keys() - same)
    lines = yaml.rstrip("\r\n") + newline if yaml.strip() else ""
    lines += dump(added).replace("\n", newline) if added else ""
    kept = f"---{newline}{lines}---{newline}{card.body}".encode()
    try:
        is_same = read_card(kept, where) == card
    except DstoolsError:
        is_same = False  # in braces, for instance
    return kept if is_same else write_card(card)


def _without(yaml: str, keys: Collection[str]) -> str:
    """Return the lines of YAML without those of some keys of the top level."""
    kept, is_dropped = [], False
    for line in yaml.splitlines(keepends=True):
        if key := TOP_KEY.match(line):
            is_dropped = key.group(1) in keys
        elif line.startswith("#"):
            is_dropped = False
        if not is_dropped:
            kept.append(line)
    return "".join(kept)


def _decoded(raw: bytes, where: str) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise DstoolsError(
            f"{where}: begins with a byte-order mark", "save it as UTF-8 without one"
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DstoolsError(
            f"{where}: is not UTF-8: byte {error.start} is {raw[error.start]:#04x}",
            "save it as UTF-8",
        ) from error


def _split(text: str, where: str) -> tuple[str, str]:
    """Return (YAML between the --- lines, "" without any; what follows)."""
    begin = BEGIN.match(text)
    if begin is None:
        return "", text
    end = END.search(text, begin.end())
    if end is None:
        raise DstoolsError(
            f"{where}: the front matter does not end", "write --- in a line after its last key"
        )
    return text[begin.end() : end.start()], text[end.end() :]


# --------------------------------------------------------------------------------------- the schema


def check_card(metadata: dict[str, Any], files: Collection[str]) -> list[Finding]:
    """Return what the Hub would refuse, misread or not show, an error for each key.

    files: names of the files that will be in the repository.
    """
    return [
        *check_keys(metadata),
        *_check_types(metadata),
        *_check_licence(metadata, files),
        *_check_base(metadata),
        *_check_words(metadata),
        *_check_model_index(metadata),
    ]


def check_keys(metadata: dict[Any, Any]) -> Iterator[Finding]:
    """Yield an error for each key that is not text, or not spelled as on the Hub."""
    for key in metadata:
        if not isinstance(key, str):
            yield _fault(str(key), f"the key {short(key)} is not text", "put it in quotes")
        elif (known := known_key(key)) != key:
            hint = f"remove it: there is {known}" if known in metadata else f"write {known}:"
            yield _fault(key, "is not the Hub's name of this key", hint)


def known_key(key: str) -> str:
    """Return the Hub's spelling of a key, the key itself where the Hub has none."""
    known = {name.replace("-", "_"): name for name in KEYS} | MISSPELLED
    known |= {name.replace("_", ""): name for name in KEYS}
    return known.get(re.sub(r"[- ]", "_", key.lower()), key)


def is_hub_name(name: str) -> bool:
    """Return whether `name` can be org/name on the Hub; one part is an old data set's."""
    parts = name.split("/")
    is_plain = "--" not in name and ".." not in name and not FILES.fullmatch(name.lower())
    return is_plain and len(parts) <= 2 and all(NAME.fullmatch(part) for part in parts)


def is_url(link: str) -> bool:
    """Return whether `link` is an address on the web."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in link


def texts(value: Any) -> list[str]:
    """Return the texts of a value that is a text or a list of texts, without anything else."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _fault(key: str, message: str, hint: str) -> Finding:
    return Finding.error("card", f"{README}: {printable(key)}", message, hint)


def _check_types(metadata: dict[str, Any]) -> Iterator[Finding]:
    for key, value in metadata.items():
        if key in TEXT:
            yield from _check_text(key, value)
        elif key in TEXTS and not isinstance(value, list):
            yield _fault(key, f"{short(value)} is not a list", "write each after a dash: - word")
        elif key in TEXTS or (key in EITHER and isinstance(value, list)):
            for number, item in enumerate(value):
                yield from _check_text(f"{key}[{number}]", item)
        elif key in EITHER:
            yield from _check_text(key, value)
        elif key in TABLES and not _is_tables(value):
            yield _fault(key, "is not a list of tables", f"write a list, or remove {key}")
        else:
            yield from _check_numbers(str(key), value)


def _check_text(key: str, value: Any) -> Iterator[Finding]:
    if isinstance(value, str):
        if not value.strip():
            yield _fault(key, "is empty", "give it a value, or remove it")
        elif any(letter in value for letter in "\r\n\0"):
            yield _fault(key, "has several lines", "write it in one line")
    elif value is None:
        yield _fault(key, "is empty", "give it a value, or remove it")
    elif isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "table"
        first = next(iter(value), None)
        hint = f"write {key}: {first}" if isinstance(first, str) else "write one word there"
        yield _fault(key, f"is a {kind}, not text", hint)
    elif isinstance(value, bool):
        hint = f'put the word in quotes, such as "{"yes" if value else "no"}"'
        yield _fault(key, f"YAML reads it as {str(value).lower()}, not as text", hint)
    else:
        shown = printable(str(value))
        yield _fault(key, f"{shown} is not text", f'put it in quotes: "{shown}"')


def _check_numbers(key: str, value: Any) -> Iterator[Finding]:
    """Yield NaN and infinity anywhere below a key: the Hub keeps metadata as JSON."""
    if isinstance(value, float) and not isfinite(value):
        yield _fault(key, f"{value} is not a finite number", "remove it")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _check_numbers(key, item)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _tables(value: Any) -> list[dict[Any, Any]]:
    return value if _is_tables(value) else []


def _check_licence(metadata: dict[str, Any], files: Collection[str]) -> Iterator[Finding]:
    licence = metadata.get("license")
    name, link = metadata.get("license_name"), metadata.get("license_link")
    if "license" not in metadata:
        known = "write license: other" if name else "write license: and its identifier, e.g. mit"
        yield _fault("license", "is missing", known)
    elif isinstance(licence, str) and licence.strip() and licence not in LICENCES:
        right = identifier(licence)
        other = f"license: other, license_name: {licence_name(licence)}, and license_link"
        hint = f"write license: {right}" if right else f"write {other}"
        yield _fault("license", f"{short(licence)} is not in the Hub's list", hint)
    if licence == "other" and "license_name" not in metadata:
        yield _fault("license_name", "is missing, with license: other", "write license_name:")
    if licence == "other" and "license_link" not in metadata:
        target = "LICENSE" if "LICENSE" in files else "https:// and where the text is"
        hint = f"write license_link: {target}"
        yield _fault("license_link", "is missing, with license: other", hint)
    if isinstance(link, str) and link.strip() and not is_url(link) and normpath(link) not in files:
        near = sorted(file for file in files if "licen" in file.lower())
        target = near[0] if near else "an address that begins with https://"
        message = f"{short(link)} is not a file of the repository"
        yield _fault("license_link", message, f"write license_link: {target}")


def _check_base(metadata: dict[str, Any]) -> Iterator[Finding]:
    base, relation = metadata.get("base_model"), metadata.get("base_model_relation")
    for name in texts(base):
        if name.strip() and not ("/" in name and is_hub_name(name)):
            inside = re.search(r"huggingface\.co/([^/?#]+/[^/?#]+)", name)
            right = inside.group(1) if inside else name.partition("@")[0]
            is_right = "/" in right and is_hub_name(right)
            hint = f"write base_model: {right}" if is_right else "write org/name, or remove it"
            yield _fault("base_model", f"{short(name)} is not org/name on the Hub", hint)
    if base == []:
        yield _fault("base_model", "is empty", "give it a value, or remove it")
    if isinstance(relation, str) and relation.strip() and relation not in RELATIONS:
        hint = nearest(relation, RELATIONS, "write base_model_relation:")
        yield _fault("base_model_relation", f"{short(relation)} is not a relation", hint)
    if relation is not None and "base_model" not in metadata:
        message = "is a relation to nothing: there is no base_model"
        yield _fault("base_model_relation", message, "write base_model: org/name, or remove it")


def _check_words(metadata: dict[str, Any]) -> Iterator[Finding]:
    task = metadata.get("pipeline_tag")
    if isinstance(task, str) and task.strip() and task not in TASKS:
        hint = nearest(task, sorted(TASKS), "write pipeline_tag:")
        yield _fault("pipeline_tag", f"{short(task)} is not a task of the Hub", hint)
    for name in texts(metadata.get("datasets")):
        if name.strip() and not is_hub_name(name):
            hint = "write org/name of a data set on the Hub, or remove it"
            yield _fault("datasets", f"{short(name)} is not a name on the Hub", hint)
    for code in texts(metadata.get("language")):
        if code.strip() and not LANGUAGE.fullmatch(code):
            hint = "write a code of ISO 639, such as en"
            yield _fault("language", f"{short(code)} is not a code of a language", hint)
    newer = metadata.get("new_version")
    if isinstance(newer, str) and newer.strip() and not ("/" in newer and is_hub_name(newer)):
        message = f"{short(newer)} is not org/name on the Hub"
        yield _fault("new_version", message, "write org/name, or remove it")


def _check_model_index(metadata: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is missing of the old form of results; huggingface_hub cannot load such a card."""
    for model in _tables(metadata.get("model-index")):
        results = model.get("results")
        missing = [] if isinstance(model.get("name"), str) else ["name"]
        missing += [] if _is_tables(results) and results else ["results"]
        for result in _tables(results):
            missing += _missing(result.get("task"), "task", "type")
            missing += _missing(result.get("dataset"), "dataset", "type", "name")
            for metric in _tables(result.get("metrics")) or [{}]:
                missing += _missing(metric, "metrics", "type", "value")
        if missing:
            message = f"lacks {', '.join(dict.fromkeys(missing))}"
            yield _fault("model-index", message, "add it, or remove model-index")


def _missing(table: Any, key: str, *names: str) -> list[str]:
    given = table if isinstance(table, dict) else {}
    return [f"{key}.{name}" for name in names if given.get(name) is None]
