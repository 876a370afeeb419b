"""Other bodies of the ops of functions.py: without loops, for a check of the graph without plugins.

TensorRT-RTX 1.7.1 refuses in a loop what those bodies need there (NonZero, ConcatFromSequence). So
here one product scores every token against the keys of all rows, and every expert runs on every
token, weighted by zero where it was not chosen. That is quadratic and slow, and never shipped; a
test holds both to the same numbers. Letters and inputs as in functions.py.
"""

import onnx
from onnxscript import opset21 as op
from onnxscript import script, values

from dstools_converters.export.functions import DOMAIN, VERSION

ds = values.Opset(DOMAIN, VERSION)


@script(ds, default_opset=op)
def DsMlaAttention(
    q,
    latent,
    cache,
    cumulative,
    past,
    table,
    scale: float,
    rank: int,
    dtype: int,
    plugin_namespace: str = "dstools",
    plugin_version: str = "1",
):
    """Attend on latents in pages, all rows at once; a mask keeps them apart."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])
    first = op.Constant(value_int=0)
    step = op.Constant(value_int=1)
    size = op.Shape(cache, start=1, end=2)
    width = op.Shape(cache, start=3, end=4)
    starts = op.Cast(cumulative, to=7)
    cached = op.Cast(past, to=7)
    pages = op.Cast(table, to=7)
    tokens = op.Shape(q, start=0, end=1)
    slots, row, position = ds.DsSlots(starts, cached, pages, size, tokens)
    written = op.ScatterND(cache, slots, op.Unsqueeze(op.CastLike(latent, cache), one))
    # the keys of all rows, end to end, pages that no row has among them
    own = op.Reshape(op.Gather(written, op.Max(pages, zero)), op.Concat(last, width, axis=0))
    row_size = op.Mul(op.Shape(pages, start=1, end=2), size)
    count = op.Squeeze(op.Mul(op.Shape(pages, start=0, end=1), row_size), zero)
    key = op.Range(first, count, step)
    key_row = op.Div(key, row_size)
    key_position = op.Mod(key, row_size)
    ends = op.Slice(starts, one, op.Shape(starts), zero)
    lengths = op.Add(cached, op.Sub(ends, op.Slice(starts, zero, last, zero)))
    is_written = op.Less(key_position, op.Gather(lengths, key_row))
    nothing = op.CastLike(op.Constant(value_float=0.0), q)
    keys = op.Where(op.Unsqueeze(is_written, last), op.CastLike(own, q), nothing)
    asked = op.Mul(q, op.CastLike(op.Constant(value_float=scale), q))
    scores = op.MatMul(asked, op.Transpose(keys, perm=[1, 0]))
    sees = op.And(
        op.Equal(op.Unsqueeze(key_row, zero), op.Unsqueeze(row, last)),
        op.LessOrEqual(op.Unsqueeze(key_position, zero), op.Unsqueeze(position, last)),
    )
    hidden = op.CastLike(op.Constant(value_float=-30000.0), q)  # within FP16
    shares = op.Softmax(op.Where(op.Unsqueeze(sees, one), scores, hidden), axis=-1)
    latents = op.Slice(keys, zero, op.Unsqueeze(op.Constant(value_int=rank), zero), one)
    return op.MatMul(shares, latents), written


@script(ds, default_opset=op)
def DsEveryExpert(x, ids, weights, expert_map, w1, w3, w2):
    """Sum all experts on all tokens, weighted by zero where they were not chosen."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])
    local = op.Cast(op.Gather(expert_map, ids), to=7)
    count = op.Squeeze(op.Shape(w1, start=0, end=1), zero)
    expert = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    chosen = op.Cast(op.Equal(op.Unsqueeze(local, last), expert), to=1)  # [T, K, e]
    shares = op.ReduceSum(op.Mul(chosen, op.Unsqueeze(weights, last)), one, keepdims=0)
    rows = op.Unsqueeze(x, zero)
    gate = op.MatMul(rows, op.CastLike(op.Transpose(w1, perm=[0, 2, 1]), x))
    up = op.MatMul(rows, op.CastLike(op.Transpose(w3, perm=[0, 2, 1]), x))
    inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    down = op.MatMul(inner, op.CastLike(op.Transpose(w2, perm=[0, 2, 1]), x))
    share = op.Unsqueeze(op.Transpose(shares, perm=[1, 0]), last)
    return op.ReduceSum(op.Mul(down, op.CastLike(share, down)), zero, keepdims=0)


@script(ds, default_opset=op)
def DsMoE(
    x,
    ids,
    weights,
    expert_map,
    w1,
    w3,
    w2,
    plugin_namespace: str = "dstools",
    plugin_version: str = "1",
):
    """Sum the experts of each token."""
    return ds.DsEveryExpert(x, ids, weights, expert_map, w1, w3, w2)


@script(ds, default_opset=op)
def DsStackScales(scales, rows):
    """Repeat rows of scales [e, ceil(N / 128), X] 128 times, [e, N, X]: one axis stays blocked."""
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    columns = op.Shape(scales, start=2, end=3)
    count = op.Shape(scales, start=0, end=1)
    grid = op.Shape(scales, start=0, end=2)
    shape = op.Concat(grid, op.Constant(value_ints=[128]), columns, axis=0)
    repeated = op.Expand(op.Unsqueeze(scales, op.Constant(value_ints=[2])), shape)
    flat = op.Reshape(repeated, op.Concat(count, op.Constant(value_ints=[-1]), columns, axis=0))
    return op.Slice(flat, zero, rows, one)


@script(ds, default_opset=op)
def DsFp8BlockLinear(x, w, scale_inv, plugin_namespace: str = "dstools", plugin_version: str = "1"):
    """Multiply x [T, K] by codes w E4M3 [N, K] and their float32 scales, on no condition."""
    rows = ds.DsRowScales(scale_inv, op.Shape(w, start=0, end=1))
    wide = op.DequantizeLinear(w, rows, axis=1, block_size=128)
    return op.MatMul(x, op.CastLike(op.Transpose(wide, perm=[1, 0]), x))


@script(ds, default_opset=op)
def DsFp8BlockMoE(
    x,
    ids,
    weights,
    expert_map,
    w1,
    s1,
    w3,
    s3,
    w2,
    s2,
    plugin_namespace: str = "dstools",
    plugin_version: str = "1",
):
    """Sum the experts of each token, of E4M3 codes and float32 scales of 128 x 128."""
    r1 = ds.DsStackScales(s1, op.Shape(w1, start=1, end=2))
    r3 = ds.DsStackScales(s3, op.Shape(w3, start=1, end=2))
    r2 = ds.DsStackScales(s2, op.Shape(w2, start=1, end=2))
    wide1 = op.DequantizeLinear(w1, r1, axis=2, block_size=128)
    wide3 = op.DequantizeLinear(w3, r3, axis=2, block_size=128)
    wide2 = op.DequantizeLinear(w2, r2, axis=2, block_size=128)
    return ds.DsEveryExpert(x, ids, weights, expert_map, wide1, wide3, wide2)


def flattened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose functions are these wherever there is one of the name."""
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    own = {
        function.name: function.to_function_proto()
        for function in (DsMlaAttention, DsMoE, DsFp8BlockLinear, DsFp8BlockMoE)
    }
    parts = [function.to_function_proto() for function in (DsEveryExpert, DsStackScales)]
    kept = [own.get(function.name, function) for function in model.functions]
    del flat.functions[:]
    flat.functions.extend([*kept, *parts])
    for function in flat.functions:
        if all(imported.domain != DOMAIN for imported in function.opset_import):
            function.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return flat
