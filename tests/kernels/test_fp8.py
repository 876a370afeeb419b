"""The constants of the format are those of torch's own dtypes."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from dstools_kernels import fp8
from dstools_kernels.formats import block_fp8

TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


def test_the_largest_code_is_torchs() -> None:
    assert torch.finfo(torch.float8_e4m3fn).max == fp8.E4M3_MAX


@pytest.mark.parametrize("name", get_args(fp8.FiniteDtype))
def test_the_largest_finite_number_is_torchs(name: fp8.FiniteDtype) -> None:
    assert block_fp8.largest_finite(name) == torch.finfo(TORCH[name]).max


def test_every_dtype_has_torchs_size() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH.items()} == fp8.ITEMSIZE
    named = {*get_args(fp8.Dtype), *get_args(fp8.WidenDtype), *get_args(fp8.FiniteDtype)}
    assert named == set(fp8.ITEMSIZE)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("BF16", np.int16), ("F16", np.int16), ("F8_E4M3", np.int8), ("F8_E5M2", np.int8)],
)
def test_the_mask_is_set_in_infinities_and_nans_alone(name: Any, bits: Any) -> None:
    every = np.arange(1 << 8 * np.dtype(bits).itemsize).astype(bits)
    is_finite = torch.from_numpy(every).view(TORCH[name]).float().isfinite().numpy()
    mask = fp8.NON_FINITE_BITS[name]
    assert (((every & mask) != mask) == is_finite).all()


def test_the_mask_of_wide_floats_is_their_exponent() -> None:
    assert np.float32(math.inf).view(np.uint32) == fp8.NON_FINITE_BITS["F32"]
    assert np.float64(math.inf).view(np.uint64) == fp8.NON_FINITE_BITS["F64"]


def test_a_search_tries_the_scale_of_amax_first_and_none_twice() -> None:
    for factors in fp8.SEARCHED.values():
        assert factors[0] == 1
        assert len(set(factors)) == len(factors)
    assert sorted(fp8.SEARCHED["float32"]) == [n / 20 for n in range(14, 27)]
    assert all(math.frexp(factor)[0] == 0.5 for factor in fp8.SEARCHED["ue8m0"])


def test_the_scale_of_a_block_of_zeros_is_a_normal_float32() -> None:
    tiny = torch.finfo(torch.float32).tiny
    assert set(fp8.AMAX_FLOOR) == set(get_args(fp8.ScaleFormat))
    assert all(floor / fp8.E4M3_MAX > tiny for floor in fp8.AMAX_FLOOR.values())
