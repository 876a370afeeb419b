"""A weight is rounded by the best method that its inputs allow, and its note is true.

The small cases are worked by hand. On the grid of block FP8 the amax of a block lands on 448, so
with 448 in it the scale is 1, and the codes around 17 are those of 16, 18 and 20: two apart.
"""

import math
from hashlib import sha256

import pytest
import torch
from torch import Tensor

from dstools_converters.layerwise.rounding import BLOCK, Rounded, Seen, output_error, round_weight
from dstools_kernels import gptq

# E4M3: 448 is 0x7E; 16 is 2^4, exponent 4 + 7 = 11 and mantissa 0: 0x58; steps there are 2, so 18
# is 0x59. 17 is halfway between them, and ties go to even, 16.
WEIGHT = torch.tensor([[448.0, 0.0], [0.0, 17.0]])


def seen(*tokens: list[float]) -> Seen:
    values = torch.tensor(tokens)
    activations = Seen(torch.zeros(values.shape[1], values.shape[1]))
    activations.add(values)
    return activations


def normal(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, width: int) -> Seen:
    """Inputs with most of their power in a few directions, as in a trained model."""
    activations = Seen(torch.zeros(width, width))
    activations.add(normal(tokens, width, 1) + 3 * normal(tokens, 4, 2) @ normal(4, width, 3))
    return activations


def test_the_hessian_is_the_sum_over_tokens() -> None:
    # [1, 2] and [3, -1]: 1 + 9, 2 - 3, 4 + 1
    activations = seen([1.0, 2.0], [3.0, -1.0])
    assert activations.hessian().tolist() == [[10.0, -1.0], [-1.0, 5.0]]
    assert activations.tokens == 2
    activations.add(torch.tensor([[1.0, 0.0]]))
    assert activations.hessian().tolist() == [[11.0, -1.0], [-1.0, 5.0]]
    assert activations.tokens == 3


@pytest.mark.parametrize("width", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 70])
def test_the_hessian_is_symmetric_and_whole_whatever_the_width(width: int) -> None:
    """Small whole numbers, whose sums are exact; tokens may come after it was asked for."""
    values = normal(9, width).mul(3).round()
    activations = Seen(torch.zeros(width, width))
    activations.add(values[:4])
    assert torch.equal(activations.hessian(), values[:4].T @ values[:4])
    activations.add(values[4:])
    assert torch.equal(activations.hessian(), values.T @ values)


def test_nearest_by_hand() -> None:
    """(W - Q) x is [0, x_2]: for x = [1, 2], [3, -1] 2 and -1; W x is [448, 34], [1344, -17]."""
    rounded = round_weight(WEIGHT, seen([1.0, 2.0], [3.0, -1.0]), "gptq", "float32", 2)
    assert rounded.codes.tolist() == [[0x7E, 0], [0, 0x58]]
    assert rounded.scale_inv.tolist() == [[1.0]]
    wanted = math.sqrt((2**2 + 1**2) / (448**2 + 34**2 + 1344**2 + 17**2))
    assert rounded.error_nearest == pytest.approx(wanted, rel=1e-6)
    assert rounded.method == "nearest"  # nothing is as near: the two inputs are hardly correlated
    assert rounded.why == "gptq brings it no nearer on the data"
    assert rounded.error == rounded.error_nearest


def test_gptq_by_hand() -> None:
    """Row [17, 17] on equal inputs: nearest is off by 2 a token; rounding one up is exact.

    448 in another row keeps the scale at 1. Equal inputs: (W - Q) x = 34 - (16 + 18) = 0.
    """
    weight = torch.tensor([[17.0, 17.0], [448.0, 0.0]])
    inputs = [[1.0, 1.0], [2.0, 2.0]]
    rounded = round_weight(weight, seen(*inputs), "gptq", "float32", 2)
    assert (rounded.method, rounded.why) == ("gptq", "")
    assert sorted(rounded.codes[0].tolist()) == [0x58, 0x59]
    assert rounded.codes[1].tolist() == [0x7E, 0]
    # nearest: 2 and 4 of W x = 34, 68 and of the other row 448, 896
    wanted = math.sqrt((2**2 + 4**2) / (34**2 + 68**2 + 448**2 + 896**2))
    assert rounded.error_nearest == pytest.approx(wanted, rel=1e-6)
    assert rounded.error == 0
    note = rounded.note(weight, 2, "own", 4)
    assert note.moved == 1
    assert note.far == 0
    assert note.numel == 4
    # both of the row are off by 1, of 17, 17 and 448
    assert note.weight_error == pytest.approx(math.sqrt(2 / (2 * 17**2 + 448**2)), rel=1e-12)
    raw = bytes(rounded.codes.flatten().tolist()) + rounded.scale_inv.numpy().tobytes()
    assert note.sha256 == sha256(raw).hexdigest()


