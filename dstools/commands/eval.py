"""The command `dstools eval`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstools import __version__
from dstools.options import (
    FELL_SHORT,
    Command,
    hint_command,
    json_option,
    option,
    path_argument,
    progress_bar,
    show,
    terminal,
    workers_option,
)
from dstools.text import TextOptions, read_text, require_torch, text_options
from dstools_converters.errors import DstoolsError
from dstools_converters.files import real

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dstools_converters.checkpoint.inventory import Inventory
    from dstools_converters.layerwise.corpus import Corpus
    from dstools_converters.sidefiles.evaluation import (
        Activations,
        Evaluation,
        Figures,
        OutputError,
    )

EXAMPLES = """\
dstools eval ./DeepSeek-V3-fp8 --data held-out.jsonl --against ./DeepSeek-V3-bf16
dstools eval ./DeepSeek-V3-fp8 --data held-out.jsonl --against ./DeepSeek-V3-bf16 --max-kl 0.05"""
WORST = 5  # layers
_ACTIVATIONS = {
    "fp8": "fp8: the inputs of FP8 weights are rounded, as engines do",
    "none": "none: weights alone, no input is rounded",
}


@click.command(
    "eval",
    cls=Command,
    epilog=EXAMPLES,
    short_help="Measure perplexity, and KL against the source.",
)
@path_argument("model", metavar="MODEL", help="A folder, or org/name[@revision] in the Hub cache.")
@option(
    "--data",
    section="Evaluation",
    metavar="DATA",
    type=click.Path(path_type=Path),
    required=True,
    help='Predict this text, held out from calibration: JSONL or Parquet with "text" or '
    '"messages", or plain text; .gz too.',
)
@option(
    "--against",
    section="Evaluation",
    metavar="SRC",
    help="Compare MODEL with this checkpoint, the source it was made from.",
)
@option(
    "--activations",
    section="Evaluation",
    type=click.Choice(["fp8", "none"]),
    help="Choose the figures that come first and that --max-kl judges: fp8, with the inputs of FP8 "
    "weights rounded as engines do (the default for FP8), or none, of the weights alone.",
)
@text_options("Evaluation")
@option(
    "--max-kl",
    section="Checks",
    metavar="NATS",
    type=click.FloatRange(min=0),
    help="Exit with 3 if the mean KL divergence with --activations is larger; needs --against.",
)
@workers_option
@json_option
def evaluate(
    model: str,
    data: Path,
    against: str | None,
    activations: "Activations | None",
    text: TextOptions,
    max_kl: float | None,
    workers: int,
    as_json: bool,
) -> None:
    """Measure perplexity of MODEL on a text, and KL divergence and expert choices against SRC.

    Both run one layer at a time from disk in float32, so any size fits. With FP8 weights, MODEL
    runs with and without FP8 activations, and both figures are printed; SRC runs without. MTP
    layers do not run. Hidden states beyond --ram are spilled to TMPDIR. The result is saved as
    MODEL/eval.json if dstools made the folder; a result of other data or another SRC that it
    replaces is named first.
    """
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from dstools.source import open_source
    from dstools_converters.checkpoint.inventory import require_sound

    if max_kl is not None and against is None:
        raise click.UsageError("--max-kl needs --against")
    require_torch(text.device)
    import torch

    from dstools_converters.layerwise import evaluate as evaluation

    torch.set_num_threads(workers)
    with ExitStack() as stack:
        inventories = [
            require_sound(stack.enter_context(open_source(place)))
            for place in (model, *([against] if against else []))
        ]
        evaluation.activations_of(inventories[0], activations)  # before any text is read
        corpus = read_text(data, inventories[0], text)
        _announce(inventories, corpus)
        spills = stack.enter_context(TemporaryDirectory(prefix="dstools-eval-"))
        progress = stack.enter_context(
            progress_bar(evaluation.total_bytes(*inventories), "evaluate")
        )
        report = evaluation.evaluate(
            inventories[0],
            inventories[1] if against else None,
            corpus,
            activations=activations,
            tool=f"dstools {__version__}",
            device=text.device,
            ram_bytes=text.ram_bytes,
            folder=Path(spills),
            progress=progress,
        )
    show(report, as_json, _text(report))
    _keep(report, inventories[0].checkpoint.folder)
    if max_kl is not None:
        _judge(report, max_kl)


def _judge(report: "Evaluation", max_kl: float) -> None:
    """Exit with 3 if the mean KL is larger, and say which one it is."""
    if not (report.kl_mean or 0.0) <= max_kl:
        mean = f"the mean KL{_which(report)} is {report.kl_mean:.3g} nats a token"
        click.echo(f"error: {mean}, more than {max_kl:g}", err=True)
        click.get_current_context().exit(FELL_SHORT)


def _announce(inventories: "list[Inventory]", corpus: "Corpus") -> None:
    """Say before the run which result of other inputs eval.json has, which the new one replaces."""
    from dstools_converters.layerwise.evaluate import label
    from dstools_converters.sidefiles.data import Data
    from dstools_converters.sidefiles.evaluation import EVAL, read_evaluation

    folder = inventories[0].checkpoint.folder
    if not (folder / EVAL).exists() or not _is_kept(folder):
        return
    against = label(inventories[1].checkpoint.folder) if inventories[1:] else None
    try:
        former = read_evaluation(folder, inventories[0])
    except DstoolsError:
        what = "which cannot be read"
    else:
        assert former is not None
        if (former.data, former.against) == (Data(**corpus.provenance), against):
            return
        reference = f" against {former.against}" if former.against else " without --against"
        of = f"{former.data.samples} samples of {former.data.seq_len}"
        what = f"of {former.data.name}, {of},{reference}"
    text = f"note: {folder / EVAL}, {what}, will be replaced; copy it now to keep it"
    click.echo(terminal(text), err=True)


def _is_kept(folder: Path) -> bool:
    """Return whether eval.json is written: dstools made the folder, outside of a Hub cache."""
    from dstools_converters.sidefiles.manifest import read_manifest

    return real(folder).parent.name != "snapshots" and bool(read_manifest(folder))


def _keep(report: "Evaluation", folder: Path) -> None:
    """Write eval.json into a folder that dstools made, a Hub cache's excepted, and say so."""
    from dstools_converters.sidefiles.evaluation import write_evaluation

    if not _is_kept(folder):
        return
    click.echo(terminal(f"wrote {write_evaluation(report, folder)}"), err=True)
    hint_command("report", str(folder))


