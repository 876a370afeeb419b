"""The graphs of an exported folder: where they say their weights are, and what they consist of."""

from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join

from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.folder import EXPERTS, EXPORT, Export, GraphNote, Weight
from dstools_converters.verify.exported.onnx_file import Initializer, Outline, read_outline

DOMAIN = "dstools"  # of the ops that a plugin implements
COLLECTIVE = "DistCollective"
MADE_AGAIN = "export the model again"


def check_graphs(folder: Path, export: Export) -> Iterator[Finding]:
    """Yield where a graph and export.json contradict each other."""
    notes = {note.file: note for note in export.graphs}
    files = [name for name in export.files if name.endswith(".onnx")]
    for name in sorted(notes.keys() - export.files.keys()):
        message = f"is a graph of {EXPORT}, and not among its files"
        yield Finding.error("graph-missing", printable(name), message, MADE_AGAIN)
    listed = {file: {w.name: w for w in weights} for file, weights in export.weights.items()}
    used: dict[str, set[str]] = {name: set() for name in export.weights}
    is_whole = True
    for name in files:
        if not (folder / name).is_file():
            is_whole = False
            continue
        try:
            outline = read_outline(folder / name)
        except DstoolsError as error:
            is_whole = False
            message = str(error).removeprefix(f"{folder / name}: ")
            yield Finding.error("graph-unreadable", printable(name), message, error.hint)
            continue
        for initializer in outline.initializers:
            yield from _check_initializer(folder, export, name, initializer, listed)
            used.get(join(dirname(name), initializer.location), set()).add(initializer.name)
        if name in notes:
            yield from _check_note(notes[name], outline)
            experts = join(dirname(name), EXPERTS)
            used.get(experts, set()).update(outline.inputs)
        elif export.kind == "onnx":
            message = f"{EXPORT} does not say what it consists of"
            yield Finding.error("graph-note", printable(name), message, MADE_AGAIN)
    if is_whole and files:
        yield from _unused(export, used)


def _check_initializer(
    folder: Path,
    export: Export,
    graph: str,
    tensor: Initializer,
    listed: dict[str, dict[str, Weight]],
) -> Iterator[Finding]:
    """Yield where a graph looks for a weight that is not there."""
    if not tensor.location:
        return  # the graph has it itself, and the sha256 of the graph is its own
    where = f"{graph}: {printable(tensor.name)}"
    file = join(dirname(graph), tensor.location)
    if tensor.location.startswith("/") or ".." in tensor.location.split("/"):
        message = f"is in {printable(tensor.location)}, outside of the graph's folder"
        hint = "ONNX Runtime refuses that; export the model again"
        yield Finding.error("graph-outside", where, message, hint)
        return
    if file not in listed:
        end = tensor.offset + (tensor.nbytes or 0)
        path = folder / file
        if file not in export.files:
            message = f"is in {printable(file)}, which {EXPORT} does not list"
            yield Finding.error("graph-file", where, message, MADE_AGAIN)
        elif path.is_file() and path.stat().st_size < end:
            message = f"ends at {end}, and {printable(file)} at {path.stat().st_size}"
            yield Finding.error("graph-place", where, message, MADE_AGAIN)
        return
    weight = listed[file].get(tensor.name)
    if weight is None:
        message = f"is in {printable(file)}, where {EXPORT} lists no such tensor"
        yield Finding.error("graph-place", where, message, MADE_AGAIN)
    elif difference := _difference(tensor, weight):
        message = f"{difference} in {EXPORT}"
        yield Finding.error("graph-place", where, message, MADE_AGAIN)


def _difference(tensor: Initializer, listed: Weight) -> str:
    """Return in what a graph and the list contradict each other, "" if in nothing."""
    if tensor.dtype != listed.dtype:
        return f"is {tensor.dtype}, {listed.dtype}"
    if tensor.shape != listed.shape:
        return f"is {list(tensor.shape)}, {list(listed.shape)}"
    if tensor.offset != listed.offset:
        return f"begins at {tensor.offset}, at {listed.offset}"
    if tensor.nbytes not in (None, listed.nbytes):
        return f"takes {tensor.nbytes} bytes, {listed.nbytes}"
    return ""


def _check_note(note: GraphNote, outline: Outline) -> Iterator[Finding]:
    """Yield where a graph does not consist of what export.json says."""
    where = printable(note.file)
    ops = {op: count for (domain, op), count in outline.nodes.items() if domain == DOMAIN}
    collectives = ops.pop(COLLECTIVE, 0)
    if ops != note.plugins:
        message = f"has the plugin nodes {_counts(ops)}, {_counts(note.plugins)} in {EXPORT}"
        yield Finding.error("graph-ops", where, message, MADE_AGAIN)
    if collectives != note.collectives:
        message = f"has {collectives} collectives, {note.collectives} in {EXPORT}"
        yield Finding.error("graph-ops", where, message, MADE_AGAIN)
    for kind, there, listed in (
        ("inputs", outline.inputs, note.inputs),
        ("outputs", outline.outputs, note.outputs),
    ):
        names = [port.name for port in listed]
        if there != names:
            other = sorted(set(there) ^ set(names))
            what = ", ".join(map(printable, other[:3])) or "their order"
            message = f"its {kind} are not those of {EXPORT}: {what}"
            yield Finding.error("graph-ports", where, message, MADE_AGAIN)


def _counts(ops: dict[str, int]) -> str:
    return ", ".join(f"{printable(op)} {ops[op]}" for op in sorted(ops)) or "none"


def _unused(export: Export, used: dict[str, set[str]]) -> Iterator[Finding]:
    """Yield tensors that no graph reads."""
    if export.kind == "deepseek-inference":
        return
    for file, weights in export.weights.items():
        for weight in weights:
            if weight.name not in used[file]:
                message = "no graph reads it"
                where = f"{file}: {printable(weight.name)}"
                yield Finding.error("weight-unused", where, message, MADE_AGAIN)
