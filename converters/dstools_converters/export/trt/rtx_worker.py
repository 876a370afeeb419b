"""The process in which TensorRT-RTX parses and builds a graph.

    python -m dstools_converters.export.trt.rtx_worker REQUEST RESULT

Both are JSON files, a `Request` and a `Built` of rtx.py. Takes about twice the baked weights of
memory. What is not of RTX alone serves engine.py, too: the two libraries have one interface.
"""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dstools_converters.export.folder import Port
from dstools_converters.export.trt.rtx import Built, Kind, Layer, Profile, Request
from dstools_converters.tables import Reader, json_table

DTYPES = {  # of TensorRT -> of ONNX
    "FLOAT": "FLOAT",
    "HALF": "FLOAT16",
    "BF16": "BFLOAT16",
    "FP8": "FLOAT8E4M3FN",
    "INT32": "INT32",
    "INT64": "INT64",
}
KINDS: tuple[Kind, ...] = ("PLUGIN_V3", "DIST_COLLECTIVE")


def run(request: Request, trt: Any) -> Built:
    """Return what a library, `trt`, makes of a graph."""
    log = listener(trt)
    built = Built(trt.__version__)
    if request.plugins and not load_plugins(trt, request.plugins):
        return replace(built, is_registered=False)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(request.graph).read_bytes(), request.weights):
        return replace(built, errors=tuple(map(_said, _errors(parser))))
    built = describe(trt, network, built)
    engines = {}
    for target in request.targets:
        config = configure(trt, builder, request.profiles, is_aliasing=request.is_aliasing)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
        engine = builder.build_serialized_network(network, config)
        engines[target] = 0 if engine is None else engine.nbytes
    return replace(built, engines=engines, errors=tuple(log.errors))


def listener(trt: Any) -> Any:
    """Return a logger that keeps errors."""

    class Listener(trt.ILogger):  # type: ignore[misc] # the class is of a library without types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Listener()


def load_plugins(trt: Any, library: str) -> bool:
    """Register the plugins of a library; return whether all of its creators came."""
    registry = trt.get_plugin_registry()
    before = len(registry.all_creators)
    return registry.load_library(library) is not None and len(registry.all_creators) > before


def describe(trt: Any, network: Any, built: Built) -> Built:
    """Return `built` with the layers, inputs and outputs of a network."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    named = {getattr(trt.LayerType, kind): kind for kind in KINDS if hasattr(trt.LayerType, kind)}
    ours = tuple(
        Layer(
            layer.name,
            named[layer.type],
            tuple(_port(layer.get_output(number)) for number in range(layer.num_outputs)),
        )
        for layer in layers
        if layer.type in named
    )
    inputs = tuple(_port(network.get_input(number)) for number in range(network.num_inputs))
    outputs = tuple(_port(network.get_output(number)) for number in range(network.num_outputs))
    return replace(built, layer_count=len(layers), layers=ours, inputs=inputs, outputs=outputs)


def configure(
    trt: Any, builder: Any, profiles: tuple[Profile, ...], *, is_aliasing: bool = True
) -> Any:
    """Return a configuration with profiles, in which a plugin may write into its inputs."""
    config = builder.create_builder_config()
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in sizes.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, is_aliasing)
    return config


def _port(tensor: Any) -> Port:
    dtype = str(tensor.dtype).rpartition(".")[2]
    return Port(tensor.name, DTYPES.get(dtype, dtype), tuple(map(str, tensor.shape)))


def _errors(parser: Any) -> list[str]:
    found = [parser.get_error(number) for number in range(parser.num_errors)]
    return [f"{error.node_name() or 'graph'}: {error.desc()}" for error in found]


def _said(message: str) -> str:
    """Return a message on one line."""
    return re.sub(r"\s+", " ", message).strip()


def main() -> None:
    """Read a request, build, and write what was built."""
    import tensorrt_rtx_bindings

    asked, answer = map(Path, sys.argv[1:])
    request = Reader(str(asked), "json").read(Request, json_table(asked))
    built = run(request, tensorrt_rtx_bindings)
    answer.write_text(json.dumps(asdict(replace(built, errors=tuple(map(_said, built.errors))))))


if __name__ == "__main__":
    main()
