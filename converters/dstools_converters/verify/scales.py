"""Check the values of scales: of every quantized weight, and of an FP8 KV cache."""

import math
from collections.abc import Iterator

import numpy as np

from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.oddities import absurd_scales
from dstools_converters.checkpoint.rows import read_scales, require_no_overflow, restore
from dstools_converters.checkpoint.storage import FLOATS, SCALE_DTYPES, Storage
from dstools_converters.errors import DstoolsError, Finding, Level
from dstools_converters.sidefiles.manifest import Manifest


def check_scales(inventory: Inventory, manifest: Manifest | None) -> Iterator[Finding]:
    """Yield scales that are not finite, not positive, absurd, or not in the expected format."""
    scheme = inventory.scheme
    for storage in inventory.quantized().values():
        assert scheme is not None
        weight, info = storage.parts
        if len(weight.shape) != 2 or info.shape != scheme.grid(weight.shape):
            continue  # reported by its shape
        if info.dtype not in SCALE_DTYPES:
            continue  # reported by its dtype
        if manifest and info.dtype != "F32":
            yield Finding.error(
                "scale-not-f32",
                info.where,
                f"is {info.dtype}; dstools writes F32",
                "something else has changed this folder; quantize again",
            )
        elif scheme.format == "native" and info.dtype == "BF16":
            yield Finding.warning(
                "scale-not-f32",
                info.where,
                "is BF16, where this format has F32: each scale was rounded to 8 bits",
            )
        written = manifest.scale_fmt if manifest else None
        is_foreign = manifest is None or manifest.has_foreign_scales
        needs_powers = "ue8m0" in (scheme.scale_format, written)
        yield from _check_values(
            inventory, storage, needs_powers=needs_powers, is_foreign=is_foreign
        )


def _check_values(
    inventory: Inventory, storage: Storage, *, needs_powers: bool, is_foreign: bool
) -> Iterator[Finding]:
    weight, info = storage.parts
    try:
        raw = read_scales(inventory, weight, 0, weight.shape[0])
        require_no_overflow(inventory, weight, raw)
    except DstoolsError as error:
        place = next(i.where for i in (weight, info) if str(error).startswith(f"{i.where}: "))
        message = str(error).removeprefix(f"{place}: ")
        yield Finding.error("scale-value", place, message)
        return
    yield from absurd_scales(info, raw)
    if not needs_powers:
        return
    scales = np.frombuffer(raw, np.float32)
    is_power = np.frexp(scales)[0] == 0.5
    if not is_power.all():
        first = int(is_power.argmin())
        message = f"holds {scales[first]:g} at {_at(info, first)}, not a power of two, under ue8m0"
        level: Level = "note" if is_foreign else "error"
        hint = "engines that store exponents will round it" if is_foreign else ""
        yield Finding(level, "scale-ue8m0", info.where, message, hint)


def check_kv_scales(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales of an FP8 KV cache that are not positive, finite floats."""
    for name, parsed in inventory.names.items():
        info = inventory.tensors[name]
        if parsed is None or parsed.role != "kv_cache" or info.numel != 1:
            continue  # reported by its shape
        if info.dtype not in FLOATS:
            yield Finding.error("kv-scale", info.where, f"is {info.dtype}, not a scale's dtype")
            continue
        value = restore(inventory, info, 0, 1).cast("f")[0]
        if parsed.part.endswith("zero_point"):
            continue
        if not 0 < value < math.inf:
            yield Finding.error(
                "kv-scale",
                info.where,
                f"is {value:g}; scales are positive",
                "the scale is damaged; quantize again",
            )


def _at(info: TensorInfo, element: int) -> list[int]:
    return list(divmod(element, info.shape[1]))
