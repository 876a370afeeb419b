"""Check a folder that `dstools export` wrote against its export.json, in both directions.

Nothing here needs torch or onnx, so a copy can be checked where nothing runs it. With the
checkpoint that it was made from, tensors are compared; those of graphs take torch.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dstools_converters.checkpoint.folder import Checkpoint
from dstools_converters.checkpoint.rows import Progress
from dstools_converters.errors import DstoolsError, Finding, install_hint, merged, printable
from dstools_converters.export.folder import (
    EXPORT,
    PLUGINS,
    Export,
    Kind,
    is_library,
    require_export,
)
from dstools_converters.sidefiles.carried import LATER, README, require_inside
from dstools_converters.sidefiles.signature import Verifier
from dstools_converters.sidefiles.sums import MAKE, SIGNATURE, SUMS, sha256_of
from dstools_converters.verify.exported import dense, shards
from dstools_converters.verify.exported.data import check_places, read_files
from dstools_converters.verify.exported.graph import check_graphs
from dstools_converters.verify.exported.model import check_model
from dstools_converters.verify.report import Report, Results
from dstools_converters.verify.source import open_source

READ = (".onnx", ".data", ".safetensors", ".json", ".so", ".plan", ".py", ".jinja", ".model")
BESIDE = (README, SUMS, SIGNATURE, *LATER)  # of people, push, eval and report
LICENCES = ("LICENSE", "LICENCE", "NOTICE")  # how the names of such files begin
AGAIN = "copy or download the file again"
KNOWN = "remove it if you do not know it"
RUNS: dict[Kind, str] = {
    "onnx": "dstools generate, or dstools export --check",
    "dense": "dstools generate",
    "deepseek-inference": "DeepSeek's own inference code",
}
FIRST = "first mend the errors above"
# after these, a tensor may not be where it is looked for
UNREADABLE = {"file-missing", "path-outside", "link-outside", "weight-twice", "weight-size"}
UNREADABLE |= {"weight-overlap", "weight-outside", "weight-header", "shard-unreadable", "pool"}
UNREADABLE |= {"graph-unreadable", "graph-outside", "graph-file", "graph-place"}


def verify_exported(
    folder: Path,
    results: Results,
    source: Path | None,
    signed_by: Verifier | None,
    headers_only: bool,
    workers: int,
) -> Report:
    """Check an exported folder by itself, and tensor by tensor against `source`.

    Reads all files but hidden ones, unless `headers_only`: files of weights are not read then.
    Raises DstoolsError for a source that cannot be read, and where the disk gives no bytes.
    """
    hashing = results.hashing
    results.add_signature(folder, signed_by)
    try:
        export = require_export(folder)
    except DstoolsError as error:
        hashing.hash_rest(workers)
        message = str(error).removeprefix(f"{folder / EXPORT}: ")
        results.findings.append(Finding.error("export", EXPORT, message, error.hint))
        results.not_checked.append(f"everything else: {FIRST}")
        return results.report(folder, tensors=0)
    results.findings += _check_files(folder, export, hashing.progress)
    results.checked += [f"{len(export.files)} files by their sha256", "files that are not listed"]
    _check_data(folder, export, headers_only, results, workers)
    results.findings += check_graphs(folder, export)
    results.findings += check_model(folder, export)
    results.checked.append("graphs and configs against export.json")
    _check_source(folder, export, source, results, workers)
    hashing.hash_rest(workers)
    if not hashing.is_asked:
        made = "--sums" if (folder / SUMS).exists() else f"`{MAKE}` there, then --sums"
        results.not_checked.append(f"{EXPORT} itself, which nothing lists: {made}")
    results.not_checked.append(f"whether it runs: {RUNS[export.kind]}")
    results.findings[:] = merged(results.findings)
    return results.report(folder, sum(map(len, export.weights.values())))


# ----------------------------------------------------------------------------------------- files


def _check_files(folder: Path, export: Export, progress: Progress) -> Iterator[Finding]:
    """Yield files that are not as listed, are missing, or are not listed."""
    for name, digest in export.files.items():
        if name == README:
            continue  # people edit a card, and `push` writes it anew
        if is_library(name) and name != PLUGINS:
            message = "is listed as a part of the folder, and dstools export writes no such library"
            yield Finding.error("native-code", printable(name), message, KNOWN)
        yield from _check_file(folder, name, digest, progress, is_needed=name != PLUGINS)
    for name, digest in export.engines.items():
        yield from _check_file(folder, name, digest, progress, is_needed=False)
    for name in export.weights:
        yield from _check_entry(folder, name)
    listed = {EXPORT, *export.files, *export.engines, *export.weights}
    yield from _unlisted(folder, listed)


def _check_file(
    folder: Path, name: str, digest: str, progress: Progress, *, is_needed: bool
) -> Iterator[Finding]:
    """Yield what is wrong with a file that has a sha256; native code need not be there."""
    if not is_needed and is_inside(name) and not (folder / name).exists():
        message = "is listed and not here: a copy need not have engines and plugins"
        yield Finding.note("engine-missing", printable(name), message)
        return
    faults = list(_check_entry(folder, name))
    if faults:
        yield from faults
        return
    try:
        made = sha256_of(folder / name, progress)
    except DstoolsError as error:
        yield Finding.error("file-unread", printable(name), str(error), error.hint)
        return
    if made != digest:
        message = f"is not the file that {EXPORT} lists: its sha256 differs"
        code = "file-differs" if is_needed else "engine-differs"
        yield Finding.error(code, printable(name), message, AGAIN)


def _check_entry(folder: Path, name: str) -> Iterator[Finding]:
    """Yield why a listed file cannot be read: its name, a link, or that it is not there."""
    where, path = printable(name), folder / name
    if not is_inside(name):
        message = f"is listed in {EXPORT}, and is not a name inside of the folder"
        yield Finding.error("path-outside", where, message, "export the model again")
    elif not path.is_file() and not path.is_symlink():
        message = f"is not here, but {EXPORT} lists it"
        yield Finding.error("file-missing", where, message, AGAIN)
    else:
        try:
            require_inside(path, folder)
        except DstoolsError as error:
            hint = "put the file itself there: ONNX Runtime refuses links out of the folder"
            message = str(error).removeprefix(f"{where}: ")
            yield Finding.error("link-outside", where, message, hint)


def is_inside(name: str) -> bool:
    """Return whether a path is relative and without `..`."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _unlisted(folder: Path, listed: set[str]) -> Iterator[Finding]:
    """Yield files that export.json does not list: an error for what somebody may load."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        name = str(inside)
        if path.is_dir() or is_hidden or name in listed or name in BESIDE:
            continue
        if inside.name.upper().startswith(LICENCES):
            continue
        message = f"is not in {EXPORT}: it was added later, or the list is of another folder"
        if path.suffix == ".plan":
            message = f"is an engine that {EXPORT} does not list; it is never loaded"
            yield Finding.error("engine-unlisted", printable(name), message, KNOWN)
        elif path.suffix in READ:
            yield Finding.error("file-unlisted", printable(name), message, KNOWN)
        else:
            yield Finding.warning("file-unlisted", printable(name), message, KNOWN)


# ---------------------------------------------------------------------------------------- tensors


def _check_data(
    folder: Path, export: Export, headers_only: bool, results: Results, workers: int
) -> None:
    """Check the files of weights: places, then bytes where the places are sound."""
    broken = {finding.where for finding in results.findings if finding.level == "error"}
    there = {n: w for n, w in export.weights.items() if printable(n) not in broken}
    faults = {
        name: list(check_places(folder / name, name, weights)) for name, weights in there.items()
    }
    results.findings += [finding for found in faults.values() for finding in found]
    sound = {name: weights for name, weights in there.items() if not faults[name]}
    if there:
        results.checked.append("the place of each tensor")
    if there and headers_only:
        results.not_checked.append("tensors by their sha256: leave out --headers-only")
    elif sound:
        progress = results.hashing.progress
        results.findings += read_files(folder, sound, results.hashing, workers, progress)
        count = sum(map(len, sound.values()))
        results.checked.append(f"{count} tensors by their sha256, and the zeros between them")
    for name in sorted(export.weights.keys() - sound.keys()):
        results.not_checked.append(f"tensors of {printable(name)}: {FIRST}")


def _check_source(
    folder: Path, export: Export, source: Path | None, results: Results, workers: int
) -> None:
    """Compare with the checkpoint, or say that it was not done."""
    what = "tensors against their source"
    if source is None:
        results.not_checked.append(f"{what}: --source")
    elif results.has_error(UNREADABLE):
        results.not_checked.append(f"{what}: {FIRST}")
    else:
        with open_source(source) as checkpoint:
            _compare(folder, export, checkpoint, results, workers)
            checkpoint.check_unmoved()


def _compare(
    folder: Path, export: Export, checkpoint: Checkpoint, results: Results, workers: int
) -> None:
    """Compare with the checkpoint as the kind of the folder asks.

    Raises DstoolsError where torch or onnx, which graphs take, is not installed.
    """
    if export.kind == "deepseek-inference":
        shards.compare(folder, export, checkpoint, results, workers)
    elif export.kind == "dense":
        dense.compare(folder, export, checkpoint, results)
    else:
        try:
            from dstools_converters.verify.exported.source import compare
        except ModuleNotFoundError as error:
            message = f"--source: comparing the weights of graphs needs {error.name}"
            raise DstoolsError(message, install_hint("export")) from error
        compare(folder, export, checkpoint, results, workers)
