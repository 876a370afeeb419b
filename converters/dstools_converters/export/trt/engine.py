"""Engines of genuine TensorRT for Hopper, which only a machine with both can build.

    model.plan           the engine with the library of plugins, profiles for decoding and prompts
    model.layers.json    what TensorRT made of each layer, the tactic it chose among it
    timing.cache         its measurements: the next build of the same graph is quicker

Beside each graph. Not run: no Hopper machine with genuine TensorRT has built one yet. Whatever
needs neither is done before, so that elsewhere graph and plugins are ready and checked.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.errors import DstoolsError, ShortfallError
from dstools_converters.export.deepseek import Job, pool
from dstools_converters.export.folder import (
    CHUNK,
    EXPORT,
    Export,
    GraphNote,
    Precision,
    content_sha256,
)
from dstools_converters.export.graph import is_of_experts
from dstools_converters.export.sources import SCALES, sources
from dstools_converters.export.trt.check import require_network
from dstools_converters.export.trt.graphs import read_graph, require_graphs
from dstools_converters.export.trt.network import configure, describe, listener, load_plugins
from dstools_converters.export.trt.nodes import REPORT
from dstools_converters.export.trt.rtx import MOST_ELEMENTS, MOST_EXPERTS, Built, profiles
from dstools_converters.families.names import TensorName
from dstools_converters.files import replace_file

MAJOR = 11  # of TensorRT; earlier ones lack collectives
HOPPER = (9, 0)
LATENT, SLOTS = (512, 576), 8  # that kernels of the plugins take at most
CACHE = "timing.cache"
PRECISIONS: dict[str, Precision] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def own_precision(inventory: Inventory) -> Precision:
    """Return the dtype of a checkpoint's weights that are not quantized: that of its embedding."""
    info = inventory.info(TensorName("embed_tokens", "weight"))
    return PRECISIONS[info.dtype]


def require_kernels(job: Job) -> None:
    """Raise DstoolsError for a model whose nodes the kernels of the plugins do not run.

    TensorRT would build it.
    """
    refusal = why_not(job)
    if refusal is not None:
        raise DstoolsError(f"--trt: {refusal.what}", refusal.hint)


class Refusal(NamedTuple):
    """A part of a model that no kernel runs, and what to do."""

    what: str
    hint: str


def why_not(job: Job) -> Refusal | None:
    """Return what of a model the kernels of the plugins do not run, None where they run it.

    Source: `why_not` of each op in csrc/plugin.
    """
    dtype, model, form = job.options.dtype, job.inventory.model, job.form
    if dtype != "bfloat16":
        return Refusal(f"the kernels are for BF16, not {dtype}", "--dtype bfloat16")
    attention: Any = model.attention
    latent = (attention.kv_lora_rank, attention.latent_width)
    if latent != LATENT:
        return _no_kernel(f"latents of {latent[0]} in {latent[1]}", f"{LATENT[0]} in {LATENT[1]}")
    if model.moe is not None:
        held = len(form.ranks.experts(model.moe.n_routed_experts, 0))
        if held > MOST_EXPERTS:
            return Refusal(
                f"a rank has {held} experts; the kernels are for {MOST_EXPERTS} at most",
                "give --ep",
            )
        if model.moe.num_experts_per_tok > SLOTS:
            return _no_kernel(
                f"{model.moe.num_experts_per_tok} experts a token", f"{SLOTS} at most"
            )
    for name, source in sources(job.inventory, form, 0).items():
        is_coded, sizes = source.dtype == "F8_E4M3", source.shape[-2:]
        if is_of_experts(name) and len(source.shape) == 3 and not name.endswith(SCALES):
            steps = (16, 16) if is_coded else (8, 8)
        elif is_coded:
            steps = (8, 16)
        else:
            continue
        if sizes[0] % steps[0] or sizes[1] % steps[1]:
            return _no_kernel(f"{name} is {list(sizes)}", f"multiples of {list(steps)}")
    return None


def _no_kernel(what: str, limit: str) -> Refusal:
    return Refusal(f"{what}; the kernels are for {limit}", "leave --trt out: ONNX Runtime runs it")


