"""The sections of the HTML page that show measured figures."""

from collections.abc import Mapping
from itertools import pairwise

from dstools.report.drawings import ERROR, ERROR_CALIBRATION, FLIPS, KL, LOAD, POOLED, Plot, inline
from dstools.report.figures import Figures
from dstools.report.numbers import NONE, TIMES, fixed, number, percent, percent_or_none
from dstools.report.tables import bar, details, figure, section, table
from dstools_converters.sidefiles.evaluation import LABELS, Evaluation
from dstools_converters.sidefiles.evaluation import Figures as PredictionFigures
from dstools_converters.svg import text

Plots = Mapping[str, Plot]
TABLE = "As a table"


def evaluation_section(evaluation: Evaluation, plots: Plots) -> str:
    """Return the figures of eval.json about the whole model."""
    other = evaluation.other_activations
    rows = _predictions(evaluation, f", {LABELS[evaluation.activations]}" if other else "")
    if evaluation.perplexity_against is not None:
        reference = number(evaluation.perplexity_against, 5)
        rows.insert(1, ("Perplexity of the reference", reference, "on the same tokens"))
    if other is not None:
        rows += _predictions(other, f", {LABELS[other.activations]}")
    rounding = (
        "FP8 activations: the inputs of FP8 weights are rounded, as engines do. Charts show: "
        f"{LABELS[evaluation.activations]}."
        if other is not None
        else "No activations are rounded."
    )
    parts = [
        f"<p>{text(evaluation.model)} against {text(evaluation.against or 'no reference')}, "
        f"{evaluation.tokens:,} tokens of {text(evaluation.data.name)}. {rounding}</p>",
        table(("Figure", "Value", ""), rows, numeric=(1,)),
    ]
    if KL in plots and evaluation.kl_histogram is not None:
        bins = evaluation.kl_histogram
        rows_kl = [
            (f"{low:.3g}", f"{high:.3g}", f"{count:,}")
            for (low, high), count in zip(pairwise(bins.edges), bins.counts, strict=True)
        ]
        head = ("From, nats", "To, nats", "Tokens")
        parts += [_shown(KL, plots), details(TABLE, table(head, rows_kl, (0, 1, 2)))]
    if FLIPS in plots:
        flips = evaluation.router_flips
        rows_flips = [(str(layer), percent(share)) for layer, share in flips.items()]
        folded = details(TABLE, table(("Layer", "Flips"), rows_flips, (0, 1)))
        parts += [_shown(FLIPS, plots), folded]
    return section("Output against the reference", *parts)


def _predictions(figures: PredictionFigures, which: str) -> list[tuple[str, str, str]]:
    """Return the rows of one choice of activations, which their labels name."""
    rows = [(f"Perplexity{which}", number(figures.perplexity, 5), "exp of the mean cross-entropy")]
    kl = {"mean": figures.kl_mean, "99th percentile": figures.kl_p99, "largest": figures.kl_max}
    for name, value in kl.items():
        if value is not None:
            rows.append((f"KL divergence{which}, {name}", number(value), "nats a token"))
    if figures.top1_agreement is not None:
        share = percent(figures.top1_agreement, 4)
        what = "of positions where both rank the same token first"
        rows.append((f"Top-1 agreement{which}", share, what))
    return rows


def _shown(name: str, plots: Plots) -> str:
    plot = plots[name]
    return figure(plot.title, inline(name, plot), plot.caption, plot.drawing.legend)


