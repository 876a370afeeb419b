"""scripts/engines/matrices.py: a wrong weight in an engine's memory is named."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module, Parameter


@pytest.fixture
def matrices(load_script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts" / "engines"))
    return load_script("matrices")


def codes(rows: int, cols: int, seed: int, block: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes E4M3 [rows, cols], scales F32, and code * scale in BF16, worked out by hand."""
    draw = torch.Generator().manual_seed(seed)
    code = torch.randn(rows, cols, generator=draw).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(math.ceil(rows / block), math.ceil(cols / block), generator=draw) + 0.5
    weight = code.float()
    for row in range(rows):
        for tile in range(scale.shape[1]):
            weight[row, tile * block : (tile + 1) * block] *= scale[row // block, tile]
    return code, scale, weight.to(torch.bfloat16)


def module(**parameters: Tensor) -> Module:
    made = Module()
    for name, tensor in parameters.items():
        made.register_parameter(name, Parameter(tensor, requires_grad=False))
    return made


def test_a_weight_equal_bit_by_bit_is_equal_in_both_spellings_of_scales(matrices: Any) -> None:
    code, scale, weight = codes(200, 300, 0)
    native = module(weight=code, weight_scale_inv=scale)
    compressed = module(weight=code, weight_scale=scale)
    held = [("a.o_proj", native), ("b.o_proj", compressed)]
    wanted = {"a.o_proj.weight": weight, "b.o_proj.weight": weight}
    assert matrices.compare(held, wanted) == dict.fromkeys(wanted, True)


def test_one_wrong_bit_is_seen(matrices: Any) -> None:
    code, scale, weight = codes(128, 128, 1)
    weight[3, 5] = weight[3, 5] * 2 + 1
    held = [("o_proj", module(weight=code, weight_scale_inv=scale))]
    assert matrices.compare(held, {"o_proj.weight": weight}) == {"o_proj.weight": False}


def test_scales_that_an_engine_did_not_load_make_the_weight_wrong(matrices: Any) -> None:
    code, scale, weight = codes(128, 128, 1)
    unset = torch.full_like(scale, torch.finfo(torch.float32).min)
    held = [("o_proj", module(weight=code, weight_scale_inv=unset))]
    assert matrices.compare(held, {"o_proj.weight": weight}) == {"o_proj.weight": False}
    held = [("o_proj", module(weight=code.to(torch.bfloat16)))]  # taken for unquantized
    assert matrices.compare(held, {"o_proj.weight": weight}) == {"o_proj.weight": False}


def test_of_a_fused_matrix_each_part_is_judged(matrices: Any) -> None:
    parts = [codes(rows, 128, seed) for seed, rows in enumerate((256, 128, 128))]
    parts[1][1][0, 0] *= 2  # k's scale
    code = torch.cat([part[0].view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    scale = torch.cat([part[1] for part in parts])
    wanted = {f"l.{n}_proj.weight": part[2] for n, part in zip("qkv", parts, strict=True)}
    got = matrices.compare([("l.qkv_proj", module(weight=code, weight_scale_inv=scale))], wanted)
    expected = {"l.q_proj.weight": True, "l.k_proj.weight": False, "l.v_proj.weight": True}
    assert got == expected


def test_a_ragged_part_shifts_the_scales_of_the_next_one(matrices: Any) -> None:
    """What vllm-project/vllm#52997 describes: 192 rows of q, and k's scales start at row 256."""
    (q_code, q_scale, q), (k_code, k_scale, k) = codes(192, 128, 0), codes(128, 128, 1)
    code = torch.cat([q_code.view(torch.uint8), k_code.view(torch.uint8)])
    held = module(
        weight=code.view(torch.float8_e4m3fn), weight_scale_inv=torch.cat([q_scale, k_scale])
    )
    wanted = {"q_a_proj.weight": q, "kv_a_proj_with_mqa.weight": k}
    got = matrices.compare([("fused_qkv_a_proj", held)], wanted)
    assert got == {"q_a_proj.weight": True, "kv_a_proj_with_mqa.weight": False}


def test_experts_are_taken_apart_and_wrappers_left_out_of_names(matrices: Any) -> None:
    grid = [[codes(128, 256, 10 * expert + part) for part in range(3)] for expert in range(2)]
    grid = [[*expert[:2], codes(256, 128, 7)] for expert in grid]
    wanted = {}
    for number, expert in enumerate(grid):
        for part, (*_, weight) in zip(("gate", "up", "down"), expert, strict=True):
            wanted[f"model.layers.4.mlp.experts.{number}.{part}_proj.weight"] = weight

    def stacked(item: int, parts: slice) -> Tensor:
        joined = [torch.cat([part[item].float() for part in expert[parts]]) for expert in grid]
        return torch.stack(joined)

    w13, w2 = slice(0, 2), slice(2, 3)
    held = module(
        w13_weight=stacked(0, w13).to(torch.float8_e4m3fn),
        w13_weight_scale_inv=stacked(1, w13),
        w2_weight=stacked(0, w2).to(torch.float8_e4m3fn),
        w2_weight_scale_inv=stacked(1, w2),
    )
    path = "model.layers.4.mtp_block.mlp.experts.routed_experts"
    assert matrices.compare([(path, held)], wanted) == dict.fromkeys(wanted, True)


def test_unquantized_weights_norms_and_a_padded_vocabulary(matrices: Any) -> None:
    head = torch.randn(100, 64).to(torch.bfloat16)
    padded = torch.cat([head, torch.zeros(28, 64, dtype=torch.bfloat16)])
    held = [("lm_head", module(weight=padded)), ("norm", module(weight=torch.ones(64)))]
    assert matrices.compare(held, {"lm_head.weight": head}) == {"lm_head.weight": True}


def test_a_matrix_with_too_few_rows_is_wrong(matrices: Any) -> None:
    code, scale, weight = codes(128, 128, 0)
    held = [("gate_up_proj", module(weight=code, weight_scale_inv=scale))]
    wanted = {"gate_proj.weight": weight, "up_proj.weight": weight}
    assert matrices.compare(held, wanted) == dict.fromkeys(wanted, False)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_a_refined_grid_of_scales_restores_the_same_weight(matrices: Any, block: int) -> None:
    code, scale, weight = codes(192, 384, 3, block)
    assert matrices.same_bits(matrices.restore(code, scale), weight)


def test_nan_is_not_equal_to_a_number_and_minus_zero_not_to_zero(matrices: Any) -> None:
    zero = torch.zeros(2, 2, dtype=torch.bfloat16)
    assert matrices.same_bits(zero, zero)
    assert not matrices.same_bits(-zero, zero)
    assert not matrices.same_bits(zero * math.nan, zero)
