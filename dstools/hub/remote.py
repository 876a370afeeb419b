"""What a repository of the Hub holds, compared file by file with what it should hold."""

from collections.abc import Iterable, Mapping

from huggingface_hub import RepoFile

from dstools.hub.client import Hub
from dstools.hub.selection import GITATTRIBUTES, is_weights
from dstools_converters.errors import printable
from dstools_converters.verify.hashes import Blob

SHOWN = 5


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
