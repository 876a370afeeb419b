"""The data of a report: headers of a quantized folder, its manifest, calibration and evaluation.

Nothing is computed here but sums of bytes. The readers of `sidefiles` check each value against the
headers: a report with figures of another model would be worse than none.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dstools.source import open_source
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.inspect import Report, inspect
from dstools_converters.sidefiles.calibration import (
    CALIBRATION,
    Calibration,
    WeightNote,
    read_calibration,
)
from dstools_converters.sidefiles.evaluation import Evaluation, read_evaluation
from dstools_converters.sidefiles.expert_load import ExpertLoad, read_expert_load
from dstools_converters.sidefiles.manifest import load_manifest, require_digest


class Rounding(NamedTuple):
    """The rounding of one weight; its errors are None if it got no token."""

    name: str
    role: str
    layer: int | None
    note: WeightNote


@dataclass(frozen=True)
class Sheet:
    """The data about a folder; None for a file that it does not have."""

    folder: Path
    model: Report
    layers: int  # without MTP
    bytes: dict[str, dict[str, int]]  # role -> dtype -> bytes; scales count for their weight's role
    tool: str | None  # the writer of the folder, from its manifest
    rules: dict[str, int]  # "action: rule" -> number of tensors
    calibration: Calibration | None
    weights: list[Rounding]  # of the calibration
    expert_load: ExpertLoad | None
    evaluation: Evaluation | None


def read_sheet(folder: Path) -> Sheet:
    """Return the data of the folder's headers and JSON files.

    Raises DstoolsError for a folder without a quantized checkpoint, and for a file that is damaged,
    or names tensors, layers or experts that the checkpoint does not have.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "name a quantized checkpoint's folder")
    with open_source(str(folder)) as checkpoint:
        inventory = take_inventory(checkpoint)
    if inventory.scheme is None:
        raise DstoolsError(
            f"{folder}: is not quantized, so there is nothing to report",
            "name a folder that dstools quantize wrote",
        )
    return sheet_of(folder, inventory)


def sheet_of(folder: Path, inventory: Inventory) -> Sheet:
    """Return the data of a folder whose headers are read, quantized or not.

    Raises DstoolsError as `read_sheet` does for the JSON files.
    """
    manifest = load_manifest(folder)
    calibration = read_calibration(folder, inventory)
    if manifest is not None and calibration is not None:
        require_digest(folder, CALIBRATION, manifest.calibration)
    return Sheet(
        folder=folder,
        model=inspect(inventory),
        layers=inventory.model.num_hidden_layers,
        bytes=_bytes(inventory),
        tool=manifest.tool if manifest else None,
        rules=manifest.tensors if manifest else {},
        calibration=calibration,
        weights=_weights(calibration, inventory) if calibration else [],
        expert_load=read_expert_load(folder, inventory),
        evaluation=read_evaluation(folder, inventory),
    )


def _bytes(inventory: Inventory) -> dict[str, dict[str, int]]:
    by_role: dict[str, dict[str, int]] = {}
    for info, parsed in inventory.weights():
        dtypes = by_role.setdefault(parsed.role if parsed else "unknown", {})
        for part in inventory.storage[info.name].parts:
            dtypes[part.dtype] = dtypes.get(part.dtype, 0) + part.nbytes
    return by_role


def _weights(calibration: Calibration, inventory: Inventory) -> list[Rounding]:
    weights = []
    for name, note in calibration.tensors.items():
        parsed = inventory.names[name]
        role, layer = (parsed.role, parsed.layer) if parsed else ("unknown", None)
        seen = note if note.tokens else replace(note, error=None, error_nearest=None)
        weights.append(Rounding(name, role, layer, seen))
    return weights
