"""Is this folder what it says it is? Every check reports what it finds and lets the others go on."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint import INDEX, Checkpoint, scan
from dstools_converters.engines import Engine, check_engine
from dstools_converters.errors import DstoolsError, Finding, Level, printable
from dstools_converters.header import TensorInfo
from dstools_converters.inventory import FLOATS, SCALE_DTYPES, Inventory, check, take_inventory
from dstools_converters.metadata import MANIFEST, travelling_files
from dstools_converters.plan import FUSED
from dstools_converters.rows import (
    columns,
    dequantize_rows,
    memory,
    read_rows,
    read_scales,
    restore,
    slabs,
    width,
)
from dstools_converters.scheme import QUANTIZED_ROLES
from dstools_kernels import block_fp8

ABSURD_AMAX = 1e4  # no trained weight comes near; a block that does has a damaged scale
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Report:
    """What was found; `ok` is False where a finding is an error."""

    folder: str
    ok: bool
    findings: list[Finding]
    checked: list[str]
    not_checked: list[str]
    tensors: int
    elements_compared: int  # with the source, each of them


def verify(
    folder: Path,
    *,
    source: Path | None = None,
    engine: Engine | None = None,
    tp: int = 1,
    workers: int = 1,
    progress: Progress = lambda nbytes: None,
) -> Report:
    """Check `folder` by itself, for an engine, and element by element against `source`.

    Raises DstoolsError only where there is nothing to check: no folder, no config.json, a source that
    cannot be read.
    """
    checked = ["files, index and headers"]
    not_checked = []
    checkpoint, findings = scan(folder)
    compared = 0
    with checkpoint:
        findings += _check_total(checkpoint)
        findings += _check_with_safetensors(checkpoint)
        try:
            inventory = take_inventory(checkpoint)
        except DstoolsError as error:
            findings.append(Finding("error", "config", "config.json", str(error), error.hint))
            not_checked.append("names, shapes and scales: the config cannot be read")
        else:
            findings += check(inventory)
            findings += _check_roles(inventory)
            findings += _check_fused(inventory)
            findings += _check_scale_values(inventory)
            checked += ["names, shapes and dtypes against the config", "MTP layers", "every scale"]
            is_broken = any(
                finding.level == "error" and finding.code in BREAKS_READING for finding in findings
            )
            if engine is None:
                not_checked.append("what engines ask for: --engine")
            elif is_broken:
                not_checked.append(f"the rules of {engine}: first mend the errors above")
            else:
                findings += check_engine(inventory, engine, tp)
                checked.append(f"the rules of {engine} at tensor parallelism {tp}")
            if source is None:
                not_checked.append("weights and codes: --source")
            elif is_broken:
                not_checked.append("weights and codes: first mend the errors above")
            else:
                with _open_source(source) as original:
                    against = take_inventory(original)
                    found, compared = _compare(inventory, against, workers, progress)
                findings += found
                findings += _check_side_files(checkpoint, original)
                checked.append("every element against the source")
    if not _has_manifest(folder):
        not_checked.append("who made it: no manifest.json of dstools")
    return Report(
        folder=str(folder),
        ok=not any(finding.level == "error" for finding in findings),
        findings=findings,
        checked=checked,
        not_checked=not_checked,
        tensors=len(checkpoint.tensors),
        elements_compared=compared,
    )


# Findings after which bytes cannot be taken for what the headers say.
BREAKS_READING = {
    "shard-unreadable", "tensor-twice", "path-outside", "scale-missing", "scale-shape", "scale-dtype",
    "shape", "fp8-unknown",
}  # fmt: skip


def _open_source(source: Path) -> Checkpoint:
    checkpoint, findings = scan(source)
    for finding in findings:
        if finding.level == "error":
            raise DstoolsError(f"--source {finding.where}: {finding.message}", finding.hint)
    return checkpoint


def _check_total(checkpoint: Checkpoint) -> Iterator[Finding]:
    held = sum(info.nbytes for info in checkpoint.tensors.values())
    if not (checkpoint.folder / INDEX).exists():
        yield Finding("note", "index-missing", INDEX, "is not there; one shard does without")
        return
    total = checkpoint.index_metadata.get("total_size")
    if total != held:
        yield Finding(
            "error", "total-size", INDEX, f"total_size is {total}, the tensors take {held} bytes",
            f"set metadata.total_size to {held}",
        )  # fmt: skip


def _check_with_safetensors(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Let the reference reader open each shard too."""
    from safetensors import SafetensorError, safe_open

    for shard in checkpoint.shards.values():
        try:
            with safe_open(checkpoint.folder / shard.name, framework="numpy"):
                pass
        except SafetensorError as error:
            yield Finding("error", "safetensors", shard.name, f"safetensors refuses it: {error}")


