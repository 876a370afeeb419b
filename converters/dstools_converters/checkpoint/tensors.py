"""Tensors of a checkpoint in torch: as float32, or FP8 codes with their scales as they are."""

import torch
from torch import Tensor

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.rows import (
    block_rows,
    columns,
    not_finite,
    read_rows,
    read_scales,
    require_finite,
    restore,
    slabs,
)
from dstools_kernels.formats import block_fp8


def restored(inventory: Inventory, info: TensorInfo) -> Tensor:
    """Return a copy of a whole tensor as float32, in its shape; raises as `restored_rows` does."""
    return restored_rows(inventory, info, 0, info.numel // columns(info)).view(info.shape)


def restored_rows(inventory: Inventory, info: TensorInfo, first: int, last: int) -> Tensor:
    """Return a copy of rows [first, last) as float32 [rows, columns].

    Raises DstoolsError for NaN or infinity, which would spread to every later layer.
    """
    out = torch.empty(last - first, columns(info))
    block = block_rows(inventory, info)
    for begin, end in slabs(first, last, block, columns(info) * 4):
        data = restore(inventory, info, begin, end)
        bad = block_fp8.first_non_finite(data, "F32")
        if bad >= 0:
            raise not_finite(info, begin * columns(info) + bad)
        values = torch.frombuffer(data, dtype=torch.float32)
        out[begin - first : end - first] = values.view(end - begin, -1)
    return out


def stored(inventory: Inventory, info: TensorInfo) -> tuple[Tensor, Tensor]:
    """Return copies of the codes [N, K] float8_e4m3fn of an FP8 weight and of its scales, float32.

    Raises DstoolsError for NaN among the codes, and for scales that are not finite or positive.
    """
    rows = info.shape[0]
    codes = read_rows(inventory, info, 0, rows)
    require_finite(info, codes, 0)
    scales = read_scales(inventory, info, 0, rows)
    grid = inventory.storage[info.name].scale.shape
    return (
        torch.frombuffer(bytearray(codes), dtype=torch.float8_e4m3fn).view(info.shape),
        torch.frombuffer(bytearray(scales), dtype=torch.float32).view(grid),
    )
