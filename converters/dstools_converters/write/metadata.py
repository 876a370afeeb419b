"""The files beside the shards, made from a plan and the notes of its jobs."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.errors import DstoolsError
from dstools_converters.files import to_json
from dstools_converters.plan.plan import Plan
from dstools_converters.sidefiles.calibration import (
    CALIBRATION,
    KV_SCALES,
    LayerNote,
    WeightNote,
    calibration_of,
    kv_names,
    kv_scales,
    read_calibration,
)
from dstools_converters.sidefiles.carried import README, carried, carried_files
from dstools_converters.sidefiles.expert_load import EXPERT_LOAD, expert_load_of, read_expert_load
from dstools_converters.sidefiles.manifest import MANIFEST, manifest_of, read_manifest
from dstools_converters.write.journal import Note


def side_files(
    plan: Plan,
    tool: str,
    notes: Collection[Note] = (),
    layers: Mapping[int, LayerNote] = MappingProxyType({}),
) -> dict[str, Path | bytes]:
    """Return the files beside the shards, by their path in the folder; `tool` names who made it.

    `notes`: {"tensor": NAME} with "recovered" or the fields of a WeightNote, and "warnings".
    `layers`: what a calibration saw in each layer.
    """
    files: dict[str, Path | bytes] = {}
    for name, path in carried_files(plan.inventory.checkpoint.folder).items():
        files[name] = carried(path)
    files["config.json"] = to_json(plan.config)
    digests: dict[str, str] = {}
    if plan.calibration is not None:
        weights = {note["tensor"]: _weight(note) for note in notes if "method" in note}
        files[CALIBRATION] = to_json(asdict(calibration_of(plan, tool, weights, layers)))
        digests["calibration"] = _digest(files[CALIBRATION])
        load = expert_load_of(plan, {n: layer.expert_load for n, layer in layers.items()})
        if load.layers:
            files[EXPERT_LOAD] = to_json(asdict(load))
            digests["expert_load"] = _digest(files[EXPERT_LOAD])
        if plan.calibration.kv_cache:
            from safetensors.numpy import save

            amax = {number: layer.cache_amax for number, layer in layers.items()}
            files[KV_SCALES] = save(kv_scales(kv_names(plan), amax), {"format": "pt"})
    if README in files:
        digests["source_card"] = _digest(files[README])
    recovered = [note["tensor"] for note in notes if "recovered" in note]
    files[MANIFEST] = manifest_of(plan, tool, recovered, digests)
    files[INDEX] = to_json(_index(plan))
    return files


def read_back(folder: Path, plan: Plan) -> tuple[list[Note], dict[int, LayerNote]]:
    """Return the notes and layers that `side_files` made a folder's files of.

    Files that are missing, damaged or made otherwise give none.
    """
    manifest = read_manifest(folder)
    recovered = (manifest.recovered if manifest else None) or ()
    notes: list[Note] = [{"tensor": name, "recovered": True} for name in recovered]
    try:
        calibration = read_calibration(folder, plan.inventory)
        load = read_expert_load(folder, plan.inventory)
    except DstoolsError:
        return notes, {}
    if calibration is None:
        return notes, {}
    experts = load.layers if load else {}
    notes += [{"tensor": name} | asdict(note) for name, note in calibration.tensors.items()]
    return notes, {
        layer: LayerNote(list(experts.get(layer, ())), amax)
        for layer, amax in calibration.layer_amax().items()
    }


def _weight(note: Note) -> WeightNote:
    fields = {key: note[key] for key in note.keys() - {"tensor", "warnings"}}
    return WeightNote(**fields)


def _digest(file: Path | bytes) -> str:
    content = file if isinstance(file, bytes) else file.read_bytes()
    return f"sha256:{sha256(content).hexdigest()}"


def _index(plan: Plan) -> dict[str, Any]:
    index = plan.index()
    if plan.calibration is not None and plan.calibration.kv_cache:
        names = kv_names(plan)
        index["metadata"]["total_size"] += 4 * len(names)
        index["weight_map"] = dict(
            sorted((index["weight_map"] | dict.fromkeys(names, KV_SCALES)).items())
        )
    return index
