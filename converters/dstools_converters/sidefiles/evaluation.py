"""eval.json: how well a checkpoint predicts a text, and how far it is from a reference."""

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.families.names import Role
from dstools_converters.files import replace_file, to_json
from dstools_converters.sidefiles.data import Data, require_layers
from dstools_converters.tables import Amount, Range, Reader, Share, json_table

EVAL = "eval.json"
MAX_BINS = 1000
SomeFigures = TypeVar("SomeFigures", bound="Figures")
Divergence = Annotated[float, Range(-1e100, 1e100)]  # rounding may leave a KL of 0 below it
Perplexity = Annotated[float, Range()]  # of a broken model, near the largest float
# fp8   each input of an FP8 weight is rounded as engines do it, see layerwise/activations.py
# none  no input is: what the rounding of weights alone changes
Activations = Literal["fp8", "none"]
LABELS: dict[Activations, str] = {"fp8": "FP8 activations", "none": "weights alone"}


@dataclass(frozen=True)
class OutputError:
    """How far the outputs of a role's weights in a layer are off, on the reference's inputs."""

    layer: int
    role: Role
    error: Amount  # rms of x (W' - W)^T over rms of x W^T; experts on the tokens they were sent
    numel: int  # of those weights


@dataclass(frozen=True)
class Histogram:
    """counts[i] tokens have a KL from edges[i] to edges[i + 1]; the end bins hold all beyond."""

    edges: tuple[Amount, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How a model predicts a text; None or empty is what takes a reference."""

    activations: Activations = "none"  # older files do not say so
    perplexity: Perplexity
    kl_mean: Divergence | None = None  # KL(against || model), nats a token
    kl_p99: Divergence | None = None
    kl_max: Divergence | None = None
    top1_agreement: Share | None = None  # share of tokens where both find the same one likeliest
    kl_histogram: Histogram | None = None
    router_flips: dict[int, Share] = field(default_factory=dict)  # layer -> share of the choices


@dataclass(frozen=True)
class Evaluation(Figures):
    """The content of eval.json: the figures that were asked for, and what they are of.

    Activations of the reference are never rounded, nor are those of the output errors.
    """

    tool: str
    model: str
    against: str | None
    data: Data
    tokens: int  # predicted: all but the first of each sample
    perplexity_against: Perplexity | None = None
    output_error: tuple[OutputError, ...] = ()
    other_activations: Figures | None = None  # the same for the other choice; None: nothing is FP8


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write eval.json into `folder`, whole or not at all, and return its path."""
    path = folder / EVAL
    replace_file(path, to_json(asdict(evaluation)))
    return path


def read_evaluation(folder: Path, inventory: Inventory) -> Evaluation | None:
    """Return the content of eval.json, None where there is none.

    Raises DstoolsError where it is damaged, or names layers that the model lacks.
    """
    table, reader = json_table(folder / EVAL), Reader(str(folder / EVAL), "json")
    if table is None:
        return None
    flips = table.get("router_flips")
    if type(flips) is dict:  # null: not measured
        measured = {layer: share for layer, share in flips.items() if share is not None}
        table = table | {"router_flips": measured}
    evaluation = reader.read(Evaluation, table)
    for number, entry in enumerate(evaluation.output_error):
        require_layers([entry.layer], f"output_error[{number}].layer", inventory, reader)
    other = evaluation.other_activations
    if other is not None:
        if other.activations == evaluation.activations:
            raise reader.error("other_activations.activations", f"are {other.activations}, too")
        other = _checked(other, "other_activations.", evaluation.tokens, inventory, reader)
    checked = _checked(evaluation, "", evaluation.tokens, inventory, reader)
    return replace(checked, other_activations=other)


def _checked(
    figures: SomeFigures, key: str, tokens: int, inventory: Inventory, reader: Reader
) -> SomeFigures:
    """Return `figures` with their layers in order; raise DstoolsError where they cannot be."""
    require_layers(figures.router_flips, f"{key}router_flips", inventory, reader)
    if figures.kl_histogram is not None:
        _check_histogram(figures.kl_histogram, f"{key}kl_histogram", tokens, reader)
    return replace(figures, router_flips=dict(sorted(figures.router_flips.items())))


def _check_histogram(histogram: Histogram, key: str, tokens: int, reader: Reader) -> None:
    edges, counts = histogram.edges, histogram.counts
    if any(low * 1.001 >= high for low, high in pairwise(edges)):
        raise reader.error(f"{key}.edges", "do not rise")
    if not 2 <= len(edges) <= MAX_BINS or len(edges) != len(counts) + 1:
        raise reader.error(f"{key}.counts", f"are {len(counts)} for {len(edges)} edges")
    if sum(counts) != tokens:
        message = f"are of {sum(counts)} tokens, not of the {tokens} evaluated"
        raise reader.error(f"{key}.counts", message)
