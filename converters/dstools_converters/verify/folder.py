"""Is this folder what it says it is? Every check reports what it finds and lets the others go on."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dstools_converters.checkpoint.folder import INDEX, Checkpoint, scan
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory, check, take_inventory
from dstools_converters.checkpoint.rows import (
    Progress,
    read_scales,
    restore,
)
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES
from dstools_converters.checkpoint.storage import CODE_DTYPES, FLOATS, SCALE_DTYPES
from dstools_converters.errors import DstoolsError, Finding, Level, printable
from dstools_converters.families.names import FUSED
from dstools_converters.sidefiles.manifest import read_manifest
from dstools_converters.verify.calibrated import check_calibration
from dstools_converters.verify.engines import Engine, check_engine
from dstools_converters.verify.source import check_against
from dstools_kernels.fp8 import E4M3_MAX

ABSURD_AMAX = 1e4  # no trained weight comes near; a block that does has a damaged scale


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
        if not any(finding.level == "error" for finding in findings):
            findings += _check_total(checkpoint)
        findings += _check_with_safetensors(checkpoint)
        try:
            inventory = take_inventory(checkpoint)
        except DstoolsError as error:
            findings.append(
                Finding.error(
                    "config", "config.json", str(error).removeprefix("config.json: "), error.hint
                )
            )
            not_checked.append("names, shapes and scales: the config cannot be read")
        else:
            findings += check(inventory)
            findings += _check_roles(inventory)
            findings += _check_fused(inventory)
            findings += _check_scale_values(inventory)
            findings += _check_kv_scales(inventory)
            findings += check_calibration(inventory)
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
                    found, compared = check_against(inventory, against, workers, progress)
                findings += found
                checked.append("every element against the source")
    if not read_manifest(folder):
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
        yield Finding.note("index-missing", INDEX, "is not there; one shard does without")
        return
    total = checkpoint.index_metadata.get("total_size")
    if total != held:
        yield Finding.error(
            "total-size",
            INDEX,
            f"total_size is {total}, the tensors take {held} bytes",
            f"set metadata.total_size to {held}",
        )


def _check_with_safetensors(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Let the reference reader open each shard too."""
    from safetensors import SafetensorError, safe_open

    for shard in checkpoint.shards.values():
        try:
            with safe_open(checkpoint.folder / shard.name, framework="numpy"):
                pass
        except SafetensorError as error:
            yield Finding.error("safetensors", shard.name, f"safetensors refuses it: {error}")


def _check_roles(inventory: Inventory) -> Iterator[Finding]:
    """Yield weights that are FP8 though DeepSeek keeps them, and the reverse."""
    scheme = inventory.scheme
    kept = scheme.kept if scheme else ()
    plain = {module for module in kept if not module.startswith("re:")}
    patterns = []
    for text in (module.removeprefix("re:") for module in kept if module.startswith("re:")):
        pattern = _safe_pattern(text)
        if pattern is None:
            yield Finding.warning(
                "ignore-pattern",
                "config.json",
                f"the pattern {printable(text)!r} is broken or too involved to be tried",
                "name the modules, or write a simpler pattern",
            )
        else:
            patterns.append(pattern)
    for name, parsed in inventory.names.items():
        info = inventory.tensors[name]
        if parsed is None:
            continue
        if (
            parsed.part == "weight"
            and parsed.role not in QUANTIZED_ROLES
            and info.dtype not in FLOATS
        ):
            yield Finding.error(
                "role-quantized",
                info.where,
                f"is {info.dtype}; engines read {parsed.role} in high precision only",
                "quantize again without a rule for it",
            )
        if parsed.role == "e_score_correction_bias" and info.dtype != "F32":
            yield Finding.warning(
                "router-bias",
                info.where,
                f"is {info.dtype}; DeepSeek ships F32, and less precision changes which experts win",
            )
        is_kept = parsed.part == "weight" and info.dtype in FLOATS
        if scheme is not None and is_kept and parsed.role in QUANTIZED_ROLES:
            module = inventory.model.spelling.module(parsed)
            if module not in plain and not any(pattern.match(module) for pattern in patterns):
                yield Finding.error(
                    "role-kept",
                    info.where,
                    f"is {info.dtype}, but config.json does not say that it is not quantized",
                    "an engine would look for its scale; list it in modules_to_not_convert",
                )


