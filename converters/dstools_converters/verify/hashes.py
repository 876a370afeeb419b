"""File hashes: against SHA256SUMS and what the Hub's client left, and for a push to the Hub."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.folder import EXPORT
from dstools_converters.sidefiles.carried import LATER, require_own
from dstools_converters.sidefiles.hub_sums import METADATA, hub_hashes
from dstools_converters.sidefiles.sums import HINT, SUMS, hash_file, read_sums

if TYPE_CHECKING:
    from hashlib import _Hash

HUB = "the Hub's client"
SHA256_DIGITS = 64
MAX_GIT_BYTES = 64 << 20  # the Hub keeps files over 10 MB in LFS or Xet, by their sha256
Kind = Literal["sha256", "git"]
LOST_HINT = f"copy or download it again; {SUMS} is of the folder as it was written"
HUB_HINT = (
    "download it again with `hf download --force-download`; if you changed or deleted it, "
    f"delete its .metadata in {METADATA}"
)


class Blob(NamedTuple):
    """The content of a file, here or on the Hub, known by its size and hashes.

    The Hub has the sha256 of files in LFS or Xet, and of others git's sha1 of "blob SIZE", a zero
    byte, and the content. Of a file here both are known, from MAX_GIT_BYTES on only the sha256.
    """

    nbytes: int
    sha256: str | None
    git_sha1: str | None

    @classmethod
    def of(cls, content: bytes) -> "Blob":
        """Return the hashes of the content of a small file."""
        sha256, git = _hasher("sha256", len(content)), _hasher("git", len(content))
        sha256.update(content)
        git.update(content)
        return cls(len(content), sha256.hexdigest(), git.hexdigest())

    def equals(self, other: "Blob") -> bool:
        """Return whether a file here and one on the Hub are the same."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return bool(self.git_sha1) and self.git_sha1 == other.git_sha1


@dataclass
class Digests:
    """Files that the caller of `verify` wants the hashes of, and those that could be read."""

    names: Collection[str]  # paths in the folder
    found: dict[str, Blob] = field(default_factory=dict)


@dataclass(frozen=True)
class Hashes:
    """The hashes that a folder comes with, by path in it; `sums` is None without SHA256SUMS."""

    sums: dict[str, str] | None = None
    hub: dict[str, str] = field(default_factory=dict)  # sha256, or git's sha1

    @property
    def names(self) -> set[str]:
        """Return every file that has one."""
        return (self.sums or {}).keys() | self.hub.keys()

    def of(self, name: str) -> list[str]:
        """Return the hashes of a file."""
        return [d for d in ((self.sums or {}).get(name), self.hub.get(name)) if d]


@dataclass
class Checked:
    """The result of hashing."""

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


class FileHash:
    """The hashes of one file, to be updated with all its bytes in order, or to fail."""

    def __init__(self, name: str, nbytes: int, kinds: Iterable[Kind]) -> None:
        self.name = name
        self.nbytes = nbytes
        self.hashers = {kind: _hasher(kind, nbytes) for kind in kinds}
        self.error: DstoolsError | None = None

    def update(self, data: memoryview) -> None:
        """Hash the next bytes, without the interpreter's lock."""
        for hasher in self.hashers.values():
            hasher.update(data)


