"""The sections of the page that show what was measured."""

from itertools import pairwise

from dstools.report.figures import Figures, by_model
from dstools.report.numbers import NONE, TIMES, fixed, number, percent, percent_or_none
from dstools.report.plots import heat_map, histogram, layer_bars, load_map
from dstools.report.sheet import Sheet
from dstools.report.tables import bar, details, figure, section, table
from dstools_converters.sidefiles.evaluation import Evaluation, Histogram
from dstools_converters.sidefiles.expert_load import ExpertLoad
from dstools_converters.svg import text

POOLED = "Weights of one role are pooled: root mean square, weighted by their number of elements."
TOGETHER = "Of the weights of one role in a layer together, each expert on the tokens it was sent."


def evaluation_section(evaluation: Evaluation) -> str:
    """Show what eval.json says of the model as a whole."""
    rows = [("Perplexity", number(evaluation.perplexity, 5), "exp of the mean cross-entropy")]
    if evaluation.perplexity_against is not None:
        reference = number(evaluation.perplexity_against, 5)
        rows.append(("Perplexity of the reference", reference, "on the same tokens"))
    kl = {
        "mean": evaluation.kl_mean,
        "99th percentile": evaluation.kl_p99,
        "largest": evaluation.kl_max,
    }
    for name, value in kl.items():
        if value is not None:
            rows.append((f"KL divergence, {name}", number(value), "nats a token"))
    if evaluation.top1_agreement is not None:
        share = percent(evaluation.top1_agreement, 4)
        rows.append(("Top-1 agreement", share, "of positions where both rank the same token first"))
    parts = [
        f"<p>{text(evaluation.model)} against {text(evaluation.against or 'no reference')}, "
        f"{evaluation.tokens:,} tokens of {text(evaluation.data.name)}.</p>",
        table(("Figure", "Value", ""), rows, numeric=(1,)),
    ]
    if evaluation.kl_histogram is not None:
        marks = {name: kl[name] or 0.0 for name in ("mean", "99th percentile")}
        parts.append(_kl_histogram(evaluation.kl_histogram, marks))
    if evaluation.router_flips:
        flips = evaluation.router_flips
        svg = layer_bars("flips", "Router flips by layer", flips, "choices that changed")
        caption = (
            "Share of the router's top-k choices that are other experts than those of the reference, "
            "over all tokens."
        )
        rows_flips = [(str(layer), percent(share)) for layer, share in flips.items()]
        parts.append(figure("Router flips by layer", svg, caption))
        parts.append(details("As a table", table(("Layer", "Flips"), rows_flips, (0, 1))))
    return section("Output against the reference", *parts)


def _kl_histogram(found: Histogram, marks: dict[str, float]) -> str:
    caption = (
        "KL(reference ‖ quantized) of the distribution of the next token, one value a token; bins of equal "
        "width in the logarithm, the first and the last with all that lies beyond."
    )
    svg = histogram("kl", "Histogram of the KL divergence by token", found, marks)
    rows = [
        (f"{low:.3g}", f"{high:.3g}", f"{count:,}")
        for (low, high), count in zip(pairwise(found.edges), found.counts, strict=True)
    ]
    folded = details("As a table", table(("From, nats", "To, nats", "Tokens"), rows, (0, 1, 2)))
    return figure("KL divergence by token", svg, caption) + folded


