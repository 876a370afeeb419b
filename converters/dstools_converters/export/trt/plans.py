"""The engines of an exported folder, of which only those that export.json names are loaded."""

from importlib import import_module
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.export.folder import DRAFT_GRAPH, GRAPH, Export, Pool, content_sha256
from dstools_converters.export.runners.limits import require_limits

BUILD = "build one on this machine, in a new folder: dstools export CKPT NEW --onnx --trt"
CPU = "without --device, graphs run on a CPU"


def import_tensorrt() -> Any:
    """Return the module tensorrt; raises DstoolsError where it, or a library of it, is missing."""
    try:
        return import_module("tensorrt")
    except (ImportError, OSError) as error:
        reason = printable(" ".join(str(error).split()))
        raise DstoolsError(
            f"running an engine needs TensorRT: {reason}",
            "pip install tensorrt, in the version that built the engine",
        ) from error


def plan_of(graph: str) -> str:
    """Return the name of the engine that was built from a graph."""
    return str(Path(graph).with_suffix(".plan"))


def require_plans(folder: Path, export: Export, *, mtp: bool) -> tuple[Pool, list[Path]]:
    """Return the caches that a folder is made for, and its engines, if it has them.

    Raises DstoolsError where they are not there, or not in export.json; reads none of them.
    """
    limits = require_limits(folder, export, mtp=mtp)
    names = [plan_of(graph) for graph in ((GRAPH, DRAFT_GRAPH) if mtp else (GRAPH,))]
    for name in names:
        _known_sha256(folder, export, name)
    return limits, [folder / name for name in names]


def read_plan(folder: Path, export: Export, name: str) -> bytes:
    """Return an engine, the bytes whose sha256 is in export.json.

    An engine holds code that runs on load, so another one is refused: DstoolsError.
    """
    known = _known_sha256(folder, export, name)
    content = (folder / name).read_bytes()
    if content_sha256(content) != known:
        raise DstoolsError(
            f"{folder / name}: is not the engine that export.json names, so it is not loaded",
            f"copy it again, or {BUILD}",
        )
    return content


def _known_sha256(folder: Path, export: Export, name: str) -> str:
    known, is_there = export.engines.get(name), (folder / name).is_file()
    if known is not None and is_there:
        return known
    if is_there:
        raise DstoolsError(
            f"{folder / name}: export.json does not name this engine, so it is not loaded", BUILD
        )
    raise DstoolsError(
        f"{folder / name}: there is no such engine, and GPUs run no other", f"{BUILD}; {CPU}"
    )
