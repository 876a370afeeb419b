import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dstools_converters.export.functions import functions_of

F32, I32 = TensorProto.FLOAT, TensorProto.INT32


def test_the_body_of_experts_is_the_sum_over_those_that_are_here() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(5, 8)).astype("f4"), rng.random((5, 2)).astype("f4")
    ids = np.array([[0, 3], [1, 2], [3, 1], [2, 0], [3, 3]], "i4")
    places = np.array([-1, 1, 0, 2], "i4")  # expert 0 is elsewhere
    w1, w3 = (rng.normal(size=(3, 6, 8)).astype("f4") for _ in range(2))
    w2 = rng.normal(size=(3, 8, 6)).astype("f4")
    feed = {"x": x, "ids": ids, "weights": weights, "map": places, "w1": w1, "w3": w3, "w2": w2}
    nodes = [helper.make_node("DsMoE", list(feed), ["y"], domain="dstools")]
    values = [
        helper.make_tensor_value_info(name, I32 if value.dtype == "i4" else F32, value.shape)
        for name, value in feed.items()
    ]
    out = helper.make_tensor_value_info("y", F32, x.shape)
    graph = helper.make_graph(nodes, "g", values, [out])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("dstools", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.functions.extend(functions_of({"DsMoE"}))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (got,) = session.run(None, feed)

    wanted = np.zeros((5, 8))
    for token, chosen in enumerate(ids):
        for slot, expert in enumerate(chosen):
            if (place := places[expert]) >= 0:
                gate, up = w1[place] @ x[token], w3[place] @ x[token]
                inner = gate / (1 + np.exp(-gate)) * up
                wanted[token] += weights[token, slot] * (w2[place] @ inner)
    assert got == pytest.approx(wanted, abs=1e-5)


def test_parts_come_with_the_ops_that_call_them() -> None:
    def names(*ops: str) -> set[str]:
        return {function.name for function in functions_of(set(ops))}

    assert names("DsMlaAttention", "Add") == {"DsMlaAttention", "DsSlots"}
    assert names("DsFp8BlockMoE") == {"DsFp8BlockMoE", "DsExpert", "DsRowScales"}
    assert names("DistCollective") == {"DistCollective"}


def test_the_functions_pass_the_checker() -> None:
    ops = {"DsMlaAttention", "DsMoE", "DsFp8BlockLinear", "DsFp8BlockMoE", "DistCollective"}
    for function in functions_of(ops):
        assert any(opset.domain == "" and opset.version == 21 for opset in function.opset_import)
        onnx.checker.check_function(function)
