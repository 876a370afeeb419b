"""Files copied along unchanged: tokenizer, generation config, licence, custom code and the like."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import check_config, missing_code
from dstools_converters.checkpoint.folder import ADAPTER, INDEX, WEIGHT_SUFFIXES, Checkpoint
from dstools_converters.checkpoint.foreign import QUANTIZATION_FILES
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.files import LFS_HINT, is_lfs_pointer
from dstools_converters.sidefiles.calibration import CALIBRATION
from dstools_converters.sidefiles.evaluation import EVAL
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD
from dstools_converters.sidefiles.manifest import MANIFEST
from dstools_converters.sidefiles.sums import SIGNATURE, SUMS

MAX_SIDE_BYTES = 64 << 20  # a tokenizer takes 7 MB; larger files are other forms of weights
# describe the source, and the output has its own
WRITTEN = ("config.json", INDEX, MANIFEST, SUMS, SIGNATURE, CALIBRATION, EXPERT_LOAD, EVAL)
REPORTS = ("report.html", "report.md")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_CONFIG = "tokenizer_config.json"
# read by transformers and engines when they load the folder
LOADED = (TOKENIZER_CONFIG, "tokenizer.json", "generation_config.json", "special_tokens_map.json")
MAX_PARSED_BYTES = 1 << 20  # a tokenizer.json takes 0.1 s, which its loader takes anyway
OF_TRAINING = re.compile(r"checkpoint-\d+|global_step\d+")  # folders of transformers, DeepSpeed
TRAINER_FILES = ("trainer_state.json", "zero_to_fp32.py")


def carried_files(folder: Path) -> dict[str, Path]:
    """Return the files to copy, by their path inside `folder`.

    Raises DstoolsError for a file too large to be one of them, and for a link out of the folder.
    """
    files, _ = _survey(folder)
    for name, path in files.items():
        _require_inside(path, folder)
        if path.stat().st_size > MAX_SIDE_BYTES:
            raise DstoolsError(
                f"{printable(name)}: {path.stat().st_size} bytes, too large for a side file",
                f"move it out of the folder; files up to {MAX_SIDE_BYTES >> 20} MiB are copied",
            )
    return files


def check_side_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what beside the shards does not work, and what is not copied: a warning or a note."""
    folder = checkpoint.folder
    files, findings = _survey(folder)
    yield from findings
    yield from check_config(checkpoint)
    path = files.get(TOKENIZER_CONFIG)
    missing = missing_code(folder, _auto_map(path)) if path else []
    if missing:
        yield Finding.warning(
            "auto-map",
            TOKENIZER_CONFIG,
            f"auto_map names {printable(missing[0])}, which is not in the folder",
            "copy it from the original model, or remove auto_map",
        )


def _survey(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Return the files to copy, and findings about others that a reader may expect to be copied."""
    files: dict[str, Path] = {}
    findings: list[Finding] = []
    others: set[Path] = set()  # folders of weights or of a training run
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or others & set(inside.parents):
            continue
        if path.is_dir() and not path.is_symlink():
            if OF_TRAINING.fullmatch(path.name) or any(map(_is_weights, path.iterdir())):
                others.add(inside)
                findings.append(_other_folder(str(inside)))
        elif not _is_written(str(inside)) and not _is_weights(path):
            finding = _fault(path, str(inside))
            if finding is not None:
                findings.append(finding)
            elif path.is_file():
                files[str(inside)] = path
    return files, findings


def _is_written(name: str) -> bool:
    """Return whether the output has its own file of this name."""
    return name.endswith(".safetensors.index.json") or name in (*WRITTEN, *REPORTS)


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES


def _other_folder(name: str) -> Finding:
    return Finding.note(
        "subfolder",
        f"{printable(name)}/",
        "holds weights of its own, or the state of a training",
        "dstools does not copy it",
    )


def _fault(path: Path, name: str) -> Finding | None:
    """Return why a file is not copied, None if it is."""
    where = printable(name)
    if path.is_symlink() and not path.is_file():
        target = "a folder" if path.is_dir() else "nothing"
        return Finding.warning(
            "link",
            where,
            f"is a link to {target}",
            "put the file itself there, or remove the link; dstools does not copy it",
        )
    if path.name in TRAINER_FILES:
        return Finding.note(
            "trainer-file", where, "is of a training, not of the model", "dstools does not copy it"
        )
    if path.name == ADAPTER:
        has_adapter = any(path.with_name(weights).exists() for weights in ADAPTER_WEIGHTS)
        if has_adapter:
            message = "belongs to an adapter; whether it is merged into the weights is not known"
            hint = "if it is, remove it; if not, merge it first (peft: merge_and_unload)"
        else:
            message = "belongs to an adapter that is not there"
            hint = "remove it: loaders that find it look for the adapter"
        return Finding.warning("adapter", where, message, f"{hint}; dstools does not copy it")
    if name in QUANTIZATION_FILES:
        return Finding.warning(
            "quantization-file",
            where,
            "describes a quantization, too; some engines read it before config.json",
            "remove it; dstools does not copy it",
        )
    if path.is_file() and is_lfs_pointer(path):
        return Finding.warning(
            "lfs-pointer",
            where,
            "is a Git LFS pointer, not the file",
            f"{LFS_HINT}; dstools does not copy a pointer",
        )
    broken = _broken_json(path) if name in LOADED and path.is_file() else ""
    if broken:
        hint = "copy it from the original model; dstools does not copy a broken one"
        return Finding.warning("broken-json", where, broken, hint)
    return None


def _broken_json(path: Path) -> str:
    """Return why a JSON file that is not large cannot be read, "" if it can."""
    if path.stat().st_size > MAX_PARSED_BYTES:
        return ""
    raw = path.read_bytes()
    try:
        return "" if isinstance(json.loads(raw), dict) else "is not a JSON object"
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}" if raw else "is empty"


def _auto_map(path: Path) -> Any:
    """Return the `auto_map` of a JSON file, None without one."""
    if path.stat().st_size > MAX_SIDE_BYTES:
        return None
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return table.get("auto_map") if isinstance(table, dict) else None


def _require_inside(path: Path, folder: Path) -> None:
    """Raise DstoolsError for a link out of the folder, unless into the blobs of its Hub cache.

    The author of a checkpoint may have pointed it at a file of yours, which a push would publish.
    """
    home, target = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"  # of models--org--name/snapshots/REVISION
    if not target.is_relative_to(home) and target.parent != blobs:
        raise DstoolsError(
            f"{printable(str(path.relative_to(folder)))}: is a link out of the folder",
            "put the file itself there, or remove the link",
        )
