"""Bytes and FLOPs by hand, and the table of the page."""

from pathlib import Path

import pytest
import torch

from dstools_kernels.proof import roofline

F32 = torch.float32
PAGE = Path(__file__).parents[3] / "docs/kernels.md"


def test_bytes_of_quantizers_by_hand() -> None:
    """2 tokens of 200 columns: 800 bytes in, 400 codes and 2 x 2 scales of 4 bytes out.

    A list of 4 rows has 16 bytes.
    """
    assert roofline.act_quant(2, 200).bytes_moved == 800 + 400 + 16
    assert roofline.act_quant(2, 200, rows=4).bytes_moved == 800 + 16 + 800 + 32
    assert roofline.swiglu_quant(2, 200).bytes_moved == 1600 + 400 + 16
    assert roofline.weight_quant(576, 128).bytes_moved == 576 * 128 * 3 + 5 * 4
    assert roofline.act_quant(2, 200, dtype=F32).bytes_moved == 1600 + 400 + 16
    assert roofline.weight_quant(576, 128, dtype=F32).bytes_moved == 576 * 128 * 5 + 5 * 4


def test_bytes_and_flops_of_products_by_hand() -> None:
    """3 x 256 times 128 x 256: scales 3 x 2 and 1 x 2."""
    work = roofline.fp8_gemm(3, 128, 256)
    assert work.bytes_moved == 3 * 256 + 24 + 128 * 256 + 8 + 2 * 3 * 128
    assert work.flops == 2 * 3 * 128 * 256
    grouped = roofline.moe_gemm(3, 4, 128, 256)
    assert grouped.bytes_moved - work.bytes_moved == 3 * (128 * 256 + 8)
    assert grouped.flops == work.flops
    bf16 = roofline.moe_gemm(3, 4, 128, 256, "bf16")
    assert bf16.bytes_moved == 2 * (3 * 256 + 4 * 128 * 256 + 3 * 128)
    assert (bf16.unit, bf16.flops) == ("bf16", work.flops)
    assert roofline.fp8_gemm(3, 128, 256, F32).bytes_moved - work.bytes_moved == 2 * 3 * 128
    assert roofline.gemm(3, 5, 7, dtype=F32).bytes_moved == 2 * (21 + 35) + 4 * 15
    assert roofline.gemm(3, 5, 7, heads=2).bytes_moved == 2 * 2 * (21 + 35 + 15)
    assert roofline.gemm(3, 5, 7, heads=2).flops == 2 * 2 * 105


def test_bytes_and_flops_of_attention_by_hand() -> None:
    """One sequence of 10 tokens, 128 heads: q 576 and o 512 a head, scores 576 and sums 512."""
    work = roofline.mla_decode(1, 10)
    assert work.bytes_moved == 10 * 1152 + 2 * 128 * 1088
    assert work.flops == 2 * 128 * 10 * 1088
    two = roofline.mla_decode(1, 10, new=2)
    assert (two.bytes_moved, two.flops) == (10 * 1152 + 2 * 2 * 128 * 1088, 2 * work.flops)
    assert roofline.mla_decode(1, 10, 656).bytes_moved == work.bytes_moved - 10 * (1152 - 656)
    assert roofline.mla_merge(1, 2).bytes_moved == 128 * (2 * 513 * 4 + 512 * 2)
    assert roofline.latent_pages(3).bytes_moved == 3 * (1152 + 1152 + 8)
    prefill = roofline.mla_prefill(2)  # 3 pairs; q 192, k 128 and 64 shared, v and o 128
    assert prefill.flops == 2 * 128 * 3 * 320
    assert prefill.bytes_moved == 2 * 2 * (128 * (192 + 128 + 128 + 128) + 64)


def test_bytes_of_routing_by_hand() -> None:
    assert roofline.router(1).bytes_moved == 256 * 4 + 8 * 8
    assert roofline.permute(1).bytes_moved == 3 * 4 * 8 + 4 * (256 + 32 + 1)
    assert roofline.router(1, 64, 6).bytes_moved == 64 * 4 + 6 * 8
    assert roofline.combine(1).bytes_moved == 2 * 7168 * (8 + 2) + 8 * 8
    assert roofline.combine(1, False, F32).bytes_moved == 4 * 7168 * (8 + 1) + 8 * 8


def test_the_least_time_is_that_of_the_slower_part() -> None:
    work = roofline.Work("x", "", bytes_moved=3_350_000, flops=990_000_000)
    assert work.seconds("H100") == pytest.approx(1e-6)
    assert work.is_bound_by_memory("H100")
    assert not work.is_bound_by_memory("H200")
    assert roofline.Work("x", "", 0, 1979, "fp8").seconds("H200") == pytest.approx(1e-12)


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text()
    assert f"<!-- roofline -->\n{roofline.table()}\n<!-- end -->" in text