def _check_roles(inventory: Inventory) -> Iterator[Finding]:
    """Yield weights that are FP8 though DeepSeek keeps them, and the reverse."""
    scheme = inventory.scheme
    for name, parsed in inventory.names.items():
        info = inventory.tensors[name]
        if parsed is None:
            continue
        if (
            parsed.part == "weight"
            and parsed.role not in QUANTIZED_ROLES
            and info.dtype not in FLOATS
        ):
            yield Finding(
                "error", "role-quantized", info.where,
                f"is {info.dtype}; engines read {parsed.role} in high precision only",
                "quantize again without a rule for it",
            )  # fmt: skip
        if parsed.role == "e_score_correction_bias" and info.dtype != "F32":
            yield Finding(
                "warning", "router-bias", info.where,
                f"is {info.dtype}; DeepSeek ships F32, and less precision changes which experts win",
            )  # fmt: skip
        is_kept = parsed.part == "weight" and info.dtype in FLOATS
        if scheme is not None and is_kept and parsed.role in QUANTIZED_ROLES:
            named = any(_names(pattern, parsed.module) for pattern in scheme.kept)
            if not named:
                yield Finding(
                    "error", "role-kept", info.where,
                    f"is {info.dtype}, but config.json does not say that it is not quantized",
                    "an engine would look for its scale; list it in modules_to_not_convert",
                )  # fmt: skip


