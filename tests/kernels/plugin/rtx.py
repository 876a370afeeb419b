"""Parse and build a node of each op in TensorRT-RTX, without a GPU, for a target not of Hopper.

    LD_LIBRARY_PATH=LINKS python rtx.py LIBRARY

LINKS holds libtensorrt_rtx.so, which the wheel lacks and the parser opens. Reads a JSON list of
cases from stdin and prints one of results. A case has op, dtype (bf16, f16, f32), and as wished
is_aliased (the preview feature), changes (of the type of an input, or of a shape) and without
(attributes to leave out).
"""

import json
import sys
from typing import Any

import onnx
import tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper

F8, I32, F32 = TensorProto.FLOAT8E4M3FN, TensorProto.INT32, TensorProto.FLOAT
DTYPES = {"bf16": TensorProto.BFLOAT16, "f16": TensorProto.FLOAT16, "f32": F32}
X = "x"  # the dtype of the case
OPS: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, list[Any]]]]] = {
    "DsMlaAttention": (
        {"scale": 0.1, "rank": 512, "dtype": 16},
        {
            "q": (X, ["t", 16, 576]),
            "latent": (X, ["t", 576]),
            "cache": (X, ["p", 64, 1, 576]),
            "cumulative": (I32, ["s"]),
            "past": (I32, ["b"]),
            "table": (I32, ["b", "n"]),
        },
    ),
    "DsMoE": (
        {},
        {
            "x": (X, ["t", 256]),
            "ids": (I32, ["t", 2]),
            "weights": (F32, ["t", 2]),
            "expert_map": (I32, [8]),
            "w1": (X, [4, 128, 256]),
            "w3": (X, [4, 128, 256]),
            "w2": (X, [4, 256, 128]),
        },
    ),
    "DsFp8BlockMoE": (
        {},
        {
            "x": (X, ["t", 256]),
            "ids": (I32, ["t", 2]),
            "weights": (F32, ["t", 2]),
            "expert_map": (I32, [8]),
            "w1": (F8, [4, 128, 256]),
            "s1": (F32, [4, 1, 2]),
            "w3": (F8, [4, 128, 256]),
            "s3": (F32, [4, 1, 2]),
            "w2": (F8, [4, 256, 128]),
            "s2": (F32, [4, 2, 1]),
        },
    ),
    "DsFp8BlockLinear": (
        {},
        {"x": (X, ["t", 256]), "w": (F8, [384, 256]), "scale_inv": (F32, [3, 2])},
    ),
}
SIZES = {"t": (1, 8, 64), "p": (1, 64, 512), "s": (2, 5, 33), "b": (1, 4, 32), "n": (1, 8, 64)}


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what is said."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, line: str) -> None:
        if severity.value <= trt.Logger.WARNING.value:
            self.lines.append(line)


LOG = Log()


def model(case: dict[str, Any]) -> bytes:
    attributes, inputs = OPS[case["op"]]
    dtype = DTYPES[case["dtype"]]
    changes = case.get("changes", {})
    types = {
        n: changes.get(n, {}).get("type", dtype if t == X else t) for n, (t, _) in inputs.items()
    }
    shapes = {n: changes.get(n, {}).get("shape", shape) for n, (_, shape) in inputs.items()}
    names = ["y", "cache_out"] if case["op"] == "DsMlaAttention" else ["y"]
    kept = {k: v for k, v in attributes.items() if k not in case.get("without", [])}
    node = helper.make_node(
        case["op"], list(inputs), names, domain="dstools",
        plugin_namespace="dstools", plugin_version="1", **kept,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, types[n], shapes[n]) for n in inputs],
        [helper.make_tensor_value_info(n, dtype, None) for n in names],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("dstools", 1)]
    made: bytes = onnx.ModelProto.SerializeToString(
        helper.make_model(graph, opset_imports=opsets, ir_version=10)
    )
    return made


def build(case: dict[str, Any]) -> dict[str, Any]:
    LOG.lines.clear()
    builder = trt.Builder(LOG)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(model(case)):
        errors = [parser.get_error(n).desc() for n in range(parser.num_errors)]
        return {"parsed": False, "said": LOG.lines + errors}
    layers = [network.get_layer(n) for n in range(network.num_layers)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = {
        n: case.get("changes", {}).get(n, {}).get("shape", s)
        for n, (_, s) in OPS[case["op"]][1].items()
    }
    for name, shape in shapes.items():
        each = [[SIZES[d][k] if isinstance(d, str) else d for d in shape] for k in range(3)]
        profile.set_shape(name, *each)
    config.add_optimization_profile(profile)
    config.set_preview_feature(
        trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, case.get("is_aliased", True)
    )
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    engine = builder.build_serialized_network(network, config)
    return {
        "parsed": True,
        "plugins": sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers),
        "outputs": [
            [str(network.get_output(n).dtype), list(network.get_output(n).shape)]
            for n in range(network.num_outputs)
        ],
        "bytes": engine and engine.nbytes,
        "said": list(LOG.lines),
    }


if __name__ == "__main__":
    handle = trt.get_plugin_registry().load_library(sys.argv[1])
    creators = [
        c for c in trt.get_plugin_registry().all_creators if c.plugin_namespace == "dstools"
    ]
    results = [build(case) for case in json.load(sys.stdin)]
    sys.stdout.write(json.dumps({"creators": sorted(c.name for c in creators), "results": results}))
