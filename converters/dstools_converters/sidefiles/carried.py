"""Files copied along: tokenizer, generation config, licence, custom code and the like.

All are copied unchanged, except that JSON loses the paths of the machine that wrote it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.config import check_config, local_path, missing_code
from dstools_converters.checkpoint.folder import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    INDEX,
    TRAINER_STATE,
    WEIGHT_SUFFIXES,
    Checkpoint,
)
from dstools_converters.checkpoint.foreign import QUANTIZATION_FILES
from dstools_converters.checkpoint.local_paths import FILES, SUFFIX, without_local_paths
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.files import LFS_HINT, is_lfs_pointer, json_object, real
from dstools_converters.sidefiles.calibration import CALIBRATION
from dstools_converters.sidefiles.evaluation import EVAL
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD
from dstools_converters.sidefiles.hub_cache import blob_of
from dstools_converters.sidefiles.manifest import MANIFEST
from dstools_converters.sidefiles.sums import SIGNATURE, SUMS
from dstools_converters.sidefiles.tokenizer import (
    ADDED_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_tokenizer,
)

README = "README.md"  # the card of a model on the Hub
MAX_SIDE_BYTES = 64 << 20  # a tokenizer takes 7 MB; larger files are other forms of weights
# describe the source, and the output has its own
WRITTEN = ("config.json", INDEX, MANIFEST, SUMS, SIGNATURE, CALIBRATION, EXPERT_LOAD, EVAL)
PLOTS = (
    "plots/kl.svg",
    "plots/router_flips.svg",
    "plots/output_error.svg",
    "plots/output_error_calibration.svg",
    "plots/expert_load.svg",
)
REPORTS = ("report.html", "report.md", *PLOTS)
# written into a finished folder: neither signed nor hashed
LATER = (SIGNATURE, EVAL, *REPORTS)
# read by transformers and engines when they load the folder
LOADED = ("generation_config.json", "special_tokens_map.json", ADDED_TOKENS)
MAX_PARSED_BYTES = 1 << 20  # a tokenizer.json takes 0.1 s, which its loader takes anyway
# what transformers, DeepSpeed, TensorBoard and W&B leave beside the model that they train
TRAINING_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d+|runs|wandb")
TRAINING_FILES = re.compile(
    r"events\.out\.tfevents.*|trainer_state\.json|latest|zero_to_fp32\.py"
    rf"|({'|'.join(TRAINER_STATE)})[\w.-]*\.(bin|pt|pth)"
)
MAX_JSON_BYTES = 4 << 20  # a tokenizer_config.json with many added tokens takes 1.2 MB
MAX_NAMED = 4  # files that a finding names besides its own


def carried_files(folder: Path) -> dict[str, Path]:
    """Return the files to copy, by their path inside `folder`.

    Raises DstoolsError for a file too large to be one of them, and for a link out of the folder.
    """
    files, _ = _survey(folder)
    for name, path in files.items():
        require_inside(path, folder)
        if path.stat().st_size > MAX_SIDE_BYTES:
            raise DstoolsError(
                f"{printable(name)}: {path.stat().st_size} bytes, too large for a side file",
                f"move it out of the folder; files up to {MAX_SIDE_BYTES >> 20} MiB are copied",
            )
    return files


def carried(path: Path) -> Path | bytes:
    """Return what is written in place of a file: itself, or JSON without local paths."""
    content, left_out = _without_paths(path)
    return content if left_out else path


def _without_paths(path: Path) -> tuple[bytes, list[str]]:
    """Return the content of a JSON file without local paths, and their keys; else nothing."""
    if path.suffix == ".json" and path.name != TOKENIZER and path.stat().st_size <= MAX_JSON_BYTES:
        raw = path.read_bytes()
        if any(key.encode() in raw for key in (SUFFIX, *FILES)):
            with suppress(ValueError, RecursionError):
                content, left_out = without_local_paths(raw)
                return (json.dumps(content, indent=2) + "\n").encode(), left_out  # NaN, too
    return b"", []


def check_side_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield what beside the shards does not work, and what is not copied.

    An error is of the tokenizer: no output can be used with it.
    """
    folder = checkpoint.folder
    files, findings = _survey(folder)
    yield from findings
    for name, file in files.items():
        try:
            require_inside(file, folder)
        except DstoolsError as error:
            hint = f"{error.hint}; quantize and dequantize refuse it"
            yield Finding.warning("link", printable(name), "is a link out of the folder", hint)
            continue
        for key in _without_paths(file)[1]:
            yield local_path(printable(name), key)
    yield from check_tokenizer(folder, checkpoint.config.get("vocab_size"))
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
    training: list[str] = []
    weights: list[str] = []  # in other forms than .safetensors
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or others & set(inside.parents):
            continue
        if path.is_dir() and not path.is_symlink():
            if TRAINING_FOLDERS.fullmatch(path.name):
                others.add(inside)
                training.append(f"{inside}/")
            elif any(map(_is_weights, path.iterdir())):
                others.add(inside)
                findings.append(_other_folder(str(inside)))
        elif TRAINING_FILES.fullmatch(path.name):
            training.append(str(inside))
        elif _is_weights(path):
            if path.suffix != ".safetensors" and path.name not in ADAPTER_WEIGHTS:
                weights.append(str(inside))
        elif not _is_written(str(inside)) and not _is_adapter_config(path):
            finding = _fault(path, str(inside))
            if finding is not None:
                findings.append(finding)
            elif path.is_file():
                files[str(inside)] = path
    findings += _left_out("training", training, "is training state, not part of the model")
    findings += _left_out(
        "other-weights", weights, "holds weights in another form or by another name"
    )
    return files, findings


