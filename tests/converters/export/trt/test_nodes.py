from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from dstools_converters.errors import ShortfallError
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Export, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.trt.nodes import require_nodes, types_of

SHORT = Options(context=128)
Change = Callable[[onnx.ModelProto], object]


@pytest.fixture
def coded(exported: Callable[..., Path], tiny_fp8: Path) -> tuple[onnx.ModelProto, Export]:
    """The graph of a tiny model in FP8: attention, products and experts."""
    folder = exported(tiny_fp8, SHORT)
    return onnx.load(folder / "model.onnx", load_external_data=False), require_export(folder)


def refusal(model: onnx.ModelProto, export: Export, change: Change) -> str:
    assert export.pool is not None
    change(model)
    with pytest.raises(ShortfallError) as caught:
        require_nodes("model.onnx", model, export.graphs[0], export.pool)
    return str(caught.value)


def first(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def attribute(model: onnx.ModelProto, op: str, name: str) -> onnx.AttributeProto:
    return next(each for each in first(model, op).attribute if each.name == name)


def retype(model: onnx.ModelProto, name: str, dtype: int) -> None:
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if value.name == name:
            value.type.tensor_type.elem_type = dtype
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.data_type = dtype


def resize(model: onnx.ModelProto, name: str, dimension: int, size: int) -> None:
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if value.name == name:
            value.type.tensor_type.shape.dim[dimension].dim_value = size
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.dims[dimension] = size


def operand(model: onnx.ModelProto, op: str, place: int) -> str:
    return first(model, op).input[place]


MLA, MOE, LINEAR = "DsMlaAttention", "DsFp8BlockMoE", "DsFp8BlockLinear"
CASES: dict[str, tuple[Change, str]] = {
    "no namespace: inlined without a word": (
        lambda m: first(m, MOE).attribute.remove(attribute(m, MOE, "plugin_namespace")),
        "has no attribute plugin_namespace; TensorRT would inline the function silently",
    ),
    "another namespace": (
        lambda m: setattr(attribute(m, MOE, "plugin_namespace"), "s", b"other"),
        "plugin_namespace is 'other', not 'dstools'",
    ),
    "another version of the op": (
        lambda m: setattr(attribute(m, LINEAR, "plugin_version"), "s", b"2"),
        "is of version 2, the plugins are of version 1",
    ),
    "no scale": (
        lambda m: first(m, MLA).attribute.remove(attribute(m, MLA, "scale")),
        "has no attribute scale",
    ),
    "an attribute that no plugin knows": (
        lambda m: first(m, MLA).attribute.append(helper.make_attribute("window", 3)),
        "window is not an attribute of this op",
    ),
    "a scale of 0": (
        lambda m: setattr(attribute(m, MLA, "scale"), "f", 0.0),
        "scale is 0.0, not positive",
    ),
    "a rank that is not that of the result": (
        lambda m: setattr(attribute(m, MLA, "rank"), "i", 1),
        "rank is 1, o has ",
    ),
    "queries of another dtype than latents": (
        lambda m: retype(m, operand(m, MLA, 0), onnx.TensorProto.FLOAT16),
        "latent is FLOAT, not FLOAT16",
    ),
    "queries that are integers": (
        lambda m: retype(m, operand(m, MLA, 0), onnx.TensorProto.INT64),
        "q is INT64, not FLOAT or FLOAT16 or BFLOAT16",
    ),
    "ids of experts in int64": (
        lambda m: retype(m, operand(m, MOE, 1), onnx.TensorProto.INT64),
        "ids is INT64, not INT32",
    ),
    "codes that are not E4M3": (
        lambda m: retype(m, operand(m, LINEAR, 1), onnx.TensorProto.FLOAT8E5M2),
        "w is FLOAT8E5M2, not FLOAT8E4M3FN",
    ),
    "latents of another width": (lambda m: resize(m, operand(m, MLA, 1), 1, 7), "7 should be "),
    "a grid of scales that does not fit": (
        lambda m: resize(m, operand(m, LINEAR, 2), 0, 9),
        "9 should be 1",
    ),
    "up of another shape than gate": (lambda m: resize(m, operand(m, MOE, 6), 1, 99), "w3 is ["),
    "pages of 32 tokens": (
        lambda m: [resize(m, n, 1, 32) for n in (operand(m, MLA, 2), first(m, MLA).output[1])],
        "pages have 32 tokens; the kernels read 64, export.json says 64",
    ),
    "a cache that is no input": (
        lambda m: m.graph.input.remove(next(v for v in m.graph.input if v.name.endswith("0.key"))),
        "the file tells no type of past_key_values.0.key",
    ),
    "a written cache that is copied once more": (
        lambda m: m.graph.output.remove(
            next(v for v in m.graph.output if v.name.endswith("0.key"))
        ),
        "the file tells no type of present.0.key",
    ),
    "an input too few": (
        lambda m: first(m, MOE).input.pop(),
        "has 9 inputs and 1 outputs, not 10 and 1",
    ),
    "an op that there is not": (
        lambda m: setattr(first(m, LINEAR), "op_type", "DsMagic"),
        "the file has no function of that name",
    ),
    "an op that has no plugin": (
        lambda m: setattr(first(m, LINEAR), "op_type", "DsRowScales"),
        "no plugin of that name; there are DsMlaAttention, DsMoE",
    ),
    "a node too few": (
        lambda m: m.graph.node.remove(first(m, LINEAR)),
        " and 0 collectives; export.json says ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_node_that_no_plugin_takes_is_named(
    case: str, coded: tuple[onnx.ModelProto, Export]
) -> None:
    change, words = CASES[case]
    said = refusal(*coded, change)
    assert words in said
    assert said.startswith("model.onnx: ")


def test_a_cache_that_is_not_the_output_of_its_input_is_named(
    coded: tuple[onnx.ModelProto, Export],
) -> None:
    def swap(model: onnx.ModelProto) -> None:
        a, b = [node for node in model.graph.node if node.op_type == MLA][:2]
        a.output[1], b.output[1] = b.output[1], a.output[1]

    said = refusal(*coded, swap)
    assert "present.0.value is not the output present.0.key, so the cache would be copied" in said


def test_a_collective_of_another_kind_is_named(
    exported: Callable[..., Path], tiny_fp8: Path
) -> None:
    folder = exported(tiny_fp8, Options(context=128, mtp=False, ranks=Ranks(ep=2)))
    model = onnx.load(folder / "rank1/model.onnx", load_external_data=False)
    reduce_op = attribute(model, "DistCollective", "reduce_op")
    said = refusal(model, require_export(folder), lambda m: setattr(reduce_op, "s", b"max"))
    assert "reduce_op is 'max', not 'sum'" in said


@pytest.mark.parametrize(
    "options",
    [SHORT, Options("bfloat16", 128), Options(context=128, mtp=False, ranks=Ranks(ep=2))],
    ids=["float32", "bfloat16", "ranks"],
)
def test_what_is_exported_passes(
    exported: Callable[..., Path], tiny_fp8: Path, options: Options
) -> None:
    folder = exported(tiny_fp8, options)
    export = require_export(folder)
    assert export.pool is not None
    for note in export.graphs:
        model = onnx.load(folder / note.file, load_external_data=False)
        require_nodes(note.file, model, note, export.pool)


def test_types_are_told_by_the_names_of_onnx() -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.BFLOAT16, ["t", 3])
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [0, 0])
    graph = helper.make_graph([], "g", [value], [], [weight])
    assert types_of(graph) == {"x": ("BFLOAT16", ("t", 3)), "w": ("FLOAT", (2,))}
