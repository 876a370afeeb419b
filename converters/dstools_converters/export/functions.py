"""The ops of an exported graph as ONNX functions: what runs wherever a plugin does not.

Every node of an op has a body of the same name in the file, so ONNX Runtime executes the very file
that TensorRT builds with plugins. Bodies are written for the former's CPU provider:

- A cache is written by ScatterND on the cache itself, and that is the graph's output. With a
  Reshape in between, every token copies the whole pool.
- Attention is a loop over rows, each on its own pages: one product over all rows is quadratic, and
  padding to the longest makes a chunk of a prompt slow down everyone else's token.
- Experts are a loop over those that were chosen. FP8 codes cannot be gathered (opsets 21 to 26), so
  theirs is a scan over all codes that widens only the chosen ones.

Letters: T new tokens of all rows end to end, B rows, H heads, L + R = C elements of a latent and of
its rotated key, P pages, S tokens of a page, N pages of a row, D hidden size, I width of an expert,
e experts of this file and E of the model, K experts of a token.
Measured in design trials and on 2026-11-29, ONNX Runtime 1.32.
"""

import onnx
from onnxscript import graph, script, values
from onnxscript import opset21 as op

DOMAIN, VERSION = "dstools", 1
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}  # on every node with a plugin
# as RTX 1.7.1 reads it; root is unused by all_reduce, and must be there
ALL_REDUCE: dict[str, str | int] = {
    "collective_operation": "all_reduce",
    "reduce_op": "sum",
    "root": -1,
}
ds = values.Opset(DOMAIN, VERSION)


