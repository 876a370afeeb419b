"""Step L3: the sanitizer sees planted faults, and says nothing of kernels without one."""

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, a development extra")

import triton
import triton.language as tl

from dstools_kernels.proof.sanitizer import OutOfBounds, Race, sanitized

pytestmark = pytest.mark.usefixtures("interpreted")


@triton.jit
def double(x_ptr, y_ptr, count, BLOCK: tl.constexpr, STEP: tl.constexpr, MASK: tl.constexpr):
    at = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    keep = at < count + MASK
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=keep) * 2, mask=keep)


@triton.jit
def tile(x_ptr, y_ptr, rows, columns, EXTRA: tl.constexpr, SHIFT: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows + EXTRA, columns], [columns, 1], [16, 16])
    y = tl.make_tensor_descriptor(y_ptr, [rows, columns], [columns, 1], [16, 16])
    first = tl.program_id(0) * (16 - SHIFT)
    y.store([first, 0], x.load([first, 0]))


@triton.jit
def double_by_another(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    double(x_ptr, y_ptr, count, BLOCK, BLOCK, 0)


@triton.jit
def chain(x_ptr):
    at = tl.program_id(0)
    tl.store(x_ptr + at + 1, tl.load(x_ptr + at) + 1)


def run_double(step: int = 32, mask: int = 0, grid: int = 4) -> torch.Tensor:
    x, y = torch.arange(100.0), torch.full((100,), float("nan"))
    double[(grid,)](x, y, 100, 32, step, mask)
    return y


def test_a_clean_kernel_passes_and_computes_the_same() -> None:
    with sanitized():
        assert torch.equal(run_double(), torch.arange(100.0) * 2)


def test_a_missing_mask_is_out_of_bounds() -> None:
    with pytest.raises(OutOfBounds, match=r"load: 28 addresses .* 0 bytes after a tensor of 400"):  # noqa: SIM117
        with sanitized():
            run_double(mask=1000)


def test_a_fault_of_a_function_that_a_kernel_calls_is_reported_as_such() -> None:
    x, y = torch.zeros(3), torch.zeros(4)
    with pytest.raises(OutOfBounds, match="load: 1 addresses"), sanitized():
        double_by_another[(1,)](x, y, 4, 4)


def test_overlapping_tiles_are_a_race() -> None:
    with pytest.raises(Race, match=r"program 1: store of what program 0 stored"):  # noqa: SIM117
        with sanitized():
            run_double(step=24)


def test_one_program_may_store_twice() -> None:
    with sanitized():
        run_double(grid=1)
        run_double(grid=1)


def test_reading_what_another_program_stores_is_a_race() -> None:
    with pytest.raises(Race, match="program 1: load of what program 0 stored"):  # noqa: SIM117
        with sanitized():
            chain[(3,)](torch.zeros(8))


def test_a_descriptor_is_cut_at_its_shape_and_a_wrong_shape_is_out_of_bounds() -> None:
    x, y = torch.randn(20, 16), torch.zeros(20, 16)
    with sanitized():
        tile[(2,)](x, y, 20, 16, 0, 0)
    assert torch.equal(x, y)
    with pytest.raises(OutOfBounds, match="load: 64 addresses"), sanitized():
        tile[(2,)](x, y, 20, 16, 4, 0)
    with pytest.raises(Race), sanitized():
        tile[(2,)](x, y, 20, 16, 0, 8)


def test_a_view_ends_where_it_ends() -> None:
    whole = torch.zeros(200)
    with pytest.raises(OutOfBounds), sanitized():
        double[(4,)](whole[:90], torch.zeros(100), 100, 32, 32, 0)


def test_empty_tensors_and_errors_of_kernels_pass_through() -> None:
    with sanitized():
        double[(1,)](torch.zeros(0), torch.zeros(0), 0, 32, 32, 0)
    with pytest.raises(triton.InterpreterError, match="AttributeError"), sanitized():
        double[(1,)](torch.zeros(4), torch.zeros(4), 4, 4, None, 0)


def test_an_access_of_a_neighbour_is_out_of_bounds() -> None:
    """x and y are neighbours in memory, but not where the sanitizer puts them."""
    both = torch.zeros(64)
    for x, y in ((both[:32], both[32:].clone()), (both[:32].clone(), both[:32].clone())):
        with pytest.raises(OutOfBounds, match="load: 1 addresses"), sanitized():
            double[(1,)](x, y, 33, 64, 64, 0)


def test_tensors_of_one_storage_are_of_one_storage_in_the_kernel() -> None:
    whole = torch.arange(64.0)
    with sanitized():
        double[(1,)](whole[:32], whole[32:], 32, 32, 32, 0)
    assert torch.equal(whole, torch.cat([torch.arange(32.0), torch.arange(32.0) * 2]))
    with pytest.raises(Race), sanitized():
        double[(2,)](whole[:32], whole, 64, 16, 8, 0)


def test_outside_of_the_context_nothing_is_checked() -> None:
    with sanitized():
        pass
    run_double(step=24)
