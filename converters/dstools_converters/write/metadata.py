"""The files beside the shards: config, index, manifest, and what travels along unchanged."""

import json
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dstools_converters.checkpoint.folder import INDEX
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.families.names import TensorName
from dstools_converters.plan.plan import Plan
from dstools_kernels.fp8 import AMAX_FLOOR, E4M3_MAX

MANIFEST = "manifest.json"
MAX_SIDE_BYTES = 64 << 20  # a tokenizer takes 7 MB; what is larger is some other form of weights
WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl",
)  # fmt: skip
CALIBRATION, EXPERT_LOAD, EVAL = "calibration.json", "expert_load.json", "eval.json"
KV_SCALES = "kv_scales.safetensors"
# of the source; ours differ
WRITTEN = ("config.json", INDEX, MANIFEST, "SHA256SUMS", CALIBRATION, EXPERT_LOAD, EVAL)
REPORTS = ("report.html", "report.md")  # speak of the source alone

Note = dict[str, Any]  # what a job has to say of its tensor, and of which: {"tensor": NAME, ...}


def side_files(
    plan: Plan,
    tool: str,
    notes: Collection[Note] = (),
    layers: Mapping[int, Note] = MappingProxyType({}),
) -> dict[str, Path | bytes]:
    """Return the files beside the shards, by their path in the folder; `tool` names who made it.

    `notes` are of tensors, `layers` of what a calibration saw in each; without a calibration there are
    none but of tensors that were recovered.
    """
    files: dict[str, Path | bytes] = {}
    files.update(travelling_files(plan.inventory.checkpoint.folder))
    files["config.json"] = _json(plan.config)
    manifest = _manifest(plan, tool)
    if "recover" in plan.counts:
        manifest["recovered"] = sorted(note["tensor"] for note in notes if "recovered" in note)
    if plan.calibration is not None:
        found = _json(_calibration(plan, tool, notes, layers))
        files[CALIBRATION] = found
        manifest["calibration"] = f"sha256:{sha256(found).hexdigest()}"
        load = _expert_load(plan, layers)
        if load["layers"]:
            files[EXPERT_LOAD] = _json(load)
            manifest["expert_load"] = f"sha256:{sha256(_json(load)).hexdigest()}"
        if plan.calibration.kv_cache:
            files[KV_SCALES] = _kv_scales(plan, layers)
    files[MANIFEST] = _json(manifest)
    files[INDEX] = _json(_index(plan))
    return files


