"""The checks of `dstools export --check`, of a folder that was just written.

    graph            export.json, graphs and weights agree; each node is what its plugin takes
    tensorrt-rtx     each graph builds with the library of plugins, which implement its nodes
    without plugins  each graph builds with its functions inlined and no library
    onnxruntime      its logits are those of the checkpoint, with the optimiser and without

In this order, so that our own words come before a builder's. Verdicts go into export.json; what
RTX builds is thrown away. They prove the contract with TensorRT's parser and builder: no kernel of
a plugin runs, and nothing is said of Hopper.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx.inliner
import torch

from dstools_converters.errors import DstoolsError, ShortfallError, size
from dstools_converters.export.deepseek import Job
from dstools_converters.export.folder import EXPORT, Export, GraphNote, Verdict
from dstools_converters.export.functions import DOMAIN
from dstools_converters.export.graph import is_of_experts
from dstools_converters.export.sources import DTYPES, sources
from dstools_converters.export.trt.functions_flat import flattened
from dstools_converters.export.trt.graphs import is_shape, read_graph, require_graphs, require_ports
from dstools_converters.export.trt.logits import require_same_logits
from dstools_converters.export.trt.nodes import REPORT, types_of
from dstools_converters.export.trt.rtx import TARGETS, Built, Request, build, profiles
from dstools_converters.files import replace_file
from dstools_converters.runtime.weights import held_bytes

BUILDER_FACTOR = 2  # of the baked weights, that RTX takes; measured at 2.4 GB
SHARE = 0.5  # of the free memory, that a check may take
ITEMSIZES = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def check(folder: Path, export: Export, job: Job, library: Path) -> Export:
    """Check a folder, and return its export.json with the verdicts, which is written.

    job: the export that wrote it; library: the plugins. What they warn of is put among the notes.
    Raises DstoolsError where this machine cannot check it, ShortfallError for the first check that
    fails; export.json then says which.
    """
    if not library.is_file():
        raise DstoolsError(f"{library}: is missing", "build the library with --plugins")
    notes = list(export.notes)
    checks: dict[str, Callable[[], None]] = {
        "graph": lambda: require_graphs(folder, export),
        "tensorrt-rtx": lambda: _require_builds(folder, export, library, notes),
        "without plugins": lambda: _require_inlined(folder, export),
    }
    if is_alone(job):
        checks["onnxruntime"] = lambda: require_same_logits(folder, export, job)
    verdicts: dict[str, Verdict] = dict.fromkeys((*checks, "onnxruntime"), "not run")
    try:
        for name, require in checks.items():
            try:
                require()
            except ShortfallError:
                verdicts[name] = "failed"
                raise
            verdicts[name] = "passed"
    finally:
        checked = replace(export, checks=export.checks | verdicts, notes=tuple(notes))
        replace_file(folder / EXPORT, checked.to_bytes())
    return checked


def is_alone(job: Job) -> bool:
    """Return whether one graph of a folder gives logits: it is of one rank, experts included."""
    return job.form.ranks.count == 1 and not job.form.expert_inputs


def require_memory(job: Job, free: int) -> None:
    """Raise DstoolsError where checking what a job writes takes more than SHARE of `free` bytes."""
    baked = baked_bytes(job)
    takes, why = BUILDER_FACTOR * baked, f"TensorRT-RTX takes twice the {size(baked)} of weights"
    held = held_bytes(job.inventory, torch.float32, keeps_codes=False) if is_alone(job) else 0
    if 2 * held > takes:  # of the reference, and of ONNX Runtime
        takes, why = 2 * held, f"logits are compared with twice {size(held)} of FP32 weights"
    if takes > SHARE * free:
        raise DstoolsError(
            f"--check: {why}, {size(takes)}, more than half of the {size(free)} that are free",
            "leave --check out, and give the same command with it where there is more memory; or "
            "export for more ranks",
        )


def baked_bytes(job: Job) -> int:
    """Return the bytes of a rank's weights but for those that are inputs."""
    held = sources(job.inventory, job.form, 0).items()
    return sum(
        source.numel * ITEMSIZES[source.dtype]
        for name, source in held
        if not (job.form.expert_inputs and is_of_experts(name))
    )


