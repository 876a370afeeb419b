from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from dstools_converters.export.functions import PLUGIN, functions_of
from dstools_converters.export.trt.functions_flat import flattened

TYPES = {"f4": 1, "i4": 6, "f1": 17}
FEW = 2e-6  # of sums of at most 300 products of numbers around 1, in two orders: 16 * 2^-23


def model_of(op: str, feed: Mapping[str, Any], outputs: int, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(
        op, list(feed), [f"y{n}" for n in range(outputs)], domain="dstools", **attributes, **PLUGIN
    )
    values = []
    for name, value in feed.items():
        kind = 17 if value.dtype == ml_dtypes.float8_e4m3fn else TYPES[value.dtype.str[1:]]
        values.append(helper.make_tensor_value_info(name, kind, value.shape))
    ends = [helper.make_tensor_value_info(name, 1, None) for name in node.output]
    graph = helper.make_graph([node], "g", values, ends)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("dstools", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.extend(functions_of({op}))
    return model


def run(model: onnx.ModelProto, feed: Mapping[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = {}
    for name, value in feed.items():
        if value.dtype == ml_dtypes.float8_e4m3fn:
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(value.view("u1"), 17)
        else:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(value)
        given[name] = value
    return [value.numpy() for value in session.run_with_ort_values(None, given)]


def routed(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "x": rng.normal(size=(5, 200)).astype("f4") / 8,
        "ids": np.array([[0, 3], [1, 2], [3, 1], [2, 0], [0, 0]], "i4"),
        "weights": rng.random((5, 2)).astype("f4"),
        "map": np.array([-1, 1, 0, 2], "i4"),  # expert 0 is elsewhere: the last token has none
    }


def test_flat_attention_gives_the_same_and_reads_no_place_that_no_one_wrote() -> None:
    rng = np.random.default_rng(0)
    cache = np.full((7, 4, 1, 24), np.nan, "f4")
    table = np.array([[5, 2, -1], [3, -1, -1], [1, 6, 4]], "i4")
    past = np.array([4, 0, 5], "i4")
    for pages, length in zip(table, past, strict=True):
        for place in range(length):
            cache[pages[place // 4], place % 4] = rng.normal(size=24)
    feed = {
        "q": rng.normal(size=(8, 3, 24)).astype("f4"),
        "latent": rng.normal(size=(8, 24)).astype("f4"),
        "cache": cache,
        "cumulative": np.array([0, 1, 4, 8], "i4"),
        "past": past,
        "table": table,
    }
    model = model_of("DsMlaAttention", feed, 2, scale=0.2, rank=16, dtype=1)
    (loop, written), (flat, also) = (run(each, feed) for each in (model, flattened(model)))
    assert np.isfinite(loop).all()
    assert flat == pytest.approx(loop, abs=FEW)
    np.testing.assert_array_equal(written, also)


def test_every_expert_weighted_gives_the_same_as_those_that_were_chosen() -> None:
    rng = np.random.default_rng(1)
    feed = routed(rng)
    for name, shape in (("w1", (3, 40, 200)), ("w3", (3, 40, 200)), ("w2", (3, 200, 40))):
        feed[name] = rng.normal(size=shape).astype("f4") / 8
    model = model_of("DsMoE", feed, 1)
    (loop,), (flat,) = (run(each, feed) for each in (model, flattened(model)))
    assert abs(loop).max() > 0.05
    assert not loop[4].any()
    assert flat == pytest.approx(loop, abs=FEW)


def test_experts_in_codes_keep_grids_of_scales_of_any_size() -> None:
    rng = np.random.default_rng(2)
    feed = routed(rng)
    for number, (rows, columns) in zip((1, 3, 2), ((40, 200), (40, 200), (200, 40)), strict=True):
        codes = rng.normal(size=(3, rows, columns)).astype(ml_dtypes.float8_e4m3fn)
        grid = (3, -(-rows // 128), -(-columns // 128))
        feed |= {f"w{number}": codes, f"s{number}": rng.random(grid).astype("f4") / 4}
    model = model_of("DsFp8BlockMoE", feed, 1)
    (loop,), (flat,) = (run(each, feed) for each in (model, flattened(model)))
    assert abs(loop).max() > 0.05
    assert flat == pytest.approx(loop, abs=FEW)


def test_functions_of_other_names_stay_and_the_model_is_not_changed() -> None:
    feed = routed(np.random.default_rng(3)) | {"w": np.zeros(1, "f4")}
    model = model_of("DsFp8BlockLinear", feed, 1)
    names = [function.name for function in model.functions]
    assert names == ["DsFp8BlockLinear", "DsRowScales"]
    assert [f.name for f in flattened(model).functions][: len(names)] == names
    assert [f.name for f in model.functions] == names
    assert flattened(model).functions[1] == model.functions[1]


def test_a_product_by_codes_is_the_same_without_a_condition() -> None:
    """Sums of 200 products in another order."""
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 120, (130, 200), dtype=np.uint8)
    x, scales = rng.normal(size=(3, 200)).astype("f4"), rng.random((2, 2)).astype("f4")
    node = helper.make_node("DsFp8BlockLinear", ["x", "w", "s"], ["y"], domain="dstools")
    shapes = (("x", ["t", 200]), ("y", ["t", 130]))
    x_port, y_port = (helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes)
    f8 = onnx.TensorProto.FLOAT8E4M3FN
    weights = [
        helper.make_tensor("w", f8, codes.shape, codes.tobytes(), raw=True),
        onnx.numpy_helper.from_array(scales, "s"),
    ]
    graph = helper.make_graph([node], "g", [x_port], [y_port], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("dstools", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.extend(functions_of({"DsFp8BlockLinear"}))
    found = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0]
        for m in (model, flattened(model))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-3)