def errors_section(sheet: Sheet, found: Figures) -> str:
    """Show the output errors: maps by role and layer, pooled by role, and the largest."""
    parts = [
        "<p>The relative output error of a weight is the root mean square of (W \u2212 Q) x over that of W x, "
        "where x are the inputs it gets from the data named, and Q is what is stored.</p>"
    ]
    mtp = f" Layers from {sheet.layers} on are MTP." if sheet.model.layers_mtp else ""
    both = (*found.cells, *found.cells_held_out)
    columns = 1 + max((layer for _, layer in both), default=0)
    for name, where, cells, pooled in (
        ("held-out", "evaluation data", found.cells_held_out, TOGETHER),
        ("calibrated", "calibration data", found.cells, POOLED),
    ):
        if cells:
            heading = f"Output error by role and layer, {where}"
            svg, legend = heat_map(
                name, heading, cells, by_model(role for role, _ in cells), columns
            )
            caption = (
                f"Per cent; colours on a logarithmic scale. {pooled}{mtp} Blank: not measured."
            )
            parts.append(figure(heading, svg, caption, legend))
            rows_cells = [
                (role, str(layer), percent(error)) for (role, layer), error in cells.items()
            ]
            parts.append(
                details("As a table", table(("Role", "Layer", "Error"), rows_cells, (1, 2)))
            )
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
        for error in found.by_role
    ]
    head = ("Role", "Weights", "If nearest", "As stored", "Ratio", "Evaluation data")
    caption = (
        "On the calibration data if rounded to nearest, and as stored; on the evaluation data, as stored. "
        f"{POOLED} {NONE}: not measured."
    )
    parts += ["<h3>Output error by role</h3>", table(head, rows, (1, 2, 3, 4, 5), caption)]
    worst = [
        (
            w.name,
            w.note.method,
            f"{w.note.tokens:,}",
            percent_or_none(w.note.error_nearest),
            percent_or_none(w.note.error),
        )
        for w in found.worst
    ]
    if worst:
        worst_head = ("Weight", "Method", "Tokens", "If nearest", "As stored")
        summary = f"The {len(worst)} weights with the largest error on the calibration data"
        parts.append(details(summary, table(worst_head, worst, (2, 3, 4))))
    return section("Where the error is", *parts)


def methods_section(found: Figures) -> str:
    """Show which weights were rounded how, and why not as asked for."""
    rows = [(m.name, f"{m.weights:,}", fixed(m.share), fixed(m.share_numel)) for m in found.methods]
    bars = [bar([(m.name, m.share)]) for m in found.methods]
    caption = "nearest is plain rounding; lossless gives a weight the codes and scales it once had."
    head = ("Method", "Weights", "Of all weights", "Of all elements")
    parts = [table(head, rows, (1, 2, 3), caption, bars)]
    if found.moved is not None and found.far is not None:
        parts.append(
            f"<p>{percent(found.moved)} of the codes are not the nearest to their weight, and "
            f"{percent(found.far)} lie more than one step away from it.</p>"
        )
    reasons = [(r.method, r.why, f"{r.weights:,}", r.example) for r in found.reasons]
    if found.other_reasons:
        reasons.append(("", "other reasons", f"{found.other_reasons:,}", ""))
    if reasons:
        head = ("Method", "Reason", "Weights", "For example")
        caption = "Weights that another method was used for than the one asked for. A number in a reason is the example's."
        parts += ["<h3>Fallbacks</h3>", table(head, reasons, (2,), caption)]
    else:
        parts.append("<p>No weight fell back to another method than the one asked for.</p>")
    return section("How the weights were rounded", *parts)


def load_section(load: ExpertLoad, found: Figures) -> str:
    """Show how evenly the router used the experts."""
    heading = "Tokens of each expert, by layer"
    svg, legend = load_map("load", heading, load.layers)
    caption = (
        "Tokens that the router sent to each expert, as a multiple of the mean of its layer's experts; at the "
        f"right, the largest multiple. {load.tokens:,} tokens, each to {load.num_experts_per_tok} experts."
    )
    rows = [
        (
            str(layer.layer),
            f"{layer.largest:.2f} {TIMES}",
            str(layer.largest_expert),
            f"{layer.smallest:.2f} {TIMES}",
            str(layer.unused),
        )
        for layer in found.load
    ]
    head = ("Layer", "Largest", "Its expert", "Smallest", "Never chosen")
    folded = details("As a table", table(head, rows, range(5), "Largest and smallest over mean."))
    return section("Expert load", figure(heading, svg, caption, legend), folded)