def errors_section(figures: Figures, plots: Plots) -> str:
    """Return maps of the output errors by role and layer, their means by role, and the largest."""
    definition = (
        "<p>The relative output error of a weight is the root mean square of (W \u2212 Q) x over "
        "that of W x, where x are the inputs it gets from the data named, and Q is what is stored."
        "</p>"
    )
    parts = [definition, *_error_maps(figures, plots), _errors_by_role(figures)]
    worst = [
        (
            weight.name,
            weight.note.method,
            f"{weight.note.tokens:,}",
            percent_or_none(weight.note.error_nearest),
            percent_or_none(weight.note.error),
        )
        for weight in figures.worst
    ]
    if worst:
        head = ("Weight", "Method", "Tokens", "If nearest", "As stored")
        summary = f"The {len(worst)} weights with the largest error on the calibration data"
        parts.append(details(summary, table(head, worst, (2, 3, 4))))
    return section("Where the error is", *parts)


def _error_maps(figures: Figures, plots: Plots) -> list[str]:
    """Return a heat map and a table for each kind of data that the errors were measured on."""
    parts = []
    for name, cells in ((ERROR, figures.cells_held_out), (ERROR_CALIBRATION, figures.cells)):
        if name in plots:
            rows = [(role, str(layer), percent(error)) for (role, layer), error in cells.items()]
            folded = details(TABLE, table(("Role", "Layer", "Error"), rows, (1, 2)))
            parts += [_shown(name, plots), folded]
    return parts


def _errors_by_role(figures: Figures) -> str:
    rows = [
        (
            error.role,
            f"{error.weights:,}" if error.weights else NONE,
            percent_or_none(error.nearest),
            percent_or_none(error.chosen),
            f"{number(error.chosen / error.nearest)} {TIMES}"
            if error.chosen and error.nearest
            else NONE,
            percent_or_none(error.held_out),
        )
        for error in figures.by_role
    ]
    head = ("Role", "Weights", "If nearest", "As stored", "Ratio", "Evaluation data")
    caption = (
        "On the calibration data if rounded to nearest, and as stored; on the evaluation data, as "
        f"stored. {POOLED} {NONE}: not measured."
    )
    return "<h3>Output error by role</h3>" + table(head, rows, (1, 2, 3, 4, 5), caption)


def methods_section(figures: Figures) -> str:
    """Return the methods by which weights were rounded, and the reasons for fallbacks."""
    rows = [
        (m.name, f"{m.weights:,}", fixed(m.share), fixed(m.share_numel)) for m in figures.methods
    ]
    bars = [bar([(m.name, m.share)]) for m in figures.methods]
    caption = "nearest is plain rounding; lossless recovers the codes and scales a weight once had."
    head = ("Method", "Weights", "Of all weights", "Of all elements")
    parts = [table(head, rows, (1, 2, 3), caption, bars)]
    if figures.moved is not None and figures.far is not None:
        parts.append(
            f"<p>{percent(figures.moved)} of the codes are not the nearest to their weight, and "
            f"{percent(figures.far)} are more than one step away from it.</p>"
        )
    reasons = [(r.method, r.why, f"{r.weights:,}", r.example) for r in figures.reasons]
    if figures.other_reasons:
        reasons.append(("", "other reasons", f"{figures.other_reasons:,}", ""))
    if reasons:
        head = ("Method", "Reason", "Weights", "For example")
        caption = (
            "Weights that were rounded by another method than the one requested. Numbers in a "
            "reason are the example's."
        )
        parts += ["<h3>Fallbacks</h3>", table(head, reasons, (2,), caption)]
    else:
        parts.append("<p>No weight fell back to another method than the one requested.</p>")
    return section("How the weights were rounded", *parts)


def load_section(figures: Figures, plots: Plots) -> str:
    """Return a map of the load of experts, and its extremes by layer."""
    rows = [
        (
            str(layer.layer),
            f"{layer.largest:.2f} {TIMES}",
            str(layer.largest_expert),
            f"{layer.smallest:.2f} {TIMES}",
            str(layer.unused),
        )
        for layer in figures.load
    ]
    head = ("Layer", "Largest", "Its expert", "Smallest", "Never chosen")
    folded = details(TABLE, table(head, rows, range(5), "Largest and smallest over mean."))
    return section("Expert load", _shown(LOAD, plots), folded)
