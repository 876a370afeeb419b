"""Builds an exported graph in TensorRT-RTX on a machine without a GPU, and says what it became.

TensorRT-RTX has no Hopper target. Its engine proves that parser and builder take the graph and
that our plugins implement its nodes; it is never written anywhere. It runs in a process of its own
(rtx_worker.py): a builder may abort, has one logger a process, and its parser opens a library by a
name that the wheel lacks, which only LD_LIBRARY_PATH helps. Measured with 1.7.1.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dstools_converters.errors import DstoolsError, install_hint
from dstools_converters.export.folder import CHUNK, EXPERTS, LOCAL_EXPERTS, Export, GraphNote, Port
from dstools_converters.tables import Reader, json_table

WORKER = "dstools_converters.export.trt.rtx_worker"
LIBRARY = "libtensorrt_rtx.so"  # what the parser opens; the wheel has it with its version only
EXTRA = install_hint("check")
TARGETS = ("SM89", "SM120")  # the nearest below and above Hopper
MOST_ELEMENTS = 2**31 - 1  # of a tensor, until a Hopper build has shown otherwise
MOST_EXPERTS = 256  # of a rank, that kernels of the plugins take
DRAFTS = 1  # tokens of a row that are checked at once, besides its last
SAYS = "dstools: "  # before what plugins say on stderr, since RTX gives them no logger
TAIL = 2000  # characters of what a worker that died has said

Kind = Literal["PLUGIN_V3", "DIST_COLLECTIVE"]
Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, usual, most
Profile = dict[str, Sizes]


@dataclass(frozen=True)
class Request:
    """A graph to build, and for which targets."""

    graph: str  # a file
    weights: str  # the file that its external data are relative to
    plugins: str  # a library, "" for none
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...] = TARGETS
    is_aliasing: bool = True  # plugins may write into their inputs


@dataclass(frozen=True)
class Layer:
    """A layer that a plugin or a collective implements."""

    name: str  # of the node
    kind: Kind
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Built:
    """The outcome of a build: layers, inputs, outputs, engines, errors."""

    version: str
    is_registered: bool = True  # the library of plugins
    layer_count: int = 0
    layers: tuple[Layer, ...] = ()
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    engines: dict[str, int] = field(default_factory=dict)  # target -> bytes; 0: did not build
    errors: tuple[str, ...] = ()  # its own words
    warnings: tuple[str, ...] = ()  # of plugins


def is_installed() -> bool:
    """Return whether TensorRT-RTX is there."""
    return (
        find_spec("tensorrt_rtx_bindings") is not None
        and find_spec("tensorrt_rtx_libs") is not None
    )


def build(request: Request) -> Built:
    """Return what TensorRT-RTX makes of a graph; engines are thrown away.

    Raises DstoolsError where it is not installed, and where its process dies.
    """
    if not is_installed():
        raise DstoolsError("TensorRT-RTX, in which --check builds, is not installed", EXTRA)
    with TemporaryDirectory(prefix="dstools-rtx-") as name:
        folder = Path(name)
        asked, answer = folder / "request.json", folder / "built.json"
        asked.write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", WORKER, str(asked), str(answer)]
        done = subprocess.run(
            command, env=_environment(folder), capture_output=True, text=True, errors="replace"
        )
        table = json_table(answer)
        if done.returncode or table is None:
            said = (done.stderr or done.stdout).strip()[-TAIL:].splitlines()
            raise DstoolsError(
                f"{request.graph}: the process in which TensorRT-RTX builds died with "
                f"{done.returncode}: {said[-1] if said else 'and printed nothing'}",
                "more memory may help; else report it with the file",
            )
        lines = done.stderr.splitlines()
        warnings = tuple(line.removeprefix(SAYS) for line in lines if line.startswith(SAYS))
        return replace(Reader(str(answer), "json").read(Built, table), warnings=warnings)


def profiles(note: GraphNote, export: Export) -> tuple[Profile, Profile]:
    """Return the sizes of a graph's inputs for decoding, and for prompts in chunks.

    Experts that are inputs may be as many again as were exported: copies of those in demand.
    """
    pool = export.pool
    assert pool is not None
    rows, table = pool.max_batch_size, -(-pool.context_length // pool.page_size)
    tokens = (1, rows, rows * (1 + DRAFTS)), (1, max(CHUNK, rows), max(CHUNK, rows))
    decode, prefill = (
        {
            "num_tokens": count,
            "num_logits": count,
            "batch_size": (1, rows, rows),
            "batch_size_plus_1": (2, rows + 1, rows + 1),
            "max_num_blocks": (1, table, table),
            "num_blocks": (1, pool.num_blocks, pool.num_blocks),
            LOCAL_EXPERTS: _experts(note, export),
        }
        for count in tokens
    )
    return _profile(note.inputs, decode), _profile(note.inputs, prefill)


def _experts(note: GraphNote, export: Export) -> tuple[int, int, int]:
    """Return how many experts a rank may hold where they are inputs of its graph."""
    stacks = {port.name: port for port in note.inputs if port.shape[:1] == (LOCAL_EXPERTS,)}
    file = str(Path(note.file).with_name(EXPERTS))
    held = [weight.shape[0] for weight in export.weights.get(file, ()) if weight.name in stacks]
    usual = max(held, default=1)
    numbers = (math.prod(map(int, port.shape[1:])) for port in stacks.values())
    fits = MOST_ELEMENTS // max(numbers, default=1)
    return 1, usual, max(usual, min(2 * usual, MOST_EXPERTS, fits))


def _profile(inputs: Sequence[Port], named: dict[str, tuple[int, int, int]]) -> Profile:
    """Return the sizes of all inputs of which one varies."""
    profile: Profile = {}
    for port in inputs:
        if any(size in named for size in port.shape):
            least, usual, most = (
                tuple(named[size][which] if size in named else int(size) for size in port.shape)
                for which in range(3)
            )
            profile[port.name] = (least, usual, most)
    return profile


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a worker: with a link of the name that the parser opens.

    The loader reads LD_LIBRARY_PATH once, so the process must start with it.
    """
    spec = find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.origin is not None
    versioned = sorted(Path(spec.origin).parent.glob(f"{LIBRARY}.*"))
    if not versioned:
        raise DstoolsError(
            f"{spec.origin}: has no {LIBRARY} beside it", f"install it again: {EXTRA}"
        )
    (folder / LIBRARY).symlink_to(versioned[-1])
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
