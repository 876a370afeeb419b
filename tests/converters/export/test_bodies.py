"""The bodies of the ops in ONNX Runtime against torch, with and without its optimisations."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from dstools_converters.export.functions import BODIES, DOMAIN, OPS, PLUGIN, VERSION, functions_of

KINDS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.int32: TensorProto.INT32,
}
LEVELS = onnxruntime.GraphOptimizationLevel
BOTH = [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL]
RANKS = {"o": ["t", "h", "l"], "written": ["p", "s", 1, "c"], "y": ["t", "d"]}
EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BOTH, ids=["plain", "optimised"])
def level(request: pytest.FixtureRequest) -> Any:
    return request.param


def run(
    op: str, inputs: dict[str, Tensor], baked: str, level: Any, **attributes: Any
) -> list[Tensor]:
    """Return the outputs of one node; inputs whose names are in `baked` are weights of the file."""
    held = baked.split()
    outputs = ["o", "written"] if op == "DsMlaAttention" else ["y"]
    plugin = PLUGIN if op in BODIES else {}
    node = helper.make_node(op, [*inputs], outputs, domain=DOMAIN, **plugin, **attributes)
    kind = KINDS[next(iter(inputs.values())).dtype]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, KINDS[value.dtype], value.shape)
            for name, value in inputs.items()
            if name not in held
        ],
        [helper.make_tensor_value_info(name, kind, RANKS[name]) for name in outputs],
        [
            helper.make_tensor(
                name,
                KINDS[inputs[name].dtype],
                inputs[name].shape,
                inputs[name].contiguous().view(torch.uint8).numpy().tobytes(),
                raw=True,
            )
            for name in held
        ],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model.functions.extend(functions_of({op}))
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level = 1, level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    for name, value in inputs.items():
        if name not in held:
            binding.bind_ortvalue_input(name, _value(value))
    for name in outputs:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return [torch.from_numpy(output.numpy()) for output in binding.get_outputs()]


def _value(value: Tensor) -> Any:
    if value.dtype != torch.float8_e4m3fn:
        return onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy())
    codes = value.view(torch.uint8).numpy()
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, KINDS[value.dtype])


# ---------------------------------------------------------------------------------------- attention

HEADS, LATENT, ROTARY, PAGE, SCALE = 3, 24, 8, 16, 0.3


class Paged(NamedTuple):
    """New tokens of some rows, and caches with those before; places that none wrote hold NaN."""

    inputs: dict[str, Tensor]
    pasts: list[int]
    news: list[int]

    def rows(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield where a row's new tokens are, how many it had, and its latents, all of them."""
        end = 0
        for number, (past, new) in enumerate(zip(self.pasts, self.news, strict=True)):
            begin, end = end, end + new
            pages = self.inputs["table"][number, : -(-(past + new) // PAGE)].long()
            before = self.inputs["cache"][pages].flatten(0, 2)[:past]
            yield slice(begin, end), past, torch.cat((before, self.inputs["latent"][begin:end]))


def paged(pasts: list[int], news: list[int], dtype: torch.dtype = torch.float32) -> Paged:
    width = LATENT + ROTARY
    needed = [-(-(past + new) // PAGE) for past, new in zip(pasts, news, strict=True)]
    order = torch.randperm(sum(needed) + 3).int()
    table = torch.full((len(needed), max(needed) + 1), -1, dtype=torch.int32)
    cache = torch.full((len(order), PAGE, 1, width), torch.nan)
    for number, (past, pages) in enumerate(zip(pasts, needed, strict=True)):
        table[number, :pages], order = order[:pages], order[pages:]
        rows = torch.full((pages * PAGE, 1, width), torch.nan)
        rows[:past] = torch.randn(past, 1, width)
        cache[table[number, :pages].long()] = rows.view(pages, PAGE, 1, width)
    inputs = {
        "q": torch.randn(sum(news), HEADS, width).to(dtype),
        "latent": torch.randn(sum(news), width).to(dtype),
        "cache": cache.to(dtype),
        "cumulative": torch.tensor([0, *news]).cumsum(0).int(),
        "past": torch.tensor(pasts).int(),
        "table": table,
    }
    return Paged(inputs, pasts, news)


def attended(batch: Paged) -> Tensor:
    """Return [T, H, L] in float64."""
    found = torch.zeros(sum(batch.news), HEADS, LATENT, dtype=torch.float64)
    for own, past, latents in batch.rows():
        q, keys = batch.inputs["q"][own].double(), latents.double()
        scores = torch.einsum("thc,kc->thk", q, keys) * SCALE
        place = torch.arange(len(keys))
        sees = place <= past + torch.arange(len(q))[:, None]
        shares = scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1)
        found[own] = shares @ keys[:, :LATENT]
    return found


def attend(batch: Paged, level: Any) -> tuple[Tensor, Tensor]:
    kind = KINDS[batch.inputs["q"].dtype]
    o, written = run(
        "DsMlaAttention", batch.inputs, "", level, scale=SCALE, rank=LATENT, dtype=kind
    )
    return o, written


ROWS = {
    "one token": ([0], [1]),
    "the last place of a page": ([15], [1]),
    "the first place of a page": ([16], [1]),
    "over a border": ([15], [2]),
    "whole pages": ([16, 0], [32, 16]),
    "a chunk beside tokens": ([3, 0, 40, 31], [1, 21, 1, 1]),
    "a row that only just enters": ([35, 0], [1, 1]),
    "a row without new tokens": ([5, 20, 7], [1, 0, 2]),
    "the first row without new tokens": ([5, 20], [0, 2]),
    "the last row without new tokens": ([5, 20], [2, 0]),
    "an empty row": ([5, 0, 7], [1, 0, 2]),
    "nothing new": ([5, 0], [0, 0]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_attention_is_that_of_torch_and_no_unwritten_place_shows(
    rows: tuple[list[int], list[int]], level: Any
) -> None:
    """Scores are sums of 32 products around 1: 32 * 2^-24 * ~10 off at most, shares twice that."""
    batch = paged(*rows)
    o, _ = attend(batch, level)
    assert o.shape == (sum(batch.news), HEADS, LATENT)
    assert ((o - attended(batch)).abs() <= 5e-5).all()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_new_latents_go_to_their_places_and_nothing_else_changes(
    rows: tuple[list[int], list[int]], level: Any
) -> None:
    batch = paged(*rows)
    wanted, table = batch.inputs["cache"].clone(), batch.inputs["table"]
    for number, (own, past, latents) in enumerate(batch.rows()):
        for place in range(past, past + own.stop - own.start):
            wanted[table[number, place // PAGE], place % PAGE, 0] = latents[place]
    _, written = attend(batch, level)
    assert torch.equal(written.view(torch.int32), wanted.view(torch.int32))  # NaN, too


def test_attention_in_float16_is_as_exact_as_its_numbers(level: Any) -> None:
    """Scores up to ~10 are rounded to 2^-8, so shares are off by that part, latents are up to 4."""
    batch = paged([15, 0], [2, 20], torch.float16)
    o, written = attend(batch, level)
    assert o.dtype == written.dtype == torch.float16
    assert (o - attended(batch)).abs().max() <= 4 * 2.0**-7


def test_a_row_is_attended_alone_as_beside_others(level: Any) -> None:
    """To the bit: no row is padded to another's length."""
    batch = paged([3, 0, 40], [1, 21, 1])
    together, _ = attend(batch, level)
    ends = batch.inputs["cumulative"]
    for number in range(3):
        own = slice(ends[number], ends[number + 1])
        alone = batch.inputs | {
            "q": batch.inputs["q"][own],
            "latent": batch.inputs["latent"][own],
            "cumulative": torch.tensor([0, batch.news[number]]).int(),
            "past": batch.inputs["past"][number : number + 1],
            "table": batch.inputs["table"][number : number + 1],
        }
        one = Paged(alone, batch.pasts[number : number + 1], batch.news[number : number + 1])
        assert torch.equal(attend(one, level)[0], together[own])


# ------------------------------------------------------------------------------------------ experts


class Routed(NamedTuple):
    """Tokens, which experts they chose, and the weights of those that are here."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    expert_map: Tensor
    stacks: tuple[Tensor, Tensor, Tensor]  # w1 and w3 [e, I, D], w2 [e, D, I]

    def inputs(self) -> dict[str, Tensor]:
        names = ("x", "ids", "weights", "expert_map", "w1", "w3", "w2")
        return dict(zip(names, (*self[:4], *self.stacks), strict=True))


def routed(ids: list[list[int]], places: list[int], inner: int = 40, hidden: int = 32) -> Routed:
    count = max(places) + 1
    shapes = ((count, inner, hidden), (count, inner, hidden), (count, hidden, inner))
    return Routed(
        torch.randn(len(ids), hidden),
        torch.tensor(ids).int(),
        torch.rand(len(ids), len(ids[0])) + 0.1,
        torch.tensor(places).int(),
        tuple(torch.randn(*shape) / shape[-1] ** 0.5 for shape in shapes),  # type: ignore[arg-type]
    )


def summed(batch: Routed) -> Tensor:
    """Return [T, D] in float64."""
    w1, w3, w2 = (stack.double() for stack in batch.stacks)
    y = torch.zeros(batch.x.shape, dtype=torch.float64)
    for t, (x, ids, weights) in enumerate(
        zip(batch.x.double(), batch.ids, batch.weights, strict=True)
    ):
        for number, weight in zip(ids.tolist(), weights.double(), strict=True):
            e = int(batch.expert_map[number])
            if e >= 0:
                y[t] += weight * (w2[e] @ (torch.nn.functional.silu(w1[e] @ x) * (w3[e] @ x)))
    return y


IDENTITY = [0, 1, 2, 3, 4, 5]
CHOICES = {
    "one token": ([[4, 1]], IDENTITY),
    "one choice": ([[4], [1], [4]], IDENTITY),
    "some experts without tokens": ([[0, 5], [5, 3], [0, 3], [5, 0]], IDENTITY),
    "all tokens to one expert": ([[2, 3]] * 5, IDENTITY),
    "all experts": ([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]], IDENTITY),
    "permuted": ([[0, 5], [5, 3], [1, 2]], [3, 1, 5, 0, 2, 4]),
    "some elsewhere": ([[0, 5], [5, 3], [1, 2]], [-1, 0, -1, 1, -1, 2]),
    "the first place for the last expert": ([[0, 5], [5, 3]], [-1, -1, -1, -1, -1, 0]),
    "a token with no expert here": ([[0, 2], [1, 3]], [-1, 0, -1, 1, -1, 2]),
    "no token with an expert here": ([[0, 2], [4, 2]], [-1, 0, -1, 1, -1, 2]),
    "two copies, one used": ([[0, 5], [5, 3], [1, 2]], [6, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("baked", ["", "w1 w3 w2 expert_map"], ids=["fed", "baked"])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_experts_are_those_of_torch(
    choices: tuple[list[list[int]], list[int]], baked: str, level: Any
) -> None:
    """Each of six experts is three sums of at most 40 products, which are numbers up to 4."""
    batch = routed(*choices)
    (y,) = run("DsMoE", batch.inputs(), baked, level)
    assert (y - summed(batch)).abs().max() <= 6 * 3 * 40 * 4 * EPS[torch.float32]


def test_a_step_without_tokens_adds_nothing(level: Any) -> None:
    batch = routed(*CHOICES["one token"])
    empty = batch._replace(x=batch.x[:0], ids=batch.ids[:0], weights=batch.weights[:0])
    (y,) = run("DsMoE", empty.inputs(), "w1 w3 w2", level)
    assert y.shape == (0, 32)


def test_experts_of_float16_add_up_in_float32(level: Any) -> None:
    """ONNX Runtime refuses to add float16. Each of six shares has three roundings of up to 2^3."""
    batch = routed(*CHOICES["all experts"])
    halved = batch._replace(x=batch.x.half(), stacks=tuple(w.half() for w in batch.stacks))
    (y,) = run("DsMoE", halved.inputs(), "w1 w3 w2", level)
    assert y.dtype == torch.float16
    assert (y - summed(halved)).abs().max() <= 6 * 3 * 8 * EPS[torch.float16]


# ---------------------------------------------------------------------------------------------- FP8


def coded(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return all kinds of codes, scales over five powers of ten, and the weight that they are."""
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scales = 10 ** (torch.rand(grid) * 5 - 7)
    wide = scales.repeat_interleave(128, -2).repeat_interleave(128, -1)
    wide = wide[..., : shape[-2], : shape[-1]]
    weight = codes.view(torch.float8_e4m3fn)
    return weight, scales, weight.float() * wide


@pytest.mark.parametrize("baked", ["", "w scale_inv"], ids=["fed", "baked"])
@pytest.mark.parametrize(
    ("tokens", "rows", "columns"),
    [
        (1, 128, 128),
        (3, 256, 384),
        (3, 1, 128),
        (2, 130, 128),
        (2, 128, 1),
        (4, 224, 200),
        (2, 96, 129),
    ],
)
def test_a_product_by_codes_is_that_of_code_times_scale(
    tokens: int, rows: int, columns: int, baked: str, level: Any
) -> None:
    x = torch.randn(tokens, columns)
    w, scale_inv, weight = coded(rows, columns)
    (y,) = run("DsFp8BlockLinear", {"x": x, "w": w, "scale_inv": scale_inv}, baked, level)
    wanted = x.double() @ weight.double().T
    sizes = x.abs().double() @ weight.abs().double().T  # a sum of n products is off by n eps of it
    assert ((y - wanted).abs() <= columns * EPS[torch.float32] * sizes).all()


def test_codes_of_a_tile_take_the_scale_of_that_tile(level: Any) -> None:
    """To the bit, by a product with the identity: each number is one code times one scale."""
    w, scale_inv, weight = coded(300, 260)
    (y,) = run(
        "DsFp8BlockLinear", {"x": torch.eye(260), "w": w, "scale_inv": scale_inv}, "w", level
    )
    assert torch.equal(y.T, weight)


@pytest.mark.parametrize("baked", ["", "w1 s1 w3 s3 w2 s2"], ids=["fed", "baked"])
@pytest.mark.parametrize(("inner", "hidden"), [(128, 128), (160, 96), (40, 200), (256, 130)])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_experts_of_codes_are_those_of_code_times_scale(
    choices: tuple[list[list[int]], list[int]], inner: int, hidden: int, baked: str, level: Any
) -> None:
    plain = routed(*choices, inner=inner, hidden=hidden)
    parts = [coded(*stack.shape) for stack in plain.stacks]
    plain = plain._replace(stacks=tuple(weight for _, _, weight in parts))
    inputs = dict(list(plain.inputs().items())[:4])
    for number, (codes, scales, _) in zip((1, 3, 2), parts, strict=True):
        inputs |= {f"w{number}": codes, f"s{number}": scales}
    (y,) = run("DsFp8BlockMoE", inputs, baked, level)
    (wide,) = run("DsMoE", plain.inputs(), "", level)
    assert torch.equal(y, wide)  # the same products, of the same numbers, in the same order
    wanted = summed(plain)
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-30


# -------------------------------------------------------------------------------------- all of them


def test_every_op_says_how_its_body_computes() -> None:
    assert {function.name for function in OPS} == {*BODIES, "DistCollective"}


def test_a_sum_over_ranks_is_the_part_of_the_only_rank(level: Any) -> None:
    x = torch.randn(2, 3)
    (y,) = run("DistCollective", {"x": x}, "", level)
    assert torch.equal(x, y)


@pytest.mark.parametrize("op", sorted(BODIES))
def test_no_body_casts_codes_or_reshapes_them(op: str) -> None:
    """TensorRT builds neither without a plugin, and ONNX Runtime folds a Reshape into a copy."""
    bodies = {function.name: function for function in functions_of({op})}

    def consumers(name: str, nodes: Any) -> Iterator[str]:
        for node in nodes:
            if name in node.input:
                yield node.op_type
            for attribute in node.attribute:
                yield from consumers(name, attribute.g.node)

    for name in ("w", "w1_e", "w3_e", "w2_e"):
        found = set(consumers(name, bodies[op].node))
        assert found <= {"DequantizeLinear", "Shape"}
