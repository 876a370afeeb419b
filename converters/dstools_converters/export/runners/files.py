"""Checks that files of an exported folder are those that were exported, before they are opened.

Graphs and configs are compared by their sha256; of weights, which may be many gigabytes, the size.
"""

from pathlib import Path

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import Export, content_sha256
from dstools_converters.files import LFS_HINT, is_lfs_pointer, real


def require_same(folder: Path, export: Export, *names: str) -> None:
    """Raise DstoolsError unless these files are the ones that export.json lists."""
    for name in names:
        require_file(path := folder / name)
        if content_sha256(path) != export.files.get(name):
            raise DstoolsError(
                f"{path}: is not the file that was exported, by its sha256", _advice(path)
            )


def require_size(path: Path, nbytes: int) -> None:
    """Raise DstoolsError unless a file of weights is as large as the one that was exported."""
    require_file(path)
    if path.stat().st_size != nbytes:
        raise DstoolsError(
            f"{path}: has {path.stat().st_size:,} bytes; {nbytes:,} were exported", _advice(path)
        )


def require_file(path: Path) -> None:
    """Raise DstoolsError unless there is a file, and not a pointer to one."""
    if not path.is_file():
        where = f", nor {real(path)}, where the link leads" if path.is_symlink() else ""
        raise DstoolsError(f"{path}: there is no such file{where}", _advice(path))
    if is_lfs_pointer(path):
        raise DstoolsError(f"{path}: is a Git LFS pointer, not the file", LFS_HINT)


def require_beside(data: Path, graph: Path) -> None:
    """Raise DstoolsError where ONNX Runtime does not follow the link that is a file of weights.

    It has to be in the folder of the graph, or in that of the file that the graph is a link to, as
    in the Hub's cache. Source: microsoft/onnxruntime#27374.
    """
    place, folders = real(data), (real(graph.parent), real(graph).parent)
    if not any(place.is_relative_to(folder) for folder in folders):
        raise DstoolsError(
            f"{data}: is a link to {place}, where ONNX Runtime does not read it",
            f"copy the file here, or make {graph.name} a link to a copy in {place.parent}",
        )


def _advice(path: Path) -> str:
    return f"copy it again; dstools verify {path.parent} names all that is damaged"
