"""What a quantized folder says of itself: its headers, and what calibration and evaluation left there.

Nothing is computed here but sums of bytes; every value is checked, against the headers too, for a
sheet that shows the figures of another model is worse than none.
"""

import sys
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import ROLES
from dstools_converters.inspect import Report, inspect
from dstools_converters.tables import Fields, read_fields
from dstools_converters.write.metadata import CALIBRATION, EVAL, EXPERT_LOAD, MANIFEST

METHODS = ("gptq", "mse", "nearest", "lossless")
CACHE_PARTS = ("latent_amax", "rope_amax", "k_amax", "v_amax")
MAX_BINS = 1000
MAX_FLOAT = sys.float_info.max  # a broken model's perplexity comes near


@dataclass(frozen=True)
class Data:
    """The text that something was measured on."""

    name: str
    sha256: str
    samples: int
    seq_len: int
    seed: int
    documents: int


class Rounding(NamedTuple):
    """How one weight was rounded. Errors are rms((W - Q) x) over rms(W x), on the calibration data."""

    name: str
    role: str
    layer: int | None
    method: str  # one of METHODS
    why: str  # the reason where it is not the method asked for
    tokens: int  # that passed it
    error_nearest: float | None  # None: not measured, as where no token passed
    error: float | None
    moved: int  # codes that are not the nearest
    far: int  # codes more than one step from the weight
    numel: int


@dataclass(frozen=True)
class Calibration:
    """calibration.json."""

    tool: str
    method: str
    scale_format: str
    data: Data
    tokens: int
    device: str
    threads: int
    versions: dict[str, str]
    weights: list[Rounding]
    cache_amax: dict[str, dict[int, float]]  # "latent_amax" -> layer -> amax


@dataclass(frozen=True)
class ExpertLoad:
    """expert_load.json."""

    tokens: int
    num_experts_per_tok: int
    layers: dict[int, list[int]]  # layer -> tokens of each expert


class Histogram(NamedTuple):
    """counts[i] tokens lie in edges[i] to edges[i + 1]; the end bins hold all beyond."""

    edges: list[float]
    counts: list[int]


class OutputError(NamedTuple):
    """The relative output error of the weights of a role in a layer, on the evaluation data."""

    role: str
    layer: int
    error: float
    numel: int


@dataclass(frozen=True)
class Evaluation:
    """eval.json. KL is that of the model from `against`, in nats a token; None was not measured."""

    tool: str
    model: str
    against: str | None
    data: Data
    tokens: int
    perplexity: float
    perplexity_against: float | None
    kl_mean: float | None
    kl_p99: float | None
    kl_max: float | None
    top1_agreement: float | None
    kl_histogram: Histogram | None
    router_flips: dict[int, float]  # layer -> share of the top-k choices that are others
    output_error: list[OutputError]


@dataclass(frozen=True)
class Sheet:
    """All that is known of a folder; None is what it does not hold."""

    folder: Path
    model: Report
    layers: int  # without MTP
    bytes: dict[str, dict[str, int]]  # role -> dtype -> bytes; scales count for their weight's role
    tool: str | None  # that wrote the folder, from its manifest
    rules: dict[str, int]  # what was done by which rule, and to how many tensors
    calibration: Calibration | None
    expert_load: ExpertLoad | None
    evaluation: Evaluation | None


def read_sheet(folder: Path) -> Sheet:
    """Return what the folder's headers and JSON files say.

    Raises DstoolsError for a folder that is no checkpoint, and for a file that is broken, has a value
    of the wrong kind, or speaks of tensors, layers or experts that the checkpoint does not have.
    """
    if not folder.is_dir():
        raise DstoolsError(f"{folder}: no such folder", "name a quantized checkpoint's folder")
    with open_checkpoint(folder) as checkpoint:
        inventory = take_inventory(checkpoint)
    if inventory.scheme is None:
        raise DstoolsError(
            f"{folder}: is not quantized, so there is nothing to report",
            "name a folder that dstools quantize has made",
        )
    manifest = read_fields(folder / MANIFEST)
    if manifest is not None and not str(manifest.values.get("tool")).startswith("dstools "):
        manifest = None  # somebody else's file of that name
    calibration = read_fields(folder / CALIBRATION)
    load = read_fields(folder / EXPERT_LOAD)
    evaluation = read_fields(folder / EVAL)
    if manifest is not None and calibration is not None and "calibration" in manifest.values:
        found = f"sha256:{sha256(calibration.path.read_bytes()).hexdigest()}"
        if manifest.text("calibration") != found:
            raise manifest.error("calibration", f"is of another {CALIBRATION}")
    rules = manifest.fields("tensors") if manifest is not None else None
    return Sheet(
        folder=folder,
        model=inspect(inventory),
        layers=inventory.model.num_hidden_layers,
        bytes=_bytes(inventory),
        tool=manifest.text("tool") if manifest is not None else None,
        rules={rule: rules.count(rule) for rule in rules.values} if rules is not None else {},
        calibration=None if calibration is None else _calibration(calibration, inventory),
        expert_load=None if load is None else _expert_load(load, inventory),
        evaluation=None if evaluation is None else _evaluation(evaluation, inventory),
    )


