"""File hashes against SHA256SUMS and against what the Hub's client left, each file read once."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.sidefiles.carried import LATER, require_own
from dstools_converters.sidefiles.hub_sums import METADATA, hub_hashes
from dstools_converters.sidefiles.sums import HINT, SUMS, hash_file, read_sums

if TYPE_CHECKING:
    from hashlib import _Hash

HUB = "the Hub's client"
SHA256_DIGITS = 64
LOST_HINT = f"copy or download it again; {SUMS} is of the folder as it was written"
HUB_HINT = (
    "download it again with `hf download --force-download`; if you changed or deleted it, "
    f"delete its .metadata in {METADATA}"
)


@dataclass(frozen=True)
class Hashes:
    """The hashes that a folder comes with, by path in it; `sums` is None without SHA256SUMS."""

    sums: dict[str, str] | None
    hub: dict[str, str]  # sha256, or git's sha1

    @property
    def names(self) -> list[str]:
        """Return every file that has one, sorted."""
        return sorted((self.sums or {}).keys() | self.hub.keys())


@dataclass
class Checked:
    """The result of `check_hashes`."""

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def check_hashes(
    folder: Path, *, is_asked: bool, workers: int, progress: Progress = lambda nbytes: None
) -> Checked:
    """Hash every file that SHA256SUMS or the Hub's client has a hash of, and name those unlike it.

    An error is also a shard, index or config without a hash in SHA256SUMS; of other files without
    one, and of files that were downloaded and are gone, a warning tells.
    Unless `is_asked`, only say where there are hashes, and do not read SHA256SUMS.
    `progress` gets the bytes that are read.
    """
    result = Checked()
    if not is_asked:
        origins = [SUMS] * os.path.lexists(folder / SUMS)
        origins += [HUB] * bool(hub_hashes(folder))
        if origins:
            result.not_checked.append(f"file hashes of {' and '.join(origins)}: --sums")
        return result
    try:
        hashes = Hashes(read_sums(folder), hub_hashes(folder))
    except DstoolsError as error:
        message = str(error).removeprefix(f"{SUMS}: ")
        result.findings.append(Finding.error("sums", SUMS, message, error.hint))
        return result
    present = {name for name in hashes.names if (folder / name).is_file()}
    if not present:
        fault = "is missing" if hashes.sums is None else "lists no file of this folder"
        message = f"{fault}, and the Hub's client left no hashes of files here: nothing is checked"
        result.findings.append(Finding.error("sums", SUMS, message, HINT))
        return result
    with ThreadPoolExecutor(workers, "sums") as pool:
        for findings in pool.map(lambda n: _check_file(folder, n, hashes, progress), hashes.names):
            result.findings += findings
    _look_for_unlisted(folder, hashes, result)
    for digests, origin in ((hashes.sums, SUMS), (hashes.hub, HUB)):
        if names := sorted(present & (digests or {}).keys()):
            result.checked.append(f"{_hashes_of(names)} from {origin}")
    return result


def hashed_bytes(folder: Path) -> int:
    """Return how many bytes `check_hashes` reads; 0 where it reads none."""
    try:
        names = Hashes(read_sums(folder), hub_hashes(folder)).names
    except DstoolsError:
        return 0
    paths = [folder / name for name in names]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _check_file(folder: Path, name: str, hashes: Hashes, progress: Progress) -> list[Finding]:
    """Return what is wrong with a file that has a hash."""
    path, where = folder / name, printable(name)
    if not path.is_file():
        if name in (hashes.sums or {}):
            message = f"is not a file of this folder, but {SUMS} lists it"
            return [Finding.error("sum-missing", where, message, LOST_HINT)]
        message = "was downloaded from the Hub, and is not a file of this folder any more"
        return [Finding.warning("sum-missing", where, message, HUB_HINT)]
    digests = [d for d in ((hashes.sums or {}).get(name), hashes.hub.get(name)) if d]
    hashers = {len(digest): _hasher(digest, path.stat().st_size) for digest in digests}
    try:
        require_own(path, folder)
        hash_file(path, hashers.values(), progress)
    except DstoolsError as error:
        message = str(error).removeprefix(f"{path}: ").removeprefix(f"{where}: ")
        return [Finding.error("sum-unread", where, message, error.hint)]
    return list(_compare(name, {hasher.hexdigest() for hasher in hashers.values()}, hashes))


def _hasher(digest: str, nbytes: int) -> "_Hash":
    """Return the hash that `digest` is of: sha256, or git's sha1 of a file of `nbytes`."""
    if len(digest) == SHA256_DIGITS:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)


def _compare(name: str, found: set[str], hashes: Hashes) -> Iterator[Finding]:
    where = printable(name)
    if hashes.sums and name in hashes.sums and hashes.sums[name] not in found:
        message = f"is not the file that {SUMS} lists: its sha256 differs"
        yield Finding.error("sum-differs", where, message, LOST_HINT)
    if name in hashes.hub and hashes.hub[name] not in found:
        message = "is not the file on the Hub: its hash is not the one that the Hub's client left"
        yield Finding.error("sum-differs", where, message, HUB_HINT)


def _look_for_unlisted(folder: Path, hashes: Hashes, result: Checked) -> None:
    """Add the files without a hash: a finding each, if the folder has SHA256SUMS.

    It is an error for what every loader reads: someone may have put that there.
    """
    hashed = {SUMS, *LATER, *hashes.names}
    names = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if not path.is_dir() and not is_hidden and str(inside) not in hashed:
            names.append(str(inside))
    if hashes.sums is None and names:
        result.not_checked.append(f"{_hashes_of(names)}: the Hub's client left none")
        return
    message = f"is not in {SUMS}: it was added later, or the list is of another folder"
    for name in names if hashes.sums is not None else ():
        is_loaded = name in ("config.json", INDEX) or name.endswith(".safetensors")
        if is_loaded and "/" not in name:
            finding = Finding.error("sum-unlisted", printable(name), message, HINT)
        else:
            hint = "remove it if you do not know it"
            finding = Finding.warning("sum-unlisted", printable(name), message, hint)
        result.findings.append(finding)


def _hashes_of(names: list[str]) -> str:
    return f"hashes of {len(names)} files" if names[1:] else f"the hash of {printable(names[0])}"
