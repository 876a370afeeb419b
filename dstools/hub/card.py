"""The model card that goes with a folder: its front matter, and whose text it keeps.

A README.md is one of three.
- The base model's own, which `quantize` copied: manifest.json has its hash, or, beside weights that
  `quantize` wrote, it names no base_model and has no generated part. A new card replaces it,
  inherits its licence and links to the base.
- A person's. Its text and its keys stay; the generated part goes between two markers.
- A whole card of ours, as `distill card` writes it: all of it is between the markers.

The generated part records, in a comment, the front matter that was generated with it. A key with
the recorded value is ours, any other a person's. A person's keys count first, those of the
repository before those of the folder; then what the folder says now; then our keys of the folder's
card. Our keys of the repository's card are those of an earlier push, and are made anew.
"""

import re
from collections.abc import Callable, Collection
from functools import partial
from hashlib import sha256
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from dstools.hub.card_text import HUB
from dstools.hub.content import Content, content_of
from dstools.hub.frontmatter import (
    Card,
    check_card,
    check_keys,
    is_hub_name,
    is_url,
    known_key,
    read_card,
    rewrite_card,
    texts,
    write_card,
)
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.markdown import BEGIN, END, generated, recorded, with_record
from dstools_converters.sidefiles.carried import README
from dstools_converters.sidefiles.licences import identifier, licence_name

NO_BASE = "none"
ON_HUB = f"{README} of the repository"
OURS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
MARKER = re.compile(f"{re.escape(BEGIN)}|{re.escape(END)}")
LICENCE = ("license", "license_name", "license_link")  # one statement: whose one is, all are
INHERITED = ("language", "pipeline_tag", "library_name")  # of the base, where they are right
LICENCE_HINT = (
    f"put license: mit, or what it is, between two lines of --- at the top of the folder's {README}"
)


class ModelCard(NamedTuple):
    """The README.md to publish, and what a person should know of it."""

    text: bytes
    warnings: list[Finding]


def model_card(
    folder: Path,
    *,
    base: str | None,
    local: bytes | None,
    remote: bytes | None,
    files: Collection[str],
    repo: str | None = None,
) -> ModelCard:
    """Return the README.md to publish; the same inputs give the same bytes.

    A text that is not published, because it is taken for the base's, is a warning.

    base: the model that this one was made from, "org/name"; "none" where it has none on the Hub;
    None where it was not given. It counts before what a README.md says: who gives it, knows.
    local, remote: README.md of the folder and of the repository, None where there is none. A
    person's keys and text in the remote one count before those in the local one.
    files: names of the files that will be in the repository. repo: its own name, "org/name".

    Raises DstoolsError where the base of a quantized folder or the licence is not known, where a
    README.md cannot be read or has one marker of a generated part without the other, where a person
    named another base than the source of the weights, and where the front matter breaks the Hub's
    rules, naming the key.
    """
    content = content_of(folder, files)
    own = None if _is_of_base(local, content, base) else local
    theirs = None if remote in (None, local) or _has_hash(remote, content) else remote
    cards = [
        (raw, _read_written(raw, where))
        for raw, where in ((theirs, ON_HUB), (own, README))
        if raw is not None and raw.strip()
    ]
    people = _by_people([card for _, card in cards])
    if base is None:
        of_remote = [card for raw, card in cards if raw is theirs]
        where = ON_HUB if "base_model" in _by_people(of_remote) else README
        _require_source(texts(people.get("base_model")), content.source, where)
    ours = _of_folder([card for raw, card in cards if raw is own or content.is_foreign])
    metadata = _with_base(people, ours, base, content)
    named = [name for name in texts(metadata.get("base_model")) if is_hub_name(name)]
    known_base = next(iter(named), None)
    metadata |= _missing(metadata, content.facts)
    metadata |= _further(metadata, _still_right(ours, known_base) if content.is_made_here else ours)
    original = read_card(local).metadata if local is not None and own is None else {}
    metadata = _with_inherited(metadata, original, known_base, files)
    anew = {key: value for key, value in metadata.items() if people.get(key) != value}
    text = partial(content.text, known_base, repo)
    body = _body([card.body for _, card in cards], text, anew, is_foreign=content.is_foreign)
    card = Card(metadata, body)
    _require_right(metadata, files, theirs, anew)
    is_dropped = local is not None and own is None and not _has_hash(local, content)
    warnings = _dropped(local, known_base) if local and is_dropped else []
    return ModelCard(_written(card, cards), warnings)


# ------------------------------------------------------------------------------------ whose card


def _has_hash(readme: bytes | None, content: Content) -> bool:
    """Return whether a README.md is the one that was copied from the source."""
    return readme is not None and content.source_card == sha256(readme).hexdigest()


