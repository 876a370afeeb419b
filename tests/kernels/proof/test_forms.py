"""The other forms of ops, compared with the definitions."""

import pytest
import torch

from dstools_kernels.ops.act_quant import Quantized
from dstools_kernels.ops.dispatch import VARIABLE
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.triton.mla_decode_triton import CONFIGS, TILES
from dstools_kernels.proof import card, forms

CPU = torch.device("cpu")


def test_every_form_for_many_heads_is_tried() -> None:
    few = {f"{dtype}.{tiles[16][0]}x{tiles[16][1]}" for dtype, tiles in TILES.items()}
    named = {name.removeprefix("mla_decode/") for name in CONFIGS}
    assert {*forms.OF_DECODE} == named - {*few, "plan"}


def test_a_form_is_compared_with_the_definition_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_scaled_mm", lambda x, w: fp8_gemm(x, w))
    monkeypatch.setattr(forms, "_deep_gemm", lambda x, w: -fp8_gemm(x, w))
    right, wrong = forms.vendor_forms(3, 128, 256)
    assert right.name == "fp8_gemm 3 x 128 x 256, torch scaled_mm"
    assert card.check(right, CPU).is_right
    assert not card.check(wrong, CPU).is_right


def test_the_definition_of_every_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    for case in [*forms.decode_forms([3, 65], heads=64), *forms.vendor_forms(3, 128, 256)]:
        call = case.make(CPU)
        assert case.compare(call(), call())[0], case.name


def test_deep_gemm_is_given_codes_with_scales_and_an_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(x: tuple[torch.Tensor, ...], w: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        y.copy_(fp8_gemm(Quantized(*x), Quantized(*w)))

    module = type("DeepGemm", (), {"fp8_gemm_nt": staticmethod(product)})
    monkeypatch.setitem(__import__("sys").modules, "deep_gemm", module)
    assert card.check(forms.vendor_forms(3, 128, 256)[1], CPU).is_right
