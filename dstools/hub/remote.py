"""What a repository of the Hub holds, compared file by file with what it should hold."""

from collections.abc import Iterable, Mapping
from hashlib import sha1, sha256
from typing import NamedTuple

from huggingface_hub import RepoFile

from dstools.hub.client import Hub
from dstools.hub.selection import GITATTRIBUTES, is_weights
from dstools_converters.errors import printable

SHOWN = 5


class Blob(NamedTuple):
    """The content of a file: the hashes that the Hub knows of it, or those of a local file.

    The Hub has the sha256 of files in LFS or Xet, and of others git's sha1 of "blob SIZE", a zero
    byte, and the content.
    """

    size: int
    sha256: str | None
    git_sha1: str | None

    def equals(self, other: "Blob") -> bool:
        """Return whether a local and a remote file are the same."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return bool(self.git_sha1) and self.git_sha1 == other.git_sha1


def blob_of(content: bytes) -> Blob:
    """Return the hashes of the content of a small file."""
    git = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return Blob(len(content), sha256(content).hexdigest(), git.hexdigest())


Tree = dict[str, Blob]  # by the path in the repository


def read_tree(hub: Hub, revision: str) -> Tree:
    """Return the files of a revision: a branch, a commit or refs/pr/N.

    Without .gitattributes: the Hub adds a line to it in the commit of a large file that none of its
    patterns match.
    """

    def read() -> Tree:
        entries = hub.api.list_repo_tree(hub.repo, recursive=True, revision=revision)
        return {
            entry.path: Blob(
                entry.size,
                entry.lfs.sha256 if entry.lfs else None,
                None if entry.lfs else entry.blob_id,  # of an LFS file, that of its pointer
            )
            for entry in entries
            if isinstance(entry, RepoFile) and entry.path != GITATTRIBUTES
        }

    return hub.call(f"list the files of {hub.repo}", read)


def contradictions(tree: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return weights and indexes of the repository that a new set of files does not name.

    transformers loads an old model.safetensors before it looks at the index of new shards.
    """
    return sorted(name for name in set(tree).difference(names) if is_weights(name))


def differences(found: Tree, wanted: Mapping[str, Blob]) -> list[str]:
    """Return what is missing, other and too much in a repository, sorted by file."""
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            lines.append(f"{printable(name)} is missing")
        elif name not in wanted:
            lines.append(f"{printable(name)} should not be there")
        elif not wanted[name].equals(found[name]):
            lines.append(f"{printable(name)} differs")
    return lines


def some(lines: list[str]) -> str:
    """Return lines as one, and how many more there are than can be shown."""
    more = f" (and {len(lines) - SHOWN} more)" if lines[SHOWN:] else ""
    return "; ".join(lines[:SHOWN]) + more