def _is_of_base(readme: bytes | None, content: Content, base: str | None) -> bool:
    if readme is None or _has_hash(readme, content):
        return readme is not None
    if not content.is_made_here or base == NO_BASE:
        return False
    card = read_card(readme)
    keys = {known_key(str(key)) for key in card.metadata}
    return "base_model" not in keys and not MARKER.search(card.body)


def _dropped(readme: bytes, base: str | None) -> list[Finding]:
    """Return a warning where a README.md has a text that a new card replaces."""
    if not read_card(readme).body.strip():
        return []
    message = "is taken for the base's: its text is not published"
    hint = f"to publish it, write base_model: {base or 'org/name'} in its front matter"
    return [Finding.warning("card-replaced", README, message, hint)]


def _ours(card: Card) -> dict[str, Any]:
    """Return the keys that were generated, with values that no one has changed since."""
    parts = OURS.findall(card.body)
    record = recorded(parts[0]) if parts else {}
    ours = {k: v for k, v in card.metadata.items() if k in record and record[k] == v}
    if any(key in card.metadata and key not in ours for key in LICENCE):
        return {key: value for key, value in ours.items() if key not in LICENCE}
    return ours


def _by_people(cards: list[Card]) -> dict[str, Any]:
    """Return the keys that people wrote; the first card counts."""
    people: dict[str, Any] = {}
    for card in cards:
        ours = _ours(card)
        people |= _further(people, {k: v for k, v in card.metadata.items() if k not in ours})
    return people