def _require_builds(folder: Path, export: Export, library: Path, notes: list[str]) -> None:
    """Raise ShortfallError where RTX does not build a graph, or makes something else of it.

    What the plugins warn of is added to `notes`, once.
    """
    is_aliased = False
    for note in export.graphs:
        file = folder / note.file
        request = Request(str(file), str(file), str(library), profiles(note, export))
        built = build(request)
        notes += [said for said in built.warnings if said not in notes]
        require_built(file, built, str(library))
        require_network(file, read_graph(file), note, built)
        if "DsMlaAttention" in note.plugins and not is_aliased:  # the library is that of all graphs
            _require_aliasing(request, library)
            is_aliased = True


def _require_aliasing(request: Request, library: Path) -> None:
    """Raise ShortfallError where plugins build without leave to write into their inputs."""
    refused = build(replace(request, targets=TARGETS[:1], is_aliasing=False))
    if not any("liased" in error for error in refused.errors):
        raise ShortfallError(
            f"{request.graph}: {library} does not alias the caches: every step would copy them",
            "build the library of this dstools with --plugins",
        )


def _require_inlined(folder: Path, export: Export) -> None:
    """Raise ShortfallError where RTX does not build a graph without plugins.

    It refuses loops over what the shipped bodies need there, so attention and experts are flat;
    and it cannot name the Dequantize layers of a function used twice, so functions are inlined.
    """
    for note in export.graphs:
        file = folder / note.file
        model = onnx.inliner.inline_local_functions(flattened(read_graph(file)))
        with TemporaryDirectory(prefix="dstools-inlined-") as temporary:
            inlined = Path(temporary) / file.name
            inlined.write_bytes(model.SerializeToString())
            sizes = profiles(note, export)[1:]
            built = build(Request(str(inlined), str(file), "", sizes, TARGETS[:1]))
        require_built(file, built, "")


def require_built(file: Path, built: Built, library: str) -> None:
    """Raise ShortfallError where a graph did not parse, or build for all targets."""
    what = "with the plugins" if library else "with its functions inlined"
    if not built.is_registered:
        raise ShortfallError(
            f"{library}: TensorRT-RTX {built.version} takes no plugin from it",
            "build it again with --plugins",
        )
    said = f": {built.errors[0]}" if built.errors else ""
    if not built.layer_count:
        raise ShortfallError(
            f"{file}: TensorRT-RTX {built.version} does not parse it {what}{said}", REPORT
        )
    failed = [target for target, nbytes in built.engines.items() if not nbytes]
    if failed:
        raise ShortfallError(
            f"{file}: TensorRT-RTX {built.version} does not build it for {', '.join(failed)} "
            f"{what}{said}",
            REPORT,
        )


def require_network(file: Path, model: onnx.ModelProto, note: GraphNote, built: Built) -> None:
    """Raise ShortfallError where layers, inputs or outputs are not those of export.json.

    A node whose plugin TensorRT did not find becomes the layers of its function, silently.
    """
    types, layers = types_of(model.graph), {layer.name: layer for layer in built.layers}
    kinds = Counter[str](layer.kind for layer in built.layers)
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        layer = layers.get(node.name)
        kind = "DIST_COLLECTIVE" if node.op_type == "DistCollective" else "PLUGIN_V3"
        where = f"{file}: node {node.name} ({node.op_type})"
        if layer is None or layer.kind != kind:
            raise ShortfallError(
                f"{where}: TensorRT took its function for it, no {kind} of that name", REPORT
            )
        for name, port in zip(node.output, layer.outputs, strict=True):
            dtype, shape = types[name]
            if port.dtype != dtype or not is_shape(port.shape, map(str, shape)):
                raise ShortfallError(
                    f"{where}: the plugin gives {port.dtype} [{', '.join(port.shape)}] for {name}, "
                    f"not {dtype} {list(shape)}",
                    REPORT,
                )
    plugins, collectives = kinds["PLUGIN_V3"], kinds["DIST_COLLECTIVE"]
    if (plugins, collectives) != (sum(note.plugins.values()), note.collectives):
        raise ShortfallError(
            f"{file}: TensorRT has {plugins} plugins and {collectives} collectives; export.json "
            f"says {sum(note.plugins.values())} and {note.collectives}",
            REPORT,
        )
    require_ports(str(file), "input", built.inputs, note.inputs)
    require_ports(str(file), "output", built.outputs, note.outputs)