def _bytes(inventory: Inventory) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for info, parsed in inventory.weights():
        dtypes = found.setdefault(parsed.role if parsed else "unknown", {})
        scale = inventory.scales.get(info.name)
        for part in (info, scale) if scale else (info,):
            dtypes[part.dtype] = dtypes.get(part.dtype, 0) + part.nbytes
    return found


def _all_layers(inventory: Inventory) -> int:
    return inventory.model.num_hidden_layers + inventory.model.num_mtp_layers


def _calibration(file: Fields, inventory: Inventory) -> Calibration:
    tensors, cache, versions = file.fields("tensors"), file.fields("kv"), file.fields("versions")
    layers = _all_layers(inventory)
    amax: dict[str, dict[int, float]] = {}
    for part in cache.values:
        if part not in CACHE_PARTS:
            raise cache.error(part, f"is none of {', '.join(CACHE_PARTS)}")
        found = cache.fields(part)
        amax[part] = {layer: found.number(key) for layer, key in found.by_layer(layers)}
    return Calibration(
        tool=file.text("tool"),
        method=file.text("method"),
        scale_format=file.text("scale_fmt"),
        data=_data(file.fields("data")),
        tokens=file.count("tokens"),
        device=file.text("device"),
        threads=file.count("threads"),
        versions={name: versions.text(name) for name in versions.values},
        weights=[_rounding(tensors, name, inventory) for name in tensors.values],
        cache_amax=amax,
    )


def _rounding(tensors: Fields, name: str, inventory: Inventory) -> Rounding:
    if name not in inventory.tensors:
        raise tensors.error(name, "is in no shard: the file is of another checkpoint")
    parsed, entry = inventory.names[name], tensors.fields(name)
    tokens, numel = entry.count("tokens"), entry.count("numel")
    if numel != inventory.tensors[name].numel:
        raise entry.error("numel", f"is not the {inventory.tensors[name].numel} of the shard")
    nearest, error = entry.number_or_none("error_nearest"), entry.number_or_none("error")
    return Rounding(
        name=name,
        role=parsed.role if parsed else "unknown",
        layer=parsed.layer if parsed else None,
        method=entry.choice("method", METHODS),
        why=entry.text("why"),
        tokens=tokens,
        error_nearest=nearest if tokens else None,
        error=error if tokens else None,
        moved=entry.count("moved"),
        far=entry.count("far"),
        numel=numel,
    )


def _expert_load(file: Fields, inventory: Inventory) -> ExpertLoad:
    table, moe = file.fields("layers"), inventory.model.moe
    experts = moe.n_routed_experts if moe else 0
    layers: dict[int, list[int]] = {}
    for layer, key in table.by_layer(_all_layers(inventory)):
        tokens = [table.check_count(key, count) for count in table.items(key)]
        if len(tokens) != experts or not experts:
            raise table.error(key, f"has {len(tokens)} experts; the model has {experts}")
        layers[layer] = tokens
    return ExpertLoad(
        tokens=file.count("tokens"),
        num_experts_per_tok=file.count("num_experts_per_tok"),
        layers=dict(sorted(layers.items())),
    )


def _evaluation(file: Fields, inventory: Inventory) -> Evaluation:
    flips, layers = file.fields("router_flips"), _all_layers(inventory)
    shares = {layer: flips.share_or_none(key) for layer, key in flips.by_layer(layers)}
    return Evaluation(
        tool=file.text("tool"),
        model=file.text("model"),
        against=file.text_or_none("against"),
        data=_data(file.fields("data")),
        tokens=file.count("tokens"),
        perplexity=file.number("perplexity", MAX_FLOAT),
        perplexity_against=file.number_or_none("perplexity_against", MAX_FLOAT),
        kl_mean=file.finite_or_none("kl_mean"),
        kl_p99=file.finite_or_none("kl_p99"),
        kl_max=file.finite_or_none("kl_max"),
        top1_agreement=file.share_or_none("top1_agreement"),
        kl_histogram=_histogram(file.fields_or_none("kl_histogram"), file.count("tokens")),
        router_flips={n: share for n, share in sorted(shares.items()) if share is not None},
        output_error=[
            _output_error(file.check_fields(f"output_error[{n}]", entry), layers)
            for n, entry in enumerate(file.items("output_error"))
        ],
    )


def _histogram(table: Fields | None, tokens: int) -> Histogram | None:
    if table is None:
        return None
    edges = [table.check_number("edges", edge) for edge in table.items("edges")]
    counts = [table.check_count("counts", count) for count in table.items("counts")]
    if any(low * 1.001 >= high for low, high in pairwise(edges)):
        raise table.error("edges", "do not rise")
    if not 2 <= len(edges) <= MAX_BINS or len(edges) != len(counts) + 1:
        raise table.error("counts", f"are {len(counts)} for {len(edges)} edges")
    if sum(counts) != tokens:
        raise table.error("counts", f"are of {sum(counts)} tokens, not of the {tokens} evaluated")
    return Histogram(edges, counts)


def _output_error(entry: Fields, layers: int) -> OutputError:
    layer = entry.count("layer")
    if layer >= layers:
        raise entry.error("layer", f"is none of the model's {layers}")
    return OutputError(
        entry.choice("role", ROLES), layer, entry.number("error"), entry.count("numel")
    )


def _data(table: Fields) -> Data:
    counts = (table.count(key) for key in ("samples", "seq_len", "seed", "documents"))
    return Data(table.text("name"), table.text("sha256"), *counts)