def _further(metadata: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that a card adds; none of its licence where there is one."""
    has_licence = any(key in metadata for key in LICENCE)
    added = _missing(metadata, card)
    return {k: v for k, v in added.items() if not (has_licence and k in LICENCE)}


def _of_folder(cards: list[Card]) -> dict[str, Any]:
    """Return the generated keys of the last card with a generated part."""
    return next((_ours(card) for card in reversed(cards) if OURS.search(card.body)), {})


def _still_right(ours: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return which generated keys of its card a folder that quantize wrote does not say itself."""
    if base is not None and base not in texts(ours.get("base_model")):
        return {}  # they are of another model
    return {key: ours[key] for key in (*LICENCE, *INHERITED) if key in ours}


def _written(card: Card, cards: list[tuple[bytes, Card]]) -> bytes:
    """Return the bytes of a card, in the form of the first one with a person's keys."""
    if not cards:
        return write_card(card)
    raw = next((raw for raw, old in cards if _by_people([old])), cards[-1][0])
    return rewrite_card(raw, card)


def _read_written(raw: bytes, where: str) -> Card:
    """Return a card that a person or dstools wrote.

    Raises DstoolsError as `read_card` does, for a key that is not spelled as on the Hub, and for a
    generated part that does not begin or end: what follows it could be anyone's.
    """
    card = read_card(raw, where)
    for finding in check_keys(card.metadata):
        key = finding.where.removeprefix(README)
        raise DstoolsError(f"{where}{key}: {finding.message}", finding.hint)
    text = raw.decode()
    begun: re.Match[str] | None = None
    for marker in MARKER.finditer(text):
        if (marker.group() == BEGIN) == (begun is not None):
            raise _unpaired(begun or marker, where)
        begun = marker if begun is None else None
    if begun is not None:
        raise _unpaired(begun, where)
    return card


def _unpaired(marker: re.Match[str], where: str) -> DstoolsError:
    line = marker.string.count("\n", 0, marker.start()) + 1
    if marker.group() == BEGIN:
        message, hint = "begins here does not end", f"write {END} in a line of its own below it"
    else:
        message, hint = "ends here does not begin", f"write {BEGIN} in a line of its own above it"
    return DstoolsError(f"{where}: line {line}: the generated part that {message}", hint)


def _body(
    bodies: list[str], text: Callable[[bool], str], keys: dict[str, Any], *, is_foreign: bool
) -> str:
    """Return the text of the card: what people wrote, with the generated part in its place.

    The first of `bodies` with a text outside of that part counts. A model that is not quantized and
    not of dstools gets a generated part only where it has no text, or has such a part already.
    keys: the front matter that is generated with it.
    """
    outsides = [OURS.sub("", body) for body in bodies]
    kept = next((n for n, outside in enumerate(outsides) if outside.strip()), None)
    whole = [match for body in bodies if (match := OURS.search(body))]
    body = bodies[kept] if kept is not None else ""
    if is_foreign and (whole or kept is not None):
        if not whole:
            return body
        # of the folder, where `distill card` wrote it
        part = with_record(whole[-1].group() + "\n", keys)
    else:
        part = generated(text(kept is None), keys)
    newline = "\r\n" if "\r\n" in body else "\n"
    part = re.sub(r"\r?\n", newline, part)
    first = OURS.search(body)
    if first is None:
        above = body.rstrip()
        return f"{above}{newline * 2}{part}" if above else f"{newline}{part}"
    rest = OURS.sub("", body[first.end() :])
    return body[: first.start()] + part.rstrip("\r\n") + rest


# ----------------------------------------------------------------------------------- front matter


def _with_base(
    people: dict[str, Any], ours: dict[str, Any], base: str | None, content: Content
) -> dict[str, Any]:
    """Return the keys that people wrote, with base_model and its relation.

    Raises DstoolsError for a `base` that is not org/name, and where a base is wanted and not known.
    """
    pair = ("base_model", "base_model_relation")
    if base == NO_BASE:
        return {key: value for key, value in people.items() if key not in pair}
    if base is not None and not ("/" in base and is_hub_name(base)):
        raise DstoolsError(
            f"--base {printable(base)}: is not a name on the Hub", "name it as org/name, or none"
        )
    metadata = dict(people)
    if base is not None:
        metadata["base_model"] = base
    elif "base_model" not in people and content.source is not None:
        metadata["base_model"] = content.source
    elif "base_model" not in people:
        metadata |= {key: ours[key] for key in pair if key in ours}
    if "base_model" in metadata:
        relation = {"base_model_relation": content.relation} if content.relation else {}
        return metadata | _missing(metadata, relation)
    if content.is_made_here:
        raise DstoolsError(
            f"{README}: the model that this one was made from is not known",
            "add --base ORG/NAME, its name on the Hub, or --base none where it has none",
        )
    return metadata


def _require_source(named: list[str], source: str | None, where: str) -> None:
    """Raise DstoolsError where a person named another base than the source of the weights."""
    if source is not None and named and source not in named:
        first = printable(named[0])
        raise DstoolsError(
            f"{where}: base_model: {first} is not {source}, which the weights were made from",
            f"add --base {source}, or --base {first} if that is right",
        )


def _with_inherited(
    metadata: dict[str, Any], original: dict[str, Any], base: str | None, files: Collection[str]
) -> dict[str, Any]:
    """Return the metadata with licence, library and task, the base's where it says them."""
    right = {
        key: original[key]
        for key in INHERITED
        if key in original
        and not [f for f in check_card({key: original[key]}, ()) if key in f.where]
    }
    right |= _missing(right, {"library_name": "transformers", "pipeline_tag": "text-generation"})
    licence: dict[str, Any] = {}
    if "license" not in metadata:
        licence = _licence(original | metadata, base, files)
    elif metadata["license"] == "other" and "LICENSE" in files:
        licence = {"license_link": "LICENSE"}
    return {**_missing(metadata, licence), **metadata, **_missing(metadata, right)}


def _licence(original: dict[str, Any], base: str | None, files: Collection[str]) -> dict[str, Any]:
    """Return the licence that the base's card names, as the Hub spells it; {} without one.

    A link to a file of the base becomes its address there, unless the file is here as well.
    """
    licence, name = original.get("license"), original.get("license_name")
    if isinstance(licence, list) and len(licence) == 1:
        licence = licence[0]
    known = identifier(licence) if isinstance(licence, str) else None
    if known and known != "other":
        return {"license": known}
    if not isinstance(name, str):
        if known or not isinstance(licence, str) or not licence.strip():
            return {}
        name = licence_name(licence)
    link = original.get("license_link")
    if not isinstance(link, str) or not link.strip():
        link = "LICENSE" if "LICENSE" in files or base is None else f"{HUB}/{base}"
    elif not is_url(link) and normpath(link) not in files:
        link = f"{HUB}/{base}/blob/main/{normpath(link)}" if base else "LICENSE"
    return {"license": "other", "license_name": name, "license_link": link}


def _missing(metadata: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in further.items() if key not in metadata}


def _require_right(
    metadata: dict[str, Any], files: Collection[str], remote: bytes | None, anew: Collection[str]
) -> None:
    """Raise DstoolsError for the first key that breaks the Hub's rules, and whose file it is in."""
    findings = check_card(metadata, files)
    if not findings:
        return
    first, more = findings[0], len(findings) - 1
    key = first.where.removeprefix(f"{README}: ").partition("[")[0]
    if key == "license" and "license" not in metadata:
        base = next(iter(texts(metadata.get("base_model"))), "")
        of_base = f", and that of {printable(base)} is not known here" if base else ""
        raise DstoolsError(f"{README}: names no license{of_base}", LICENCE_HINT)
    theirs = read_card(remote, ON_HUB).metadata if remote is not None else {}
    is_remote = any(k in theirs and k not in anew for k in (key, key.partition("_")[0]))
    where = first.where.replace(README, ON_HUB, 1) if is_remote else first.where
    also = f" (and {more} more)" if more else ""
    raise DstoolsError(f"{where}: {first.message}{also}", first.hint)