@script(ds, default_opset=op)
def DsSlots(starts, cached, pages, size, tokens):
    """Return page and place on it [T, 2], row [T] and position in the row [T] of each new token.

    int64: starts [B + 1], cached [B], pages [B, N], size [1] of a page, tokens [1], which is T.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    last = op.Constant(value_ints=[-1])
    token = op.Range(op.Constant(value_int=0), op.Squeeze(tokens, zero), op.Constant(value_int=1))
    ends = op.Slice(starts, one, op.Shape(starts), zero)
    has_ended = op.GreaterOrEqual(op.Unsqueeze(token, last), op.Unsqueeze(ends, zero))
    row = op.ReduceSum(op.Cast(has_ended, to=7), last, keepdims=0)
    position = op.Add(op.Sub(token, op.Gather(starts, row)), op.Gather(cached, row))
    named = op.Concat(op.Unsqueeze(row, last), op.Unsqueeze(op.Div(position, size), last), axis=1)
    place = op.Unsqueeze(op.Mod(position, size), last)
    slots = op.Concat(op.Unsqueeze(op.GatherND(pages, named), last), place, axis=1)
    return slots, row, position


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
    """Attend on latents in pages.

    q [T, H, C] absorbed, latent [T, C], cache [P, S, 1, C], cumulative [B + 1], past [B] and table
    [B, N] int32 -> o [T, H, L], the cache with the new latents. `rank` is L; `dtype` is that of q.
    Places that no one wrote may hold NaN: they are cut off.
    """
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
    slots, _, _ = ds.DsSlots(starts, cached, pages, size, op.Shape(q, start=0, end=1))
    written = op.ScatterND(cache, slots, op.Unsqueeze(op.CastLike(latent, cache), one))
    # each row on its own
    mixed = op.SequenceEmpty(dtype=dtype)
    count = op.Squeeze(op.Shape(past))
    for b in range(count):
        here = op.Unsqueeze(b, zero)
        after = op.Add(here, one)
        begin = op.Slice(starts, here, after)
        end = op.Slice(starts, after, op.Add(after, one))
        before = op.Slice(cached, here, after)
        length = op.Add(before, op.Sub(end, begin))
        needed = op.Div(op.Sub(op.Add(length, size), one), size)
        own = op.Slice(op.Squeeze(op.Slice(pages, here, after, zero), zero), zero, needed)
        rows = op.Reshape(op.Gather(written, own), op.Concat(last, width, axis=0))
        keys = op.CastLike(op.Slice(rows, zero, length), q)
        # scaled first: q k' without the scale may be more than float16 holds
        asked = op.Mul(op.Slice(q, begin, end), op.CastLike(op.Constant(value_float=scale), q))
        scores = op.MatMul(asked, op.Transpose(keys, perm=[1, 0]))
        at = op.Add(op.Range(first, op.Squeeze(op.Sub(end, begin)), step), before)
        key = op.Range(first, op.Squeeze(length), step)
        sees = op.Unsqueeze(op.LessOrEqual(op.Unsqueeze(key, zero), op.Unsqueeze(at, last)), one)
        hidden = op.CastLike(op.Constant(value_float=-30000.0), q)  # within FP16
        shares = op.Softmax(op.Where(sees, scores, hidden), axis=-1)
        latents = op.Slice(keys, zero, op.Unsqueeze(op.Constant(value_int=rank), zero), one)
        mixed = op.SequenceInsert(mixed, op.MatMul(shares, latents))
    return op.ConcatFromSequence(mixed, axis=0), written


@script(ds, default_opset=op)
def DsExpert(y, x, weights, slots, w1, w3, w2):
    """Add what one expert, of weights [I, D], [I, D] and [D, I], gives to y [T, D] float32.

    `slots` [X, 2] are the tokens that chose it, and which of their choices it is.
    """
    zero = op.Constant(value_ints=[0])
    one = op.Constant(value_ints=[1])
    tokens = op.Slice(slots, zero, one, one)
    rows = op.GatherND(x, tokens)
    gate = op.Gemm(rows, op.CastLike(w1, x), transB=1)
    up = op.Gemm(rows, op.CastLike(w3, x), transB=1)
    inner = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    down = op.Gemm(inner, op.CastLike(w2, x), transB=1)
    share = op.Unsqueeze(op.GatherND(weights, slots), op.Constant(value_ints=[-1]))
    # float32, as ONNX Runtime's ScatterND adds no float16
    return op.ScatterND(y, tokens, op.Mul(op.Cast(down, to=1), share), reduction="add")


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
    """Sum the experts of each token.

    x [T, D], ids int32 [T, K], weights float32 [T, K], expert_map int32 [E] (-1: not here), w1 and
    w3 [e, I, D], w2 [e, D, I] -> y [T, D].
    """
    local = op.Cast(op.Gather(expert_map, ids), to=7)
    every, _, _, _ = op.Unique(op.Reshape(local, op.Constant(value_ints=[-1])))
    chosen = op.Compress(every, op.GreaterOrEqual(every, op.Constant(value_ints=[0])))
    y = op.Mul(op.Cast(x, to=1), op.Constant(value_float=0.0))
    count = op.Squeeze(op.Shape(chosen))
    for i in range(count):
        e = op.Gather(chosen, i)
        slots = op.Transpose(op.NonZero(op.Equal(local, e)), perm=[1, 0])
        y = ds.DsExpert(y, x, weights, slots, op.Gather(w1, e), op.Gather(w3, e), op.Gather(w2, e))
    return op.CastLike(y, x)


@script(ds, default_opset=op)
def DsRowScales(scales, rows):
    """Repeat rows of scales [ceil(N / 128), X] 128 times, [N, X], so that one axis is blocked."""
    zero = op.Constant(value_ints=[0])
    columns = op.Shape(scales, start=1, end=2)
    shape = op.Concat(
        op.Shape(scales, start=0, end=1), op.Constant(value_ints=[128]), columns, axis=0
    )
    repeated = op.Expand(op.Unsqueeze(scales, op.Constant(value_ints=[1])), shape)
    flat = op.Reshape(repeated, op.Concat(op.Constant(value_ints=[-1]), columns, axis=0))
    return op.Slice(flat, zero, rows, zero)


@script(ds, default_opset=op)
def DsFp8BlockLinear(x, w, scale_inv, plugin_namespace: str = "dstools", plugin_version: str = "1"):
    """Multiply x [T, K] by codes w E4M3 [N, K] and their float32 scales -> [T, N].

    The codes are widened when x is there: ONNX Runtime runs what depends on weights alone before
    all else, and would hold those of all layers at once.
    """
    tokens = op.Shape(x, start=0, end=1)
    if op.Greater(op.Squeeze(tokens), op.Constant(value_int=0)):
        rows = ds.DsRowScales(scale_inv, op.Shape(w, start=0, end=1))
        wide = op.DequantizeLinear(w, rows, axis=1, block_size=128)
        y = op.Gemm(x, op.CastLike(wide, x), transB=1)
    else:
        empty = op.Concat(tokens, op.Shape(w, start=0, end=1), axis=0)
        y = op.Expand(op.CastLike(op.Constant(value_float=0.0), x), empty)
    return y


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
    """Sum the experts of each token, as DsMoE, of E4M3 codes and float32 scales of 128 x 128."""
    local = op.Cast(op.Gather(expert_map, ids), to=7)
    count = op.Squeeze(op.Shape(w1, start=0, end=1))
    numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    zeros = op.Mul(op.Cast(x, to=1), op.Constant(value_float=0.0))

    @graph()
    def expert(y, number, w1_e, s1_e, w3_e, s3_e, w2_e, s2_e):
        slots = op.Transpose(op.NonZero(op.Equal(local, number)), perm=[1, 0])
        tokens = op.Squeeze(op.Shape(slots, start=0, end=1))
        if op.Greater(tokens, op.Constant(value_int=0)):
            added = ds.DsExpert(
                y,
                x,
                weights,
                slots,
                op.DequantizeLinear(
                    w1_e,
                    ds.DsRowScales(s1_e, op.Shape(w1_e, start=0, end=1)),
                    axis=1,
                    block_size=128,
                ),
                op.DequantizeLinear(
                    w3_e,
                    ds.DsRowScales(s3_e, op.Shape(w3_e, start=0, end=1)),
                    axis=1,
                    block_size=128,
                ),
                op.DequantizeLinear(
                    w2_e,
                    ds.DsRowScales(s2_e, op.Shape(w2_e, start=0, end=1)),
                    axis=1,
                    block_size=128,
                ),
            )
        else:
            added = op.Identity(y)
        return added

    y = op.Scan(zeros, numbers, w1, s1, w3, s3, w2, s2, body=expert, num_scan_inputs=7)
    return op.CastLike(y, x)


@script(ds, default_opset=op)
def DistCollective(
    x, collective_operation: str = "all_reduce", reduce_op: str = "sum", root: int = -1
):
    """Return the sum of x over all ranks. ONNX Runtime has one rank, and returns x."""
    return op.Identity(x)


BODIES = {  # how the functions compute: others give the same; FP8 plugins round activations, too
    "DsMlaAttention": "a loop over rows",
    "DsMoE": "a loop over the experts that were chosen",
    "DsFp8BlockMoE": "a scan over experts that widens those that were chosen",
    "DsFp8BlockLinear": "DequantizeLinear and Gemm, when there are tokens",
}
OPS = (DistCollective, DsMlaAttention, DsMoE, DsFp8BlockLinear, DsFp8BlockMoE)
PARTS = {"DsMlaAttention": (DsSlots,), "DsMoE": (DsExpert,), "DsFp8BlockLinear": (DsRowScales,)}
PARTS["DsFp8BlockMoE"] = (DsRowScales, DsExpert)


def functions_of(ops: set[str]) -> list[onnx.FunctionProto]:
    """Return the functions that nodes of these types need."""
    named = {function.name: function for function in OPS if function.name in ops}
    for name in list(named):
        named |= {part.name: part for part in PARTS.get(name, ())}
    protos = [function.to_function_proto() for function in named.values()]
    for proto in protos:
        if all(imported.domain != DOMAIN for imported in proto.opset_import):
            proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    return protos