def _safe_pattern(text: str) -> re.Pattern[str] | None:
    """Return a `re:` pattern compiled, None for one that is broken or could take for ever.

    It comes from the checkpoint: a repeated group, or many repetitions, can take exponential time.
    """
    if re.search(r"\)[*+?{]", text) or sum(text.count(sign) for sign in "*+{") > 3:
        return None
    try:
        return re.compile(text)
    except re.error:
        return None


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
        fp8 = [printable(info.name) for info in infos if info.dtype in CODE_DTYPES]
        kept = [info for info in infos if info.dtype not in CODE_DTYPES]
        if fp8 and kept:
            yield Finding.error(
                "fused-apart",
                kept[0].where,
                f"is {kept[0].dtype} beside FP8 in {', '.join(fp8)}; engines run them as one matrix",
                "quantize again with one rule for them",
            )


def _check_scale_values(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales not finite, not positive, absurd, or of another format than the folder's maker writes."""
    scheme = inventory.scheme
    if scheme is None or not inventory.quantized():
        return
    import numpy as np

    manifest = read_manifest(inventory.checkpoint.folder)
    wants_powers = "ue8m0" in (scheme.scale_format, manifest.scale_fmt if manifest else None)
    is_ours = manifest is not None and not manifest.has_foreign_scales
    for storage in inventory.quantized().values():
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
                "something else has been at this folder; quantize again",
            )
        elif scheme.format == "native" and info.dtype == "BF16":
            yield Finding.warning(
                "scale-not-f32",
                info.where,
                "is BF16, where this format has F32: each scale was rounded to 8 bits",
            )
        try:
            raw = read_scales(inventory, weight, 0, weight.shape[0])
        except DstoolsError as error:
            yield Finding.error(
                "scale-value", info.where, str(error).removeprefix(f"{info.where}: ")
            )
            continue
        scales = np.frombuffer(raw, np.float32)
        if scales.max() * E4M3_MAX > ABSURD_AMAX:
            yield Finding.warning(
                "scale-value",
                info.where,
                f"holds {scales.max():g} at {_at(info, int(scales.argmax()))}, a weight of up to "
                f"{scales.max() * E4M3_MAX:g}",
            )
        if wants_powers and (np.frexp(scales)[0] != 0.5).any():
            first = int((np.frexp(scales)[0] != 0.5).argmax())
            level: Level = "error" if is_ours else "note"
            yield Finding(
                level, "scale-ue8m0", info.where,
                f"holds {scales[first]:g} at {_at(info, first)}, no power of two, under ue8m0",
                "engines that store exponents will round it" if level == "note" else "",
            )  # fmt: skip


def _check_kv_scales(inventory: Inventory) -> Iterator[Finding]:
    """Yield scales of an FP8 KV cache that no cache could be multiplied by."""
    for name, parsed in inventory.names.items():
        info = inventory.tensors[name]
        if parsed is None or parsed.role != "kv_cache" or info.shape != (1,):
            continue  # of another shape: reported by it
        if info.dtype not in FLOATS:
            yield Finding.error("kv-scale", info.where, f"is {info.dtype}, no scale's dtype")
            continue
        value = restore(inventory, info, 0, 1).cast("f")[0]
        if not 0 < value < math.inf:
            yield Finding.error(
                "kv-scale",
                info.where,
                f"is {value:g}; scales are positive",
                "the scale is damaged; quantize again",
            )


def _at(info: TensorInfo, element: int) -> list[int]:
    return list(divmod(element, info.shape[1]))
