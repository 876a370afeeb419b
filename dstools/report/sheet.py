"""What a quantized folder says of itself: its headers, and what calibration and evaluation left there.

Nothing is computed here but sums of bytes; every value is checked, against the headers too, for a
sheet that shows the figures of another model is worse than none.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, take_inventory
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role
from dstools_converters.inspect import Report, inspect
from dstools_converters.tables import Amount, Range, Reader, Share, json_table
from dstools_converters.write.metadata import CALIBRATION, EVAL, EXPERT_LOAD, MANIFEST

Method = Literal["gptq", "mse", "nearest", "lossless"]
METHODS: tuple[Method, ...] = get_args(Method)
CachePart = Literal["latent_amax", "rope_amax", "k_amax", "v_amax"]
Divergence = Annotated[float, Range(-1e100, 1e100)]  # rounding may leave a KL of 0 below it
Perplexity = Annotated[float, Range()]  # of a broken model, near the largest float
MAX_BINS = 1000


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    tool: str
    tensors: dict[str, int]  # by the rule that decided
    calibration: str | None = None  # "sha256:...", of calibration.json


@dataclass(frozen=True)
class Data:
    """The text that something was measured on."""

    name: str
    sha256: str
    samples: int
    seq_len: int
    seed: int
    documents: int


@dataclass(frozen=True)
class _Weight:
    """An entry of calibration.json."""

    method: Method
    why: str
    tokens: int
    error_nearest: Amount | None
    error: Amount | None
    moved: int
    far: int
    numel: int


@dataclass(frozen=True)
class _Calibration:
    """calibration.json, by its own keys."""

    tool: str
    method: str
    scale_fmt: str
    data: Data
    tokens: int
    device: str
    threads: int
    versions: dict[str, str]
    tensors: dict[str, _Weight]
    kv: dict[CachePart, dict[int, Amount]]


class Rounding(NamedTuple):
    """How one weight was rounded. Errors are rms((W - Q) x) over rms(W x), on the calibration data."""

    name: str
    role: str
    layer: int | None
    method: Method
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
    cache_amax: dict[CachePart, dict[int, float]]  # "latent_amax" -> layer -> amax


@dataclass(frozen=True)
class ExpertLoad:
    """expert_load.json."""

    tokens: int
    num_experts_per_tok: int
    layers: dict[int, tuple[int, ...]]  # layer -> tokens of each expert


@dataclass(frozen=True)
class Histogram:
    """counts[i] tokens lie in edges[i] to edges[i + 1]; the end bins hold all beyond."""

    edges: tuple[Amount, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class OutputError:
    """The relative output error of the weights of a role in a layer, on the evaluation data."""

    role: Role
    layer: int
    error: Amount
    numel: int


@dataclass(frozen=True)
class Evaluation:
    """eval.json. KL is that of the model from `against`, in nats a token; None was not measured."""

    tool: str
    model: str
    against: str | None
    data: Data
    tokens: int
    perplexity: Perplexity
    perplexity_against: Perplexity | None
    kl_mean: Divergence | None
    kl_p99: Divergence | None
    kl_max: Divergence | None
    top1_agreement: Share | None
    kl_histogram: Histogram | None
    router_flips: dict[int, Share]  # layer -> share of the top-k choices that are others
    output_error: tuple[OutputError, ...]


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
    manifest = _manifest(folder)
    return Sheet(
        folder=folder,
        model=inspect(inventory),
        layers=inventory.model.num_hidden_layers,
        bytes=_bytes(inventory),
        tool=manifest.tool if manifest else None,
        rules=manifest.tensors if manifest else {},
        calibration=_calibration(folder / CALIBRATION, inventory),
        expert_load=_expert_load(folder / EXPERT_LOAD, inventory),
        evaluation=_evaluation(folder / EVAL, inventory),
    )


def _manifest(folder: Path) -> Manifest | None:
    """Return the manifest, None where there is none, or another program's."""
    path, calibration = folder / MANIFEST, folder / CALIBRATION
    table = json_table(path)
    if table is None or not str(table.get("tool")).startswith("dstools "):
        return None
    reader = Reader(str(path), "json")
    manifest = reader.read(Manifest, table)
    if manifest.calibration is not None and calibration.exists():
        digest = sha256(calibration.read_bytes()).hexdigest()
        if manifest.calibration != f"sha256:{digest}":
            raise reader.error("calibration", f"is of another {CALIBRATION}")
    return manifest