def test_a_note_counts_codes_that_moved_and_those_that_moved_far() -> None:
    codes = torch.tensor([[0x7E, 0x80], [0x01, 0x5A]], dtype=torch.uint8)  # -0, 2^-9, 20
    rounded = Rounded(codes, torch.ones(1, 1), "gptq", "", 0.5, 0.25)
    note = rounded.note(WEIGHT, 2, "own", 4)
    # -0 is +0; 2^-9 is the code above 0; from 16 to 20 it is two steps
    assert (note.moved, note.far) == (2, 1)
    assert note.weight_error == pytest.approx(
        math.sqrt((2.0**-18 + 3**2) / (448**2 + 17**2)), rel=1e-12
    )
    assert (note.method, note.why) == ("gptq", "")
    assert (note.error_nearest, note.error) == (0.5, 0.25)


def test_a_weight_of_zeros_has_no_error() -> None:
    for method in ("gptq", "mse"):
        rounded = round_weight(torch.zeros(3, 2), seen([1.0, 2.0], [0.0, 1.0]), method, "ue8m0", 2)
        assert rounded.error == rounded.error_nearest == 0
        assert rounded.method == "nearest"
        assert rounded.note(torch.zeros(3, 2), 2, "own", 4).weight_error == 0


def test_fewer_tokens_than_inputs_leave_it_nearest() -> None:
    weight = normal(8, 5)
    few, enough = Seen(torch.zeros(5, 5)), Seen(torch.zeros(5, 5))
    few.add(normal(4, 5))
    enough.add(normal(5, 5))
    rounded = round_weight(weight, few, "gptq", "float32", 128)
    assert rounded.method == "nearest"
    assert rounded.why == "it saw 4 tokens, fewer than its 5 inputs"
    power = gptq.output_power(weight, few.hessian())
    error = output_error(weight, rounded.codes, rounded.scale_inv, 128, few.hessian(), power)
    assert rounded.error == rounded.error_nearest == error
    assert "fewer than" not in round_weight(weight, enough, "gptq", "float32", 128).why


def test_a_weight_that_saw_no_tokens_is_nearest_and_has_no_error() -> None:
    rounded = round_weight(normal(8, 5), None, "mse", "float32", 128)
    assert rounded.method == "nearest"
    assert rounded.why == "it saw 0 tokens, fewer than its 5 inputs"
    assert rounded.error is None
    assert rounded.error_nearest is None


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize("method", ["gptq", "mse"])
def test_an_unusable_hessian_leaves_it_nearest_and_the_note_says_why(
    method: str, value: float
) -> None:
    bad = Seen(torch.full((5, 5), value), 10)
    rounded = round_weight(normal(8, 5), bad, method, "float32", 128)  # type: ignore[arg-type]
    assert rounded.method == "nearest"
    assert rounded.why
    assert rounded.error == rounded.error_nearest == (0 if value == 0 else None)
    assert torch.equal(
        rounded.codes, round_weight(normal(8, 5), None, "gptq", "float32", 128).codes
    )


@pytest.mark.parametrize("scale_format", ["float32", "ue8m0"])
@pytest.mark.parametrize("method", ["gptq", "mse"])
def test_it_is_never_worse_on_the_data_than_nearest(method: str, scale_format: str) -> None:
    """Recomputed in float64; float32 products may differ by their rounding, 1e-4 of the error."""
    for seed in range(4):
        weight = normal(130, 140, seed)
        inputs = correlated(300, 140) if seed % 2 else Seen(torch.eye(140), 200)
        rounded = round_weight(weight, inputs, method, scale_format, 128)  # type: ignore[arg-type]
        assert rounded.error is not None
        assert rounded.error_nearest is not None
        plain = round_weight(weight, None, "gptq", scale_format, 128)  # type: ignore[arg-type]
        mine, nearest = (exact_error(weight, r, inputs) for r in (rounded, plain))
        assert rounded.error == pytest.approx(mine, rel=1e-4)
        assert rounded.error_nearest == pytest.approx(nearest, rel=1e-4)
        assert rounded.error <= rounded.error_nearest
        if rounded.method == "nearest":
            assert torch.equal(rounded.codes, plain.codes)
            assert torch.equal(rounded.scale_inv, plain.scale_inv)
        else:
            assert rounded.error < rounded.error_nearest
        if method == "gptq":
            assert torch.equal(rounded.scale_inv, plain.scale_inv)  # from amax, whatever the codes
            # for inputs of equal power without correlation nearest is optimal
            assert rounded.method == ("gptq" if seed % 2 else "nearest")


def exact_error(weight: Tensor, rounded: Rounded, inputs: Seen) -> float:
    scale = rounded.scale_inv.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    codes = rounded.codes.view(torch.float8_e4m3fn).double()
    diff = weight.double() - codes * scale[: weight.shape[0], : weight.shape[1]]
    hessian, exact = inputs.hessian().double(), weight.double()
    return math.sqrt((diff @ hessian * diff).sum() / (exact @ hessian * exact).sum())