class Hashing:
    """The hashing of a folder: every file that has a hash, and those in `digests`, each read once.

    Shards wait until they are read for their values, which `begin` and `end` take part in; whoever
    reads nothing else calls `hash_rest`.

    An error is a file unlike its hash, and a shard, index or config without one in SHA256SUMS; of
    other files without one, and of files that were downloaded and are gone, a warning tells.
    Unless `is_asked`, it is only said where there are hashes, and SHA256SUMS is not read.
    `progress` gets the bytes that are read here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_asked: bool = False,
        digests: Digests | None = None,
        progress: Progress = lambda nbytes: None,
    ) -> None:
        self.folder = folder
        self.digests = digests or Digests(())
        self.progress = progress
        self.is_asked = is_asked
        self._known = Hashes()
        self._result = Checked()
        if is_asked:
            self._read_known()
        names = sorted(self._known.names | {*self.digests.names})
        self.waiting = dict.fromkeys(name for name in names if (folder / name).is_file())
        self._faults = {  # by the name of the file
            name: [self._missing(name)] for name in names if name not in self.waiting
        }

    def _read_known(self) -> None:
        """Take over the hashes that the folder has, if any is of a file in it."""
        try:
            known = Hashes(read_sums(self.folder), hub_hashes(self.folder))
        except DstoolsError as error:
            message = str(error).removeprefix(f"{SUMS}: ")
            self._result.findings.append(Finding.error("sums", SUMS, message, error.hint))
            return
        if any((self.folder / name).is_file() for name in known.names):
            self._known = known
            return
        fault = "is missing" if known.sums is None else "lists no file of this folder"
        message = f"{fault}, and the Hub's client left no hashes of files here: nothing is checked"
        self._result.findings.append(Finding.error("sums", SUMS, message, HINT))

    def _missing(self, name: str) -> Finding:
        where = printable(name)
        if name in (self._known.sums or {}):
            message = f"is not a file of this folder, but {SUMS} lists it"
            return Finding.error("sum-missing", where, message, LOST_HINT)
        if name in self._known.hub:
            message = "was downloaded from the Hub, and is not a file of this folder any more"
            return Finding.warning("sum-missing", where, message, HUB_HINT)
        return Finding.error("sum-missing", where, "is not a file of this folder", "restore it")

    # ------------------------------------------------------------------------------- one file

    def begin(self, name: str) -> FileHash:
        """Return the hash of a file that waits, to be updated by whoever reads it."""
        del self.waiting[name]
        nbytes = (self.folder / name).stat().st_size
        kinds = {_kind(digest) for digest in self._known.of(name)}
        if name in self.digests.names:
            kinds |= {"sha256", "git"} if nbytes < MAX_GIT_BYTES else {"sha256"}
        file = FileHash(name, nbytes, kinds)
        try:
            require_own(self.folder / name, self.folder)
        except DstoolsError as error:
            file.error = error
        return file

    def end(self, file: FileHash) -> None:
        """Compare the hashes of a file that was read, or report why it was not."""
        name, where = file.name, printable(file.name)
        if file.error is not None:
            message = str(file.error).removeprefix(f"{self.folder / name}: ")
            message = message.removeprefix(f"{where}: ")
            fault = Finding.error("sum-unread", where, message, file.error.hint)
            self._faults[name] = [fault]
            return
        made = {kind: hasher.hexdigest() for kind, hasher in file.hashers.items()}
        self._faults[name] = list(_compare(name, {*made.values()}, self._known))
        if name in self.digests.names:
            self.digests.found[name] = Blob(file.nbytes, made["sha256"], made.get("git"))

    def hash(self, name: str, progress: Progress) -> None:
        """Hash a file; nothing if it does not wait."""
        if name not in self.waiting:
            return
        file = self.begin(name)
        if file.error is None:
            try:
                hash_file(self.folder / name, file.hashers.values(), progress)
            except DstoolsError as error:
                file.error = error
        self.end(file)

    # ------------------------------------------------------------------------------ all files

    def hash_files(self, workers: int) -> None:
        """Hash everything but the shards."""
        self._hash([name for name in self.waiting if not _is_shard(name)], workers)

    def hash_rest(self, workers: int) -> None:
        """Hash whatever still waits."""
        self._hash([*self.waiting], workers)

    def _hash(self, names: list[str], workers: int) -> None:
        with ThreadPoolExecutor(workers, "sums") as pool:
            for _ in pool.map(lambda name: self.hash(name, self.progress), names):
                pass

    def result(self) -> Checked:
        """Return what hashing found, once nothing waits."""
        result, known = self._result, self._known
        if not self.is_asked:
            origins = [SUMS] * os.path.lexists(self.folder / SUMS)
            origins += [HUB] * bool(hub_hashes(self.folder))
            if origins:
                result.not_checked.append(f"file hashes of {' and '.join(origins)}: --sums")
        for name in sorted(self._faults):
            result.findings += self._faults[name]
        if known.names:
            _look_for_unlisted(self.folder, known, result)
        for digests, origin in ((known.sums, SUMS), (known.hub, HUB)):
            if names := sorted(name for name in digests or {} if (self.folder / name).is_file()):
                result.checked.append(f"{_hashes_of(names)} from {origin}")
        return result


def bytes_to_read(
    folder: Path,
    *,
    checks_sums: bool = False,
    digests: Digests | None = None,
    headers_only: bool = False,
) -> int:
    """Return how many bytes `verify` reads with these options; each file counts once."""
    hashing = Hashing(folder, is_asked=checks_sums, digests=digests)
    paths = {folder / name for name in hashing.waiting}
    if (folder / EXPORT).exists():
        kinds = ("*.data", "*.safetensors") if not headers_only else ()
        paths |= {path for kind in kinds for path in folder.rglob(kind) if path.is_file()}
    elif not headers_only:
        paths |= {path for path in folder.glob("*.safetensors") if path.is_file()}
    return sum(path.stat().st_size for path in paths)


def _is_shard(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def _kind(digest: str) -> Kind:
    return "sha256" if len(digest) == SHA256_DIGITS else "git"


def _hasher(kind: Kind, nbytes: int) -> "_Hash":
    """Return a sha256, or git's sha1 of a file of `nbytes`."""
    if kind == "sha256":
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
