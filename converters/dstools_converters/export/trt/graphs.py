"""Holds the graphs of a folder to its export.json, before anything is built from them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dstools_converters.errors import ShortfallError
from dstools_converters.export.folder import Export, Port, Weight, content_sha256
from dstools_converters.export.trt.nodes import REPORT, require_nodes, types_of

AGAIN = "export the model again"
ANY = "-1"  # how TensorRT writes a size that varies


def require_graphs(folder: Path, export: Export) -> None:
    """Raise ShortfallError where files, graphs and export.json disagree, or plugins would refuse.

    A file whose bytes are not those of export.json is named last: by then, more is known of it.
    """
    assert export.pool is not None
    for path, weights in export.weights.items():
        _require_length(folder / path, weights)
    for note in export.graphs:
        file = folder / note.file
        model = read_graph(file)
        require_nodes(str(file), model, note, export.pool)
        types = types_of(model.graph)
        for kind, values, wanted in (
            ("input", model.graph.input, note.inputs),
            ("output", model.graph.output, note.outputs),
        ):
            ports = [
                Port(value.name, types[value.name].dtype, tuple(map(str, types[value.name].shape)))
                for value in values
            ]
            require_ports(str(file), kind, ports, wanted)
        _require_weights(file, model, _beside(note.file, export.weights))
        if content_sha256(file) != export.files.get(note.file):
            raise ShortfallError(f"{file}: its sha256 is not that of export.json", AGAIN)


def read_graph(file: Path) -> onnx.ModelProto:
    """Return a graph without its weights; raise ShortfallError where there is none."""
    try:
        return onnx.load(file, load_external_data=False)
    except FileNotFoundError as error:
        raise ShortfallError(f"{file}: is missing", AGAIN) from error
    except DecodeError as error:
        raise ShortfallError(f"{file}: is not an ONNX file", AGAIN) from error


def require_ports(file: str, kind: str, ports: Iterable[Port], wanted: Iterable[Port]) -> None:
    """Raise ShortfallError where inputs or outputs are others than export.json says."""
    have, want = {port.name: port for port in ports}, {port.name: port for port in wanted}
    if list(have) != list(want):
        raise ShortfallError(
            f"{file}: its {kind}s are {', '.join(have)}; export.json says {', '.join(want)}", REPORT
        )
    for name, port in have.items():
        if port.dtype != want[name].dtype or not is_shape(port.shape, want[name].shape):
            raise ShortfallError(
                f"{file}: {kind} {name} is {_told(port)}; export.json says {_told(want[name])}",
                REPORT,
            )


def is_shape(shape: Iterable[str], wanted: Iterable[str]) -> bool:
    """Return whether shapes agree; ANY matches any size that varies."""
    have, want = list(shape), list(wanted)
    return len(have) == len(want) and all(
        a == b or (a == ANY and not b.isdecimal()) for a, b in zip(have, want, strict=True)
    )


def _told(port: Port) -> str:
    return f"{port.dtype} [{', '.join(port.shape)}]"


def _require_length(file: Path, weights: Iterable[Weight]) -> None:
    """Raise ShortfallError where a file of weights is cut short: ONNX Runtime would map it."""
    last = max(weights, key=lambda weight: weight.offset + weight.nbytes)
    there = file.stat().st_size if file.is_file() else 0
    if there < last.offset + last.nbytes:
        raise ShortfallError(
            f"{file}: has {there} bytes, and {last.name} ends at {last.offset + last.nbytes}",
            "copy the file again, or export the model again",
        )


def _beside(path: str, weights: Mapping[str, tuple[Weight, ...]]) -> dict[str, Weight]:
    """Return the weights in the folder of a graph, by name."""
    place = path.rpartition("/")[0]
    own = (entries for file, entries in weights.items() if file.rpartition("/")[0] == place)
    return {weight.name: weight for entries in own for weight in entries}


def _require_weights(file: Path, model: onnx.ModelProto, weights: Mapping[str, Weight]) -> None:
    """Raise ShortfallError where a graph looks for weights elsewhere than export.json says."""
    for tensor in model.graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        weight = weights.get(tensor.name)
        if weight is None or not told:
            raise ShortfallError(f"{file}: export.json lists no weight {tensor.name}", REPORT)
        shape, offset, length = tuple(tensor.dims), int(told["offset"]), int(told["length"])
        if (shape, offset, length) != (weight.shape, weight.offset, weight.nbytes):
            raise ShortfallError(
                f"{file}: {tensor.name} is {list(shape)}, {length} bytes at {offset}; export.json "
                f"says {list(weight.shape)}, {weight.nbytes} at {weight.offset}",
                REPORT,
            )