def _bytes(inventory: Inventory) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for info, parsed in inventory.weights():
        dtypes = found.setdefault(parsed.role if parsed else "unknown", {})
        for part in inventory.storage[info.name].parts:
            dtypes[part.dtype] = dtypes.get(part.dtype, 0) + part.nbytes
    return found


def _calibration(path: Path, inventory: Inventory) -> Calibration | None:
    table, reader = json_table(path), Reader(str(path), "json")
    if table is None:
        return None
    read = reader.read(_Calibration, table)
    for part, layers in read.kv.items():
        _require_layers(layers, f"kv.{part}", inventory, reader)
    weights = []
    for name, entry in read.tensors.items():
        if name not in inventory.tensors:
            raise reader.error(
                f"tensors.{name}", "is in no shard: the file is of another checkpoint"
            )
        numel, parsed = inventory.tensors[name].numel, inventory.names[name]
        if entry.numel != numel:
            raise reader.error(f"tensors.{name}.numel", f"is not the {numel} of the shard")
        weights.append(
            Rounding(
                name=name,
                role=parsed.role if parsed else "unknown",
                layer=parsed.layer if parsed else None,
                method=entry.method,
                why=entry.why,
                tokens=entry.tokens,
                error_nearest=entry.error_nearest if entry.tokens else None,
                error=entry.error if entry.tokens else None,
                moved=entry.moved,
                far=entry.far,
                numel=numel,
            )
        )
    return Calibration(
        tool=read.tool,
        method=read.method,
        scale_format=read.scale_fmt,
        data=read.data,
        tokens=read.tokens,
        device=read.device,
        threads=read.threads,
        versions=read.versions,
        weights=weights,
        cache_amax=read.kv,
    )


def _require_layers(layers: Iterable[int], key: str, inventory: Inventory, reader: Reader) -> None:
    """Raise DstoolsError for a layer that the model does not have."""
    count = inventory.model.num_hidden_layers + inventory.model.num_mtp_layers
    for layer in layers:
        if layer >= count:
            raise reader.error(key, f"{layer} is none of the model's {count} layers")


def _expert_load(path: Path, inventory: Inventory) -> ExpertLoad | None:
    table, reader, moe = json_table(path), Reader(str(path), "json"), inventory.model.moe
    if table is None:
        return None
    load = reader.read(ExpertLoad, table)
    _require_layers(load.layers, "layers", inventory, reader)
    experts = moe.n_routed_experts if moe else 0
    for layer, tokens in load.layers.items():
        if len(tokens) != experts or not experts:
            message = f"has {len(tokens)} experts; the model has {experts}"
            raise reader.error(f"layers.{layer}", message)
    return replace(load, layers=dict(sorted(load.layers.items())))


def _evaluation(path: Path, inventory: Inventory) -> Evaluation | None:
    table, reader = json_table(path), Reader(str(path), "json")
    if table is None:
        return None
    flips = table.get("router_flips")
    if type(flips) is dict:  # null: not measured
        measured = {layer: share for layer, share in flips.items() if share is not None}
        table = table | {"router_flips": measured}
    read = reader.read(Evaluation, table)
    _require_layers(read.router_flips, "router_flips", inventory, reader)
    for number, entry in enumerate(read.output_error):
        _require_layers([entry.layer], f"output_error[{number}].layer", inventory, reader)
    if read.kl_histogram is not None:
        _check_histogram(read.kl_histogram, read.tokens, reader)
    return replace(read, router_flips=dict(sorted(read.router_flips.items())))


def _check_histogram(histogram: Histogram, tokens: int, reader: Reader) -> None:
    edges, counts = histogram.edges, histogram.counts
    if any(low * 1.001 >= high for low, high in pairwise(edges)):
        raise reader.error("kl_histogram.edges", "do not rise")
    if not 2 <= len(edges) <= MAX_BINS or len(edges) != len(counts) + 1:
        raise reader.error("kl_histogram.counts", f"are {len(counts)} for {len(edges)} edges")
    if sum(counts) != tokens:
        message = f"are of {sum(counts)} tokens, not of the {tokens} evaluated"
        raise reader.error("kl_histogram.counts", message)