def require_sizes(job: Job) -> None:
    """Raise DstoolsError where a tensor of an engine has more than MOST_ELEMENTS elements.

    RTX builds such files all the same, so no check would tell. Largest sizes of inputs count:
    the pool of caches, and the logits of a chunk.
    """
    model, options = job.inventory.model, pool(job)
    shapes = {
        f"{name} of rank {rank}": source.shape
        for rank in range(job.form.ranks.count)
        for name, source in sources(job.inventory, job.form, rank).items()
    }
    attention: Any = model.attention
    shapes["a cache of the pool"] = (options.num_blocks, options.page_size, attention.latent_width)
    shapes["logits"] = (max(CHUNK, 2 * options.max_batch_size), model.vocab_size)
    for name, shape in shapes.items():
        if math.prod(shape) > MOST_ELEMENTS:
            hint = "lower --context or --max-batch" if "pool" in name else "export for more ranks"
            raise DstoolsError(
                f"--trt: {name} is {list(shape)}, {math.prod(shape):,} elements; more than "
                f"{MOST_ELEMENTS:,} are not tried on Hopper yet",
                hint,
            )


def lacking() -> list[str]:
    """Return what a machine lacks to build an engine."""
    missing = []
    try:
        found = version("tensorrt")
    except PackageNotFoundError:
        found = ""
    if not found or int(found.partition(".")[0]) < MAJOR:
        has = f" (there is {found})" if found else ""
        missing.append(f"TensorRT {MAJOR} or later{has}")
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability != HOPPER:
        has = f" (there is {capability[0]}.{capability[1]})" if capability else ""
        missing.append(f"a GPU of compute capability 9.0{has}")
    return missing


def build_engines(folder: Path, export: Export, library: Path, command: str) -> Export:
    """Build the engines of a folder, and return its export.json with them, which is written.

    library: the plugins, built with the headers of this TensorRT; command: what to run on a machine
    that can. Raises ShortfallError where this one cannot, and where TensorRT does not build.
    """
    require_graphs(folder, export)
    missing = lacking()
    if missing:
        raise ShortfallError(
            f"{folder}: graph and plugins are ready; an engine needs {' and '.join(missing)}",
            f"run there: {command}",
        )
    trt = import_module("tensorrt")
    log = listener(trt)  # TensorRT keeps the first of a process, and a library is registered once
    if not load_plugins(trt, str(library)):
        raise ShortfallError(
            f"{library}: TensorRT {trt.__version__} takes no plugin from it",
            "build it again with --plugins, and TENSORRT_INCLUDE_DIR of this TensorRT",
        )
    for note in export.graphs:
        digests = {}
        for name, content in _build(trt, log, folder, export, note, library):
            replace_file(folder / name, content)
            digests[name] = content_sha256(content)
        export = replace(export, engines=dict(sorted({**export.engines, **digests}.items())))
        replace_file(folder / EXPORT, export.to_bytes())
    return export


def _build(
    trt: Any, log: Any, folder: Path, export: Export, note: GraphNote, library: Path
) -> Iterator[tuple[str, memoryview]]:
    """Yield the files of an engine, each path with TensorRT's own buffer: a plan may be 80 GB."""
    file = folder / note.file
    log.errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(file)):
        raise _failure(file, "parse", log.errors)
    require_network(file, read_graph(file), note, describe(trt, network, Built(trt.__version__)))
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.DIST_COLLECTIVE:
            layer.num_ranks = max(export.tp, export.ep)  # the parser leaves 1
    config = configure(trt, builder, profiles(note, export))
    config.plugins_to_serialize = [str(library)]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = file.parent / CACHE
    known = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(known, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _failure(file, "build", log.errors)
    path = Path(note.file)
    yield str(path.with_name(CACHE)), memoryview(known.serialize())
    yield str(path.with_suffix(".plan")), memoryview(engine)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True  # the library of plugins is inside
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise _failure(file, "load", log.errors)
    inspector = loaded.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    yield str(path.with_suffix(".layers.json")), memoryview(layers.encode())


def _failure(file: Path, what: str, errors: list[str]) -> ShortfallError:
    said = f": {errors[0]}" if errors else ""
    return ShortfallError(f"{file}: TensorRT does not {what} it{said}", REPORT)
