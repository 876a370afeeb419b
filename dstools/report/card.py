"""The report as Markdown, for a model card: tables, plots, and what was not measured."""

from collections.abc import Iterator, Mapping

from dstools.report.drawings import ERROR, ERROR_CALIBRATION, FLIPS, KL, LOAD, Plot
from dstools.report.figures import Figures
from dstools.report.numbers import fixed, percent_or_none
from dstools.report.sheet import Sheet
from dstools_converters.errors import size
from dstools_converters.markdown import table, text
from dstools_converters.sidefiles.data import Data

Plots = Mapping[str, Plot]


def card(sheet: Sheet, figures: Figures, plots: Plots) -> str:
    """Return the Markdown, with headings of the second level and below, showing files `plots`."""
    model = sheet.model
    headlines = [(h.label, h.value or "not measured", h.note) for h in figures.headlines]
    parts = [
        f"## Quantization of {text(model.folder)}",
        f"{text(model.model_type)}, quantization: {text(model.quantization)}.",
        table(("Figure", "Value", ""), headlines),
        *not_measured(figures),
        *measured(figures, plots),
        "### Bytes",
        _bytes(sheet),
        "### How it was made",
        provenance(sheet),
    ]
    return "\n\n".join(parts) + "\n"


def not_measured(figures: Figures) -> list[str]:
    """Return what was not measured, with the command that measures it."""
    lines = [
        f"- {text(what)}" + (f": `{command}`" if command else "")
        for what, command in figures.missing
    ]
    return ["Not measured:", "\n".join(lines)] if lines else []


def measured(figures: Figures, plots: Plots) -> list[str]:
    """Return a section of the third level for each kind of figure that there is, with its plots.

    plots: by the name of their file, those that a reader of the Markdown has.
    """
    against = [*_images(plots, KL, FLIPS)]
    return [
        *(["### Output against the reference", *against] if against else []),
        *_errors(figures),
        *_images(plots, ERROR, ERROR_CALIBRATION),
        *_rounding(figures),
        *_expert_load(figures),
        *_images(plots, LOAD),
    ]


def _images(plots: Plots, *names: str) -> Iterator[str]:
    for name in names:
        if name in plots:
            yield f"![{plots[name].title}]({name})"
            yield plots[name].caption


def _errors(figures: Figures) -> list[str]:
    if not figures.by_role:
        return []
    head = ("Role", "Weights", "Nearest, calibration", "Stored, calibration", "Stored, evaluation")
    rows = [
        (
            error.role,
            f"{error.weights:,}",
            percent_or_none(error.nearest),
            percent_or_none(error.chosen),
            percent_or_none(error.held_out),
        )
        for error in figures.by_role
    ]
    return [
        "### Output error by role",
        "Root mean square of (W - Q) x over that of W x, pooled over the weights of a role by "
        "their number of elements.",
        table(head, rows, numeric=4),
    ]


def _rounding(figures: Figures) -> list[str]:
    parts = []
    if figures.methods:
        head = ("Method", "Weights", "Of all weights", "Of all elements")
        rows = [
            (m.name, f"{m.weights:,}", fixed(m.share), fixed(m.share_numel))
            for m in figures.methods
        ]
        parts += ["### Rounding", table(head, rows, numeric=3)]
    reasons = [(r.method, r.why, f"{r.weights:,}") for r in figures.reasons]
    if figures.other_reasons:
        reasons.append(("", "other reasons", f"{figures.other_reasons:,}"))
    if reasons:
        parts.append(table(("Method", "Reason (numbers: one example's)", "Weights"), reasons, 1))
    return parts


def _expert_load(figures: Figures) -> list[str]:
    if not figures.load:
        return []
    uneven = max(figures.load, key=lambda layer: layer.largest)
    unused = sum(layer.unused for layer in figures.load)
    experts = sum(layer.experts for layer in figures.load)
    return [
        "### Expert load",
        f"Largest load over the layer's mean: {uneven.largest:.2f} (layer {uneven.layer}, expert "
        f"{uneven.largest_expert}). Experts that no token chose: {unused:,} of {experts:,}.",
    ]


def _bytes(sheet: Sheet) -> str:
    by_dtype: dict[str, int] = {}
    for dtypes in sheet.bytes.values():
        for dtype, nbytes in dtypes.items():
            by_dtype[dtype] = by_dtype.get(dtype, 0) + nbytes
    ordered = sorted(by_dtype.items(), key=lambda pair: -pair[1])
    return table(("Dtype", "Size"), [(dtype, size(nbytes)) for dtype, nbytes in ordered], numeric=1)


def provenance(sheet: Sheet) -> str:
    """Return a table of what wrote, calibrated and evaluated the folder, on which data."""
    calibration, evaluation = sheet.calibration, sheet.evaluation
    rows = [("Written by", sheet.tool or "unknown: there is no manifest.json of dstools")]
    if calibration is not None:
        versions = ", ".join(f"{name} {version}" for name, version in calibration.versions.items())
        rows += [
            ("Calibrated by", f"{calibration.tool}, {calibration.method}, {versions}"),
            ("Scales", calibration.scale_fmt),
            ("Calibration data", _data(calibration.data)),
        ]
    if evaluation is not None:
        rows += [
            ("Evaluated by", evaluation.tool),
            ("Evaluated against", evaluation.against or "no reference"),
            ("Evaluation data", _data(evaluation.data)),
        ]
    return table(("Provenance", ""), rows)


def _data(data: Data) -> str:
    return (
        f"{data.name}, {data.samples:,} samples of {data.seq_len:,} tokens, seed {data.seed}, "
        f"SHA-256 {data.sha256}"
    )