def _names(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern == module


def _check_fused(inventory: Inventory) -> Iterator[Finding]:
    groups: dict[tuple[int | None, int | None, int], list[TensorInfo]] = {}
    for name, parsed in inventory.names.items():
        if parsed is None or parsed.part != "weight":
            continue
        for number, roles in enumerate(FUSED):
            if parsed.role in roles:
                info = inventory.tensors[name]
                groups.setdefault((parsed.layer, parsed.expert, number), []).append(info)
    for infos in groups.values():
        fp8 = [printable(info.name) for info in infos if info.dtype == "F8_E4M3"]
        kept = [info for info in infos if info.dtype != "F8_E4M3"]
        if fp8 and kept:
            yield Finding(
                "error", "fused-apart", kept[0].where,
                f"is {kept[0].dtype} beside FP8 in {', '.join(fp8)}; engines run them as one matrix",
                "quantize again with one rule for them",
            )  # fmt: skip


def _check_scale_values(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales not finite, not positive, absurd, or of another format than the folder's maker writes."""
    scheme = inventory.scheme
    if scheme is None or not inventory.scales:
        return
    import numpy as np

    manifest = _read_manifest(inventory.checkpoint.folder)
    wants_powers = scheme.scale_format == "ue8m0" or manifest.get("scale_fmt") == "ue8m0"
    is_ours = bool(manifest) and not manifest.get("has_foreign_scales")
    for name, info in inventory.scales.items():
        weight = inventory.tensors[name]
        if len(weight.shape) != 2 or info.shape != scheme.grid(weight.shape):
            continue  # reported by its shape
        if info.dtype not in SCALE_DTYPES:
            continue  # reported by its dtype
        if manifest and info.dtype != "F32":
            yield Finding(
                "error", "scale-not-f32", info.where, f"is {info.dtype}; dstools writes F32",
                "something else has been at this folder; quantize again",
            )  # fmt: skip
        elif scheme.format == "native" and info.dtype == "BF16":
            yield Finding(
                "warning", "scale-not-f32", info.where,
                "is BF16, where this format has F32: each scale was rounded to 8 bits",
            )  # fmt: skip
        try:
            raw = read_scales(inventory, weight, 0, weight.shape[0])
        except DstoolsError as error:
            yield Finding(
                "error", "scale-value", info.where, str(error).removeprefix(f"{info.where}: ")
            )
            continue
        scales = np.frombuffer(raw, np.float32)
        if (scales <= 0).any():
            yield Finding(
                "error", "scale-value", info.where,
                f"holds {scales.min()} at {_at(info, int(scales.argmin()))}; scales are positive",
                "the scales are damaged; fetch them again",
            )  # fmt: skip
        elif scales.max() * 448 > ABSURD_AMAX:
            yield Finding(
                "warning", "scale-value", info.where,
                f"holds {scales.max():g} at {_at(info, int(scales.argmax()))}, a weight of up to "
                f"{scales.max() * 448:g}",
            )  # fmt: skip
        if wants_powers and (np.frexp(scales)[0] != 0.5).any():
            first = int((np.frexp(scales)[0] != 0.5).argmax())
            level: Level = "error" if is_ours else "note"
            yield Finding(
                level, "scale-ue8m0", info.where,
                f"holds {scales[first]:g} at {_at(info, first)}, no power of two, under ue8m0",
                "engines that store exponents will round it" if level == "note" else "",
            )  # fmt: skip


def _at(info: TensorInfo, element: int) -> list[int]:
    return list(divmod(element, info.shape[1]))


def _compare(
    made: Inventory, source: Inventory, workers: int, progress: Progress
) -> tuple[list[Finding], int]:
    """Return what differs from the source beyond rounding, and how many elements were compared."""
    findings: list[Finding] = []
    pairs = []
    ours = {info.name: info for info, _ in made.weights()}
    for info, _ in source.weights():
        mine = ours.pop(info.name, None)
        if mine is None:
            findings.append(
                Finding("error", "lost", printable(info.name), "is in the source and not in here")
            )
        elif mine.shape != info.shape:
            findings.append(
                Finding(
                    "error",
                    "shape",
                    mine.where,
                    f"is {list(mine.shape)}, source {list(info.shape)}",
                )
            )
        else:
            pairs.append((mine, info))
    findings += [
        Finding("error", "added", info.where, "is not in the source") for info in ours.values()
    ]
    config, wanted = dict(made.checkpoint.config), dict(source.checkpoint.config)
    for key in sorted((config.keys() | wanted.keys()) - {"quantization_config"}):
        if config.get(key) != wanted.get(key):
            findings.append(
                Finding("warning", "config-differs", "config.json", f"{key} is not the source's")
            )
    is_copied = _copies_fp8(made, source)
    with ThreadPoolExecutor(workers, "verify") as pool:
        jobs = [
            pool.submit(_compare_pair, made, mine, source, info, is_copied=is_copied)
            for mine, info in pairs
        ]
        try:
            for job, (_, info) in zip(jobs, pairs, strict=True):
                found = job.result()
                findings += [found] if found else []
                progress(info.nbytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return findings, sum(info.numel for _, info in pairs)


def _compare_pair(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo, *, is_copied: bool
) -> Finding | None:
    """Return what `_compare_tensor` finds, or that NaN or a failed read has kept it from comparing."""
    try:
        found = _compare_tensor(made, mine, source, info)
        is_fp8 = mine.name in made.scales and info.name in source.scales
        if found is None and is_copied and is_fp8:
            found = _compare_scales(made, mine, source, info)
        return found
    except DstoolsError as error:
        return Finding("error", "not-compared", mine.where, str(error), error.hint)


def _compare_tensor(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Return how a tensor differs from the source: in a byte, or by more than rounding explains."""
    is_mine_fp8, is_fp8 = mine.name in made.scales, info.name in source.scales
    if is_mine_fp8 and (is_fp8 or info.dtype in FLOATS):
        return _compare_codes(made, mine, source, info)
    if is_fp8 and mine.dtype == "BF16":
        return _compare_dequantized(made, mine, source, info)
    if mine.dtype != info.dtype:
        return Finding("error", "dtype", mine.where, f"is {mine.dtype}, the source {info.dtype}")
    step = 1 << 20
    for begin in range(0, info.nbytes, step):
        end = min(begin + step, info.nbytes)
        a = bytes(made.checkpoint.read(mine, begin, end))
        b = bytes(source.checkpoint.read(info, begin, end))
        if a != b:
            first = next(i for i in range(len(a)) if a[i] != b[i])
            element = (begin + first) // max(width(info), 1)
            return Finding(
                "error", "bytes-differ", mine.where,
                f"is not the source's, first at element {list(divmod(element, columns(info)))}",
                "it should have been copied; convert again",
            )  # fmt: skip
    return None


def _compare_codes(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Hold every code to its bound: half a step of the FP8 grid around the source's weight."""
    assert made.scheme is not None
    rows, cols = mine.shape
    block = made.scheme.block_size[0]
    if source.scheme is not None and info.name in source.scales:
        block = max(block, source.scheme.block_size[0])
    count, first_at = 0, -1
    for first, last in slabs(0, rows, block, cols * 4):
        weight = restore(source, info, first, last)
        codes = read_rows(made, mine, first, last)
        scales = read_scales(made, mine, first, last)
        outside, at = block_fp8.outside_bound(weight, codes, cols, scales, made.scheme.block_size)
        if outside and not count:
            first_at = first * cols + at
        count += outside
    if not count:
        return None
    return Finding(
        "error", "outside-bound", mine.where,
        f"{count} of {rows * cols} elements are not the source's rounded to FP8, first at "
        f"{list(divmod(first_at, cols))}",
        "codes or scales are damaged, or of another checkpoint; quantize again",
    )  # fmt: skip


def _copies_fp8(made: Inventory, source: Inventory) -> bool:
    """Tell whether FP8 of the source has been copied: by us, and not to round its scales up to powers."""
    if made.scheme is None or source.scheme is None or not _has_manifest(made.checkpoint.folder):
        return False
    return (source.scheme.scale_format, made.scheme.scale_format) != ("float32", "ue8m0")


def _compare_scales(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Compare to the bit the scales of copied codes: the bound leaves room for their last bits."""
    if bytes(read_scales(made, mine, 0, mine.shape[0])) == bytes(
        read_scales(source, info, 0, info.shape[0])
    ):
        return None
    return Finding(
        "error", "bytes-differ", made.scales[mine.name].where, "is not the source's, whose codes it scales",
        "it should have been copied; convert again",
    )  # fmt: skip


def _compare_dequantized(
    made: Inventory, mine: TensorInfo, source: Inventory, info: TensorInfo
) -> Finding | None:
    """Compare BF16 to the bit with what the source's codes and scales give."""
    assert source.scheme is not None
    rows, cols = info.shape
    for first, last in slabs(0, rows, source.scheme.block_size[0], cols * 2):
        values = memory.view("values", (last - first) * cols * 2)
        dequantize_rows(source, info, first, last, values)
        if bytes(values) != bytes(read_rows(made, mine, first, last)):
            return Finding(
                "error", "bytes-differ", mine.where,
                f"is not code times scale of the source, within rows {first} to {last - 1}",
                "dequantize again",
            )  # fmt: skip
    return None


def _check_side_files(made: Checkpoint, source: Checkpoint) -> Iterator[Finding]:
    for name, path in travelling_files(source.folder).items():
        mine = made.folder / name
        if not mine.is_file():
            yield Finding("warning", "file-missing", printable(name), "did not travel along")
        elif mine.read_bytes() != path.read_bytes():
            yield Finding("warning", "file-differs", printable(name), "is not the source's")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return our manifest, {} where there is none: then somebody else made the folder."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(found, dict) and str(found.get("tool", "")).startswith("dstools ")
    return found if is_ours else {}


def _has_manifest(folder: Path) -> bool:
    return bool(_read_manifest(folder))
