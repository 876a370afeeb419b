"""The forms of mla_decode side by side."""

import torch

from dstools_kernels.ops.triton.mla_decode_triton import CONFIGS, TILES
from dstools_kernels.proof.forms import FORMS, forms


def test_every_form_for_many_heads_is_tried() -> None:
    few = {
        f"{dtype}.{heads}x{step}" for dtype, tiles in TILES.items() for heads, step in [tiles[16]]
    }
    assert {*FORMS} == {name.removeprefix("mla_decode/") for name in CONFIGS} - {*few, "plan"}


def test_forms_are_compared_with_the_definition_and_named() -> None:
    for case, form in zip(forms([3, 65], heads=64), FORMS, strict=True):
        call = case.make(torch.device("cpu"))
        assert case.compare(call(), call())[0]
        assert case.name.endswith(f"64 heads, {form}")
