"""Local paths and secrets in the files that would be published, by file and line."""

import json
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dstools.hub.selection import DATA_SUFFIXES, refusal
from dstools_converters.checkpoint.folder import WEIGHT_SUFFIXES
from dstools_converters.checkpoint.local_paths import is_local
from dstools_converters.errors import Finding
from dstools_converters.files import real
from dstools_converters.sidefiles.carried import README

# a JSON string that names a model or a file of a tokenizer
NAMED = re.compile(
    rb'"(\w*name_or_path|base_model|tokenizer_file|special_tokens_map_file)"\s*:\s*'
    rb'"((?:[^"\\\n]|\\.)*)"'
)
# the same in YAML and TOML, where only what is a path at its face counts
ASSIGNED = re.compile(
    rb"^[ \t-]*(\w*name_or_path|base_model)[ \t]*[:=][ \t]*[\"']?"
    rb"((?:/|~/|\.{1,2}/|[A-Za-z]:[\\/]|file:)[^\"'\n]*)",
    re.MULTILINE,
)
SECRET = re.compile(
    rb"\bhf_[A-Za-z0-9]{34}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b"
)
MAX_HEADER_BYTES = 100 << 20  # safetensors takes none of more than 100 MB
NAME_HINT = "remove that key, or name the model as org/name"
SECRET_HINT = "remove it; a token that was in a shared file should be revoked"
PLACE_HINT = "remove it from the file"


def leaks(files: dict[str, Path], card: bytes, folder: Path, token: str) -> Iterator[Finding]:
    """Yield what gives away a folder of this machine or a secret, of each kind the first in a file.

    Looks at every file that is not weights, whatever its name, at graphs, and at the headers of
    weights: for the home, the working folder and the folder itself, local paths in place of a
    model's name, `token` and what looks like one, and private keys. `card` takes the place of
    README.md.
    """
    home = Path.home()
    places = _places(home, real(home), Path.cwd(), real(folder))
    own = re.compile(re.escape(token.encode()))
    for name, path in files.items():
        if name != README:
            with _text(path) as text:
                yield from _leaks(name, text, places, own)
    yield from _leaks(README, card, places, own)


def _leaks(
    name: str, text: "bytes | mmap.mmap", places: re.Pattern[bytes], own: re.Pattern[bytes]
) -> Iterator[Finding]:
    def at(match: re.Match[bytes]) -> str:
        line = text[: match.start()].count(b"\n") + 1
        return f"{name}, line {line}"

    if match := own.search(text):
        yield refusal("secret", at(match), "holds your token", SECRET_HINT)
    elif match := SECRET.search(text):
        message = "holds what looks like a token or a private key"
        yield refusal("secret", at(match), message, SECRET_HINT)
    if match := next(_local_names(text), None):
        message = f"{match[1].decode()} is a local path"
        yield refusal("local-path", at(match), message, NAME_HINT)
    if match := places.search(text):
        yield refusal("local-path", at(match), "names a folder of this machine", PLACE_HINT)


def _local_names(text: "bytes | mmap.mmap") -> Iterator[re.Match[bytes]]:
    """Yield the places where a local path is in place of a model's name."""
    for match in NAMED.finditer(text):
        try:
            value = json.loads(b'"' + match[2] + b'"')
        except ValueError:  # not JSON after all
            continue
        if value and is_local(value):
            yield match
    yield from ASSIGNED.finditer(text)


@contextmanager
def _text(path: Path) -> "Iterator[bytes | mmap.mmap]":
    """Yield the bytes of a file; of weights, those of a header or graph, or none."""
    if not path.is_file() or not path.stat().st_size:
        yield b""
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES))
    elif path.suffix == ".onnx":  # with its weights elsewhere, it is a header, too
        with path.open("rb") as file:
            yield file.read(MAX_HEADER_BYTES)
    elif path.suffix in (*WEIGHT_SUFFIXES, *DATA_SUFFIXES):
        yield b""
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            yield text


def _places(*folders: Path) -> re.Pattern[bytes]:
    """Return a pattern of folders of this machine, as a whole path or the start of one."""
    patterns = {rb"(?!)"}
    for folder in folders:
        for spelled in {str(folder), json.dumps(str(folder))[1:-1]}:
            depth = len(folder.parts) - 1
            if depth == 0:
                continue  # the root
            # "/root" alone may be a token of a vocabulary
            rest = rb"(?![\w-]|\.\w)" if depth > 1 else rb"/[\w.-]"
            patterns.add(rb"(?<![\w.~-])" + re.escape(os.fsencode(spelled)) + rest)
    return re.compile(b"|".join(sorted(patterns)))