def _which(report: "Evaluation") -> str:
    """Return which of two figures the main ones of `report` are; "" where there is one."""
    if report.other_activations is None:
        return ""
    return " with FP8 activations" if report.activations == "fp8" else " of the weights alone"


def _text(report: "Evaluation") -> str:
    data = report.data
    is_compared = report.against is not None
    against = f" against {report.against}" if is_compared else ""
    reference = f", of the reference {report.perplexity_against:.6g}" if is_compared else ""
    lines = [
        f"model             {report.model}{against}",
        f"data              {data.name}: {data.samples} samples of {data.seq_len}, "
        f"{report.tokens:,} tokens predicted",
        *([f"activations       {_ACTIVATIONS[report.activations]}"] if _which(report) else []),
        f"perplexity        {report.perplexity:.6g}{reference}",
    ]
    if is_compared:
        lines += [
            f"KL                {_kl(report)}",
            f"top-1 agreement   {report.top1_agreement:.3%}",
        ]
    if report.router_flips:
        layer, worst = max(report.router_flips.items(), key=lambda item: item[1])
        mean = sum(report.router_flips.values()) / len(report.router_flips)
        lines.append(f"router flips      {mean:.3%} of choices; {worst:.3%} in layer {layer}")
    other = report.other_activations
    if other is not None:
        lines.append(f"activations       {_ACTIVATIONS[other.activations]}")
        lines.append(f"  perplexity      {other.perplexity:.6g}")
        if is_compared:
            lines.append(f"  KL              {_kl(other)}")
            lines.append(f"  top-1 agreement {other.top1_agreement:.3%}")
    return "\n".join([*lines, *(_errors(report.output_error) if is_compared else [])])


def _kl(figures: "Figures") -> str:
    return (
        f"{figures.kl_mean:.4g} nats a token; 99 % below {figures.kl_p99:.4g}, "
        f"largest {figures.kl_max:.4g}"
    )


def _errors(errors: "Iterable[OutputError]") -> list[str]:
    """Return a line a role, its mean over the layers and its worst one, then the worst layers."""
    by_role: dict[str, list[OutputError]] = {}
    by_layer: dict[str, list[OutputError]] = {}
    for error in errors:
        by_role.setdefault(error.role, []).append(error)
        by_layer.setdefault(f"layer {error.layer}", []).append(error)
    lines = []
    for title, groups, shown in (
        ("output error by role", by_role, len(by_role)),
        ("worst layers", by_layer, WORST),
    ):
        lines.append(f"  {'mean':>9} {'worst':>9}  {title}")
        means = {name: sum(e.error for e in group) / len(group) for name, group in groups.items()}
        for what in sorted(means, key=lambda what: -means[what])[:shown]:
            worst = max(groups[what], key=lambda error: error.error)
            where = worst.role if groups is by_layer else f"layer {worst.layer}"
            lines.append(f"  {means[what]:>9.4%} {worst.error:>9.4%}  {what} ({where})")
    return lines
