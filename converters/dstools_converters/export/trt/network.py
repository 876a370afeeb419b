"""Networks of TensorRT: how they are configured, and what the parser made of a graph.

`trt` is the module of TensorRT, or of TensorRT-RTX: the two have one interface.
"""

from dataclasses import replace
from typing import Any

from dstools_converters.export.folder import Port
from dstools_converters.export.trt.rtx import Built, Kind, Layer, Profile

DTYPES = {  # of TensorRT -> of ONNX
    "FLOAT": "FLOAT",
    "HALF": "FLOAT16",
    "BF16": "BFLOAT16",
    "FP8": "FLOAT8E4M3FN",
    "INT32": "INT32",
    "INT64": "INT64",
}
KINDS: tuple[Kind, ...] = ("PLUGIN_V3", "DIST_COLLECTIVE")


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
