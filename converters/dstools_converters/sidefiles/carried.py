"""Files copied along unchanged: tokenizer, generation config, licence, custom code and the like."""

from pathlib import Path

from dstools_converters.checkpoint.folder import INDEX, WEIGHT_SUFFIXES
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.sidefiles.calibration import CALIBRATION
from dstools_converters.sidefiles.evaluation import EVAL
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD
from dstools_converters.sidefiles.manifest import MANIFEST

MAX_SIDE_BYTES = 64 << 20  # a tokenizer takes 7 MB; larger files are other forms of weights
# describe the source, and the output has its own
WRITTEN = ("config.json", INDEX, MANIFEST, "SHA256SUMS", CALIBRATION, EXPERT_LOAD, EVAL)
REPORTS = ("report.html", "report.md")


def carried_files(folder: Path) -> dict[str, Path]:
    """Return the files to copy, by their path inside `folder`.

    Raises DstoolsError for a file too large to be one of them, and for a link out of the folder.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = str(inside)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        is_index = name.endswith(".safetensors.index.json")
        is_written = name in WRITTEN or name in REPORTS
        if is_hidden or is_index or is_written or path.suffix in WEIGHT_SUFFIXES:
            continue
        if not path.is_file():
            continue
        _require_inside(path, folder)
        if path.stat().st_size > MAX_SIDE_BYTES:
            raise DstoolsError(
                f"{printable(name)}: {path.stat().st_size} bytes, too large for a side file",
                f"move it out of the folder; files up to {MAX_SIDE_BYTES >> 20} MiB are copied",
            )
        files[name] = path
    return files


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