def travelling_files(folder: Path) -> dict[str, Path]:
    """Return what is copied as it is: tokenizer, generation config, licence, custom code and the like.

    Raises DstoolsError for a file too large to be one of them.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = str(inside)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        is_index = name.endswith(".safetensors.index.json")
        is_ours = name in WRITTEN or name in REPORTS
        if is_hidden or is_index or is_ours or path.suffix in WEIGHT_SUFFIXES:
            continue
        if not path.is_file():
            continue
        _require_inside(path, folder)
        if path.stat().st_size > MAX_SIDE_BYTES:
            raise DstoolsError(
                f"{printable(name)}: {path.stat().st_size} bytes, too large for a side file",
                f"move it out of the folder; files up to {MAX_SIDE_BYTES >> 20} MiB travel along",
            )
        files[name] = path
    return files


def _require_inside(path: Path, folder: Path) -> None:
    """Raise DstoolsError for a link out of the folder, unless into the blobs of its Hub cache.

    Whoever wrote the checkpoint may have pointed it at a file of yours, which a push would publish.
    """
    home, target = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"  # of models--org--name/snapshots/REVISION
    if not target.is_relative_to(home) and target.parent != blobs:
        raise DstoolsError(
            f"{printable(str(path.relative_to(folder)))}: is a link out of the folder",
            "put the file itself there, or remove the link",
        )


def _manifest(plan: Plan, tool: str) -> dict[str, Any]:
    """Return what made this folder out of what. No time and no path: the same run, the same bytes."""
    rules: dict[str, int] = {}
    for shard in plan.shards:
        for tensor in shard.tensors:
            label = f"{tensor.action}: {tensor.rule}"
            rules[label] = rules.get(label, 0) + 1
    manifest: dict[str, Any] = {
        "tool": tool,
        "source_headers": _headers(plan),
        "tensors": rules,
        "unknown_tensors": [info.name for info in plan.inventory.unknown],
    }
    if plan.scheme is not None:
        manifest["scale_fmt"] = plan.scheme.scale_format
        # scales that were not made here: `verify` holds them to their own maker's rules
        manifest["has_foreign_scales"] = bool(plan.inventory.scheme or plan.base)
    return manifest


def _calibration(
    plan: Plan, tool: str, notes: Iterable[Note], layers: Mapping[int, Note]
) -> dict[str, Any]:
    """Return what rounded each weight how well, and on which data."""
    calibration, scheme = plan.calibration, plan.scheme
    assert calibration is not None
    assert scheme is not None
    tensors = {note["tensor"]: note for note in notes if "method" in note}
    seen: dict[str, dict[str, float]] = {}
    for layer in sorted(layers):
        for part, amax in layers[layer]["cache_amax"].items():
            seen.setdefault(part, {})[str(layer)] = amax
    return {
        "tool": tool,
        "method": calibration.method,
        "scale_fmt": scheme.scale_format,
        "data": calibration.data,
        "tokens": calibration.data["samples"] * calibration.data["seq_len"],
        "device": calibration.device,
        "threads": calibration.threads,
        "versions": calibration.versions,
        "tensors": {
            name: {key: value for key, value in tensors[name].items() if key != "tensor"}
            for name in sorted(tensors)
        },
        "kv": seen,
    }


def _expert_load(plan: Plan, layers: Mapping[int, Note]) -> dict[str, Any]:
    """Return how many tokens the router sent to each expert, for placing experts later."""
    assert plan.calibration is not None
    data, moe = plan.calibration.data, plan.inventory.model.moe
    return {
        "tokens": data["samples"] * data["seq_len"],
        "num_experts_per_tok": moe.num_experts_per_tok if moe else 0,
        "layers": {
            str(layer): layers[layer]["expert_load"]
            for layer in sorted(layers)
            if layers[layer]["expert_load"]
        },
    }


def _kv_scales(plan: Plan, layers: Mapping[int, Note]) -> bytes:
    """Return a shard of two scales a layer, F32 [1]: what an FP8 KV cache is multiplied by to restore.

    Source: the names that compressed-tensors writes and vLLM's maybe_remap_kv_scale_name reads.
    """
    from safetensors.numpy import save

    amax = {layer: note["cache_amax"] for layer, note in layers.items()}
    return save(kv_scales(_kv_names(plan), amax), {"format": "pt"})


def read_back(folder: Path) -> tuple[list[Note], dict[int, Note]]:
    """Return the notes of tensors and of layers that `side_files` made a folder's files of.

    Without those files, or with such as it did not make, there are none.
    """
    notes = [{"tensor": n, "recovered": True} for n in read_manifest(folder).get("recovered", ())]
    layers: dict[int, Note] = {}
    try:
        found = json.loads((folder / CALIBRATION).read_bytes())
        load: dict[str, Any] = {}
        if (folder / EXPERT_LOAD).exists():
            load = json.loads((folder / EXPERT_LOAD).read_bytes())["layers"]
        for part, by_layer in found["kv"].items():
            for layer, amax in by_layer.items():
                none_yet: Note = {"expert_load": load.get(layer, []), "cache_amax": {}}
                layers.setdefault(int(layer), none_yet)["cache_amax"][part] = amax
        notes += [{"tensor": name} | note for name, note in found["tensors"].items()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return notes, {}
    return notes, layers


def kv_scales(
    names: Iterable[TensorName], amax_by_layer: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """Return for each name of role kv_cache an F32 [1] array: what its cache holds over 448.

    Of MLA one cache holds latents and rotated keys, so there is one scale, twice.
    """
    import numpy as np

    scales = {}
    for name in names:
        amax = amax_by_layer.get(name.layer or 0, {})
        is_v = name.part == "v_scale" and "v_amax" in amax
        of_k = [value for part, value in amax.items() if part != "v_amax"]
        largest = amax["v_amax"] if is_v else max(of_k, default=0.0)
        scale = np.float32(max(largest, AMAX_FLOOR["float32"])) / np.float32(E4M3_MAX)
        scales[str(name)] = np.array([scale], np.float32)
    return scales


def _kv_names(plan: Plan) -> list[TensorName]:
    weights = plan.inventory.model.optional_weights()
    # not of MTP layers: vLLM's deepseek_mtp.py looks for each name as it stands, and finds none of these
    return [name for name, _ in weights if name.role == "kv_cache" and not name.is_mtp]


def _index(plan: Plan) -> dict[str, Any]:
    index = plan.index()
    if plan.calibration is not None and plan.calibration.kv_cache:
        names = [str(name) for name in _kv_names(plan)]
        index["metadata"]["total_size"] += 4 * len(names)
        index["weight_map"] = dict(
            sorted((index["weight_map"] | dict.fromkeys(names, KV_SCALES)).items())
        )
    return index


def _headers(plan: Plan) -> dict[str, str]:
    shards = plan.inventory.checkpoint.shards
    return {name: f"sha256:{shard.header_sha256}" for name, shard in shards.items()}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return our manifest of a folder, {} where there is none: then somebody else made the folder."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(found, dict) and str(found.get("tool", "")).startswith("dstools ")
    return found if is_ours else {}
