"""The sections of the HTML page that show measured figures."""

from itertools import pairwise

from dstools.report.figures import Figures, by_model
from dstools.report.numbers import NONE, TIMES, fixed, number, percent, percent_or_none
from dstools.report.plots import heat_map, histogram, layer_bars, load_map
from dstools.report.sheet import Sheet
from dstools.report.tables import bar, details, figure, section, table
from dstools_converters.sidefiles.evaluation import LABELS, Evaluation, Histogram
from dstools_converters.sidefiles.evaluation import Figures as PredictionFigures
from dstools_converters.sidefiles.expert_load import ExpertLoad
from dstools_converters.svg import text

POOLED = "Weights of one role are pooled: root mean square, weighted by their number of elements."
TOGETHER = "Of the weights of one role in a layer together, each expert on the tokens it was sent."


def evaluation_section(evaluation: Evaluation) -> str:
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
    if evaluation.kl_histogram is not None:
        marks = {"mean": evaluation.kl_mean or 0.0, "99th percentile": evaluation.kl_p99 or 0.0}
        parts.append(_kl_histogram(evaluation.kl_histogram, marks))
    if evaluation.router_flips:
        flips = evaluation.router_flips
        svg = layer_bars("flips", "Router flips by layer", flips, "choices that changed")
        caption = (
            "Share of the router's top-k choices that differ from those of the reference, over all "
            "tokens."
        )
        rows_flips = [(str(layer), percent(share)) for layer, share in flips.items()]
        parts.append(figure("Router flips by layer", svg, caption))
        parts.append(details("As a table", table(("Layer", "Flips"), rows_flips, (0, 1))))
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


def _kl_histogram(bins: Histogram, marks: dict[str, float]) -> str:
    caption = (
        "KL(reference ‖ quantized) of the distribution of the next token, one value per token. "
        "Bins are of equal width in the logarithm; the first and last hold all values beyond."
    )
    svg = histogram("kl", "Histogram of the KL divergence by token", bins, marks)
    rows = [
        (f"{low:.3g}", f"{high:.3g}", f"{count:,}")
        for (low, high), count in zip(pairwise(bins.edges), bins.counts, strict=True)
    ]
    folded = details("As a table", table(("From, nats", "To, nats", "Tokens"), rows, (0, 1, 2)))
    return figure("KL divergence by token", svg, caption) + folded


def errors_section(sheet: Sheet, figures: Figures) -> str:
    """Return maps of the output errors by role and layer, their means by role, and the largest."""
    definition = (
        "<p>The relative output error of a weight is the root mean square of (W \u2212 Q) x over "
        "that of W x, where x are the inputs it gets from the data named, and Q is what is stored."
        "</p>"
    )
    parts = [definition, *_error_maps(sheet, figures), _errors_by_role(figures)]
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


def _error_maps(sheet: Sheet, figures: Figures) -> list[str]:
    """Return a heat map and a table for each kind of data that the errors were measured on."""
    parts = []
    mtp = f" Layers from {sheet.layers} on are MTP." if sheet.model.layers_mtp else ""
    both = (*figures.cells, *figures.cells_held_out)
    columns = 1 + max((layer for _, layer in both), default=0)
    for name, data, cells, pooled in (
        ("held-out", "evaluation data", figures.cells_held_out, TOGETHER),
        ("calibrated", "calibration data", figures.cells, POOLED),
    ):
        if not cells:
            continue
        heading = f"Output error by role and layer, {data}"
        roles = by_model(role for role, _ in cells)
        svg, legend = heat_map(name, heading, cells, roles, columns)
        caption = f"Per cent; colours on a logarithmic scale. {pooled}{mtp} Blank: not measured."
        rows = [(role, str(layer), percent(error)) for (role, layer), error in cells.items()]
        parts += [
            figure(heading, svg, caption, legend),
            details("As a table", table(("Role", "Layer", "Error"), rows, (1, 2))),
        ]
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


def load_section(load: ExpertLoad, figures: Figures) -> str:
    """Return a map of the load of experts, and its extremes by layer."""
    heading = "Tokens of each expert, by layer"
    svg, legend = load_map("load", heading, load.layers)
    caption = (
        "Tokens that the router sent to each expert, as a multiple of the mean of its layer's "
        f"experts; at the right, the largest multiple. {load.tokens:,} tokens, each to "
        f"{load.num_experts_per_tok} experts."
    )
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
    folded = details("As a table", table(head, rows, range(5), "Largest and smallest over mean."))
    return section("Expert load", figure(heading, svg, caption, legend), folded)
