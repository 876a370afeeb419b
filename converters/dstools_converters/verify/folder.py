"""Check a checkpoint folder, or an exported one: by itself, for an engine, against its source."""

import json
from collections.abc import Iterator
from pathlib import Path

from dstools_converters.checkpoint.diagnosis import MISNAMED
from dstools_converters.checkpoint.exported import is_exported
from dstools_converters.checkpoint.folder import INDEX, SINGLE, Checkpoint, scan
from dstools_converters.checkpoint.inventory import Inventory, check, take_inventory
from dstools_converters.checkpoint.parameters import TOTAL_PARAMETERS, is_count, parameters
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.checkpoint.tied import check_tied
from dstools_converters.errors import DstoolsError, Finding, merged, printable
from dstools_converters.export.folder import EXPORT
from dstools_converters.sidefiles.calibration import WeightNote
from dstools_converters.sidefiles.carried import check_side_files
from dstools_converters.sidefiles.manifest import MANIFEST, Manifest, load_manifest
from dstools_converters.sidefiles.signature import Verifier
from dstools_converters.verify.calibrated import check_calibration
from dstools_converters.verify.engines import Engine, check_engine
from dstools_converters.verify.exported.folder import verify_exported
from dstools_converters.verify.hashes import Digests, Hashing
from dstools_converters.verify.kept import check_kept
from dstools_converters.verify.report import Report, Results
from dstools_converters.verify.roles import check_fused, check_roles
from dstools_converters.verify.scales import check_kv_scales, check_scales
from dstools_converters.verify.source import check_against, open_source
from dstools_converters.verify.values import Values

# Errors after which the bytes may not be what the headers say.
BREAKS_READING = MISNAMED | {
    *("shard-unreadable", "tensor-twice", "path-outside", "fp8-unknown", "config-mismatch"),
    *("shape", "scale-missing", "scale-shape", "scale-dtype"),
}


def verify(
    folder: Path,
    *,
    source: Path | None = None,
    engine: Engine | None = None,
    tp: int = 1,
    checks_sums: bool = False,
    digests: Digests | None = None,
    signed_by: Verifier | None = None,
    headers_only: bool = False,
    workers: int = 1,
    progress: Progress = lambda nbytes: None,
) -> Report:
    """Check `folder` by itself, for an engine, and element by element against `source`.

    Reads every byte of the weights once, unless `headers_only`, which excludes `source`.
    `progress` gets the bytes of `folder` that were just read; `bytes_to_read` is their sum, nearly.
    `checks_sums`: hash its files, too, and compare with SHA256SUMS and what the Hub's client left.
    `digests`: hash these files, too, and put what they are known by on the Hub into its `found`.
    Shards are hashed by the same read as their values; other files first, before they are parsed.
    `signed_by`: check the signature of the folder with this.

    Raises DstoolsError only where there is nothing to check: no folder, no config.json (a finding
    where hashes or a signature are checked), a source that cannot be read, a file that changes
    meanwhile; and for an `engine` of a folder that `dstools export` wrote.
    """
    hashing = Hashing(folder, is_asked=checks_sums, digests=digests, progress=progress)
    results = Results(hashing)
    if is_exported(folder) or _was_exported(folder):
        _refuse_engine(folder, engine)
        return verify_exported(folder, results, source, signed_by, headers_only, workers)
    hashing.hash_files(workers)
    results.add_signature(folder, signed_by)
    try:
        checkpoint, faults = scan(folder)
    except DstoolsError as error:
        if not folder.is_dir() or not (checks_sums or signed_by):
            raise
        hashing.hash_rest(workers)  # of a folder that `scan` refuses, too
        results.add_refusal(error)
        return results.report(folder, tensors=0)
    results.checked.insert(0, "files, index and headers")
    with checkpoint:
        manifest = _check_files(checkpoint, faults, results.findings)
        try:
            inventory = take_inventory(checkpoint)
        except DstoolsError as error:
            results.add_config(error)
        else:
            notes = _check_inside(inventory, manifest, results)
            _check_engine(inventory, engine, tp, results)
            values = Values(inventory, progress)
            checkpoint.watch = values.look
            _check_source(inventory, source, manifest, notes, results, workers)
            _check_values(values, headers_only, results, workers)
        hashing.hash_rest(workers)
        checkpoint.check_unmoved()
    if manifest is None:
        results.not_checked.append("who made it: no manifest.json of dstools")
    return results.report(folder, len(checkpoint.tensors))


def _was_exported(folder: Path) -> bool:
    """Return whether an export.json, which is damaged then, is there and no checkpoint."""
    shards = (folder / INDEX, folder / SINGLE)
    return (folder / EXPORT).exists() and not any(shard.exists() for shard in shards)


def _refuse_engine(folder: Path, engine: Engine | None) -> None:
    """Raise DstoolsError for an engine that reads checkpoints."""
    if engine is not None:
        raise DstoolsError(
            f"{folder}: {engine} reads checkpoints, and this was exported from one",
            "leave out --engine; or check the checkpoint",
        )


