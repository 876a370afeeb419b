"""Rotary positions: the angles of each position, and the rotation. Shape letters: decoder.py."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError
from dstools_converters.model.architecture import Architecture, Linear, Llama3, Rope, Yarn


class Rotary(NamedTuple):
    """The rotation of each position, one angle for a pair of elements."""

    cos: Tensor  # [S, R/2] float32
    sin: Tensor


def rotary(architecture: Architecture, positions_S: Tensor) -> Rotary:
    """Return the rotation of integer positions [S], on their device, the same for all layers.

    Angles are computed on the CPU in float32, whatever dtype the model or torch's default has: in
    bfloat16 the cosine of position 500 is off by 1. Raises DstoolsError for more tokens than V3.2's
    indexer picks, as it does not run.
    """
    places = positions_S.cpu()
    limit = architecture.index_topk
    length = int(places.max()) + 1 if limit is not None and len(places) else 0
    if limit is not None and length > limit:
        raise DstoolsError(
            f"a sequence of {length} tokens needs sparse attention, which is not implemented",
            f"use at most {limit} tokens (index_topk in config.json), where it is dense",
        )
    angles = places[:, None].float() * frequencies(architecture.rope)
    scaling = architecture.rope.scaling
    factor = scaling.attention_factor if isinstance(scaling, Yarn) else 1.0
    device = positions_S.device
    return Rotary((angles.cos() * factor).to(device), (angles.sin() * factor).to(device))


def rotate(x_SR: Tensor, angles: Rotary, is_interleaved: bool) -> Tensor:
    """Return x [..., S, R] with each pair of elements turned by its position's angle, in float32.

    The first elements of all pairs come first in the result, however the input is laid out.
    """
    a, b = (x_SR[..., 0::2], x_SR[..., 1::2]) if is_interleaved else x_SR.chunk(2, dim=-1)
    cos, sin = angles
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_SR.dtype)


def frequencies(rope: Rope) -> Tensor:
    """Return the angles [R/2] float32 of position 1. Source: transformers' modeling_rope_utils."""
    wavelengths = rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    plain, scaling = 1.0 / wavelengths, rope.scaling
    if scaling is None:
        return plain
    if isinstance(scaling, Linear):
        return plain / scaling.factor
    if isinstance(scaling, Llama3):
        turns = scaling.original_length / (2 * math.pi / plain)  # within the original length
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = (turns - low) / (high - low)
        ramp = (1 - kept) * plain / scaling.factor + kept * plain
        return torch.where(
            turns < low, plain / scaling.factor, torch.where(turns > high, plain, ramp)
        )
    slow, fast = (_yarn_dim(rope, scaling, beta) for beta in (scaling.beta_slow, scaling.beta_fast))
    if scaling.is_truncated:
        fast, slow = math.floor(fast), math.ceil(slow)
    first, last = max(fast, 0), min(slow, rope.dim - 1)
    ramp = (torch.arange(rope.dim // 2, dtype=torch.float32) - first) / (
        last - first if last != first else 0.001
    )
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * wavelengths) * (1 - kept) + plain * kept


def _yarn_dim(rope: Rope, scaling: Yarn, turns: float) -> float:
    """Return the dimension whose angle makes `turns` turns within the original length."""
    length = scaling.original_length / (turns * 2 * math.pi)
    return rope.dim * math.log(length) / (2 * math.log(rope.theta))