def _left_out(code: str, names: list[str], message: str) -> Iterator[Finding]:
    """Yield one note for all of these files, which the output does not need."""
    if names:
        first, *rest = map(printable, names)
        more = ", ".join(rest[:MAX_NAMED])
        if len(rest) > MAX_NAMED:
            more += f" and {len(rest) - MAX_NAMED} more"
        message = f"{message} (also: {more})" if rest else message
        yield Finding.note(code, first, message, "dstools does not copy such files")


def _is_written(name: str) -> bool:
    """Return whether the output has its own file of this name."""
    return name.endswith(".safetensors.index.json") or name in (*WRITTEN, *REPORTS)


def _is_weights(path: Path) -> bool:
    """Return whether a file is weights, or a link to them under another name."""
    return path.suffix in WEIGHT_SUFFIXES or (
        path.is_symlink() and path.readlink().suffix in WEIGHT_SUFFIXES
    )


def _is_adapter_config(path: Path) -> bool:
    """Return whether it is the config of an adapter beside it, of which `scan` warns."""
    return path.name == ADAPTER and any(path.with_name(w).exists() for w in ADAPTER_WEIGHTS)


def _other_folder(name: str) -> Finding:
    return Finding.note(
        "subfolder", f"{printable(name)}/", "holds weights of its own", "dstools does not copy it"
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
    if path.name == ADAPTER:
        return Finding.warning(
            "adapter",
            where,
            "belongs to an adapter that is not there",
            "remove it: loaders that find it look for the adapter; dstools does not copy it",
        )
    if name in QUANTIZATION_FILES:
        return Finding.warning(
            "quantization-file",
            where,
            "describes a quantization, too; some engines read it before config.json",
            "remove it; dstools does not copy it",
        )
    if name in (TOKENIZER, TOKENIZER_CONFIG):
        return None  # `check_tokenizer` reads them
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
    content = json_object(path)
    return content if isinstance(content, str) else ""


def _auto_map(path: Path) -> Any:
    """Return the `auto_map` of a JSON file, None without one."""
    if path.stat().st_size > MAX_SIDE_BYTES:
        return None
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return table.get("auto_map") if isinstance(table, dict) else None


def require_inside(path: Path, folder: Path) -> None:
    """Raise DstoolsError for a link to nothing, or out of the folder but to its Hub cache's blobs.

    The author of a checkpoint may have pointed it at a file of yours, which a push would publish.
    """
    home, target = real(folder), real(path)
    is_inside = target.is_relative_to(home) or blob_of(path, folder) is not None
    if not is_inside or not path.exists():
        problem = "to nothing" if is_inside else "out of the folder"
        raise DstoolsError(
            f"{printable(str(path.relative_to(folder)))}: is a link {problem}",
            "put the file itself there, or remove the link",
        )


def require_own(path: Path, folder: Path) -> None:
    """Raise DstoolsError for a link out of the folder, unless of a shard, which you linked there.

    Such a shard is only hashed, which does not publish its content.
    """
    if path.parent != folder or path.suffix != ".safetensors":
        require_inside(path, folder)