def _check_files(
    checkpoint: Checkpoint, faults: list[Finding], findings: list[Finding]
) -> Manifest | None:
    """Add what is wrong with the files; return our manifest."""
    findings += faults
    manifest = _read_manifest(checkpoint.folder, findings)
    if not any(fault.level == "error" for fault in faults):
        findings += _check_total(checkpoint, manifest)
    findings += _check_with_safetensors(checkpoint)
    findings += check_side_files(checkpoint)
    return manifest


def _read_manifest(folder: Path, findings: list[Finding]) -> Manifest | None:
    """Return our manifest; add a finding if it is damaged."""
    try:
        return load_manifest(folder)
    except DstoolsError as error:
        message = str(error).removeprefix(f"{folder / MANIFEST}: ")
        findings.append(Finding.error("manifest", MANIFEST, message, error.hint))
        return None


def _check_inside(
    inventory: Inventory, manifest: Manifest | None, results: Results
) -> dict[str, WeightNote] | None:
    """Check the folder by itself; return the notes of calibrated weights, None where lost."""
    findings = results.findings
    if results.has_error({"shard-unreadable"}):  # whatever it holds would be missing
        results.not_checked.append("names, shapes and scales: first mend the errors above")
        return None
    findings += check(inventory)
    if not results.has_error(BREAKS_READING):
        findings += _check_parameters(inventory, manifest)
    findings += check_roles(inventory)
    findings += check_fused(inventory)
    findings += check_kept(inventory)
    findings += check_scales(inventory, manifest)
    findings += check_kv_scales(inventory)
    notes, wrong = check_calibration(inventory, manifest)
    findings += wrong
    results.checked += ["names, shapes and dtypes against the config", "MTP layers", "every scale"]
    return notes


def _check_engine(inventory: Inventory, engine: Engine | None, tp: int, results: Results) -> None:
    if engine is None:
        results.not_checked.append("what engines ask for: --engine")
    elif results.has_error(BREAKS_READING):
        results.not_checked.append(f"the rules of {engine}: first mend the errors above")
    else:
        results.findings += check_engine(inventory, engine, tp)
        results.checked.append(f"the rules of {engine} at tensor parallelism {tp}")


def _check_source(
    inventory: Inventory,
    source: Path | None,
    manifest: Manifest | None,
    notes: dict[str, WeightNote] | None,
    results: Results,
    workers: int,
) -> None:
    if source is None:
        results.not_checked.append("weights against their source: --source")
    elif results.has_error(BREAKS_READING):
        results.not_checked.append("weights against their source: first mend the errors above")
    else:
        with open_source(source) as original:
            differences, results.elements_compared = check_against(
                inventory, take_inventory(original), manifest, notes, workers, results.hashing
            )
            original.check_unmoved()
        results.findings += differences
        results.checked.append("every element against the source")


def _check_values(values: Values, headers_only: bool, results: Results, workers: int) -> None:
    if headers_only:
        results.not_checked.append("values: leave out --headers-only")
        return
    if results.has_error(BREAKS_READING):
        results.not_checked.append("values: first mend the errors above")
        return
    results.findings += check_tied(values.inventory)
    values.inventory.checkpoint.watch = None
    values.read_rest(workers, results.hashing)
    known = {finding.where for finding in results.findings if finding.level == "error"}
    results.findings += merged(values.findings(known))
    results.checked.append("every value")
    if values.unjudged():
        results.not_checked.append(f"numbers in {', '.join(values.unjudged())}: only read")


def _check_total(checkpoint: Checkpoint, manifest: Manifest | None) -> Iterator[Finding]:
    """Yield a total_size that is not that of the tensors: an error where dstools wrote it.

    No engine reads it, and DeepSeek's fp8_cast_bf16.py leaves it out.
    """
    held = sum(info.nbytes for info in checkpoint.tensors.values())
    if not (checkpoint.folder / INDEX).exists():
        yield Finding.note("index-missing", INDEX, "is missing; a single shard needs none")
        return
    total = checkpoint.index_metadata.get("total_size")
    if total != held:
        given = "is missing" if total is None else f"is {printable(str(total))}"
        yield Finding(
            "error" if manifest else "warning",
            "total-size",
            INDEX,
            f"total_size {given}; the tensors take {held} bytes",
            f"set metadata.total_size to {held}",
        )


def _check_parameters(inventory: Inventory, manifest: Manifest | None) -> Iterator[Finding]:
    """Yield a total_parameters that is not the model's: an error where dstools wrote it."""
    metadata = inventory.checkpoint.index_metadata
    if TOTAL_PARAMETERS in metadata and not is_count(inventory, metadata[TOTAL_PARAMETERS]):
        count = parameters(inventory)
        yield Finding(
            "error" if manifest else "warning",
            "total-parameters",
            INDEX,
            f"total_parameters is {printable(json.dumps(metadata[TOTAL_PARAMETERS])[:80])}; the "
            f"model has {count} parameters",
            f"set metadata.total_parameters to {count}, or remove it",
        )


def _check_with_safetensors(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Open each shard with the reference reader, too."""
    from safetensors import SafetensorError, safe_open

    for shard in checkpoint.shards.values():
        try:
            with safe_open(checkpoint.folder / shard.name, framework="numpy"):
                pass
        except SafetensorError as error:
            yield Finding.error("safetensors", shard.name, f"safetensors refuses it: {error}")
