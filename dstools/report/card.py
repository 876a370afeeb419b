"""The sheet as Markdown, for a model card: tables of what was measured, and what was not."""

from dstools.options import size
from dstools.report.figures import Figures
from dstools.report.numbers import fixed, percent_or_none
from dstools.report.sheet import Sheet
from dstools_converters.markdown import table, text
from dstools_converters.sidefiles.data import Data


def card(sheet: Sheet, found: Figures) -> str:
    """Return the Markdown, with headings of the second level and below."""
    model = sheet.model
    parts = [
        f"## Quantization of {text(model.folder)}",
        f"{text(model.model_type)}, quantization: {text(model.quantization)}.",
        table(
            ("Figure", "Value", ""),
            [(h.label, h.value or "not measured", h.note) for h in found.headlines],
        ),
    ]
    if found.missing:
        lines = [
            f"- {text(what)}" + (f": `{command}`" if command else "")
            for what, command in found.missing
        ]
        parts += ["Not measured:", "\n".join(lines)]
    if found.by_role:
        parts += [
            "### Output error by role",
            "Root mean square of (W - Q) x over that of W x, pooled over the weights of a role by their "
            "number of elements.",
            table(
                (
                    "Role",
                    "Weights",
                    "Nearest, calibration",
                    "Stored, calibration",
                    "Stored, evaluation",
                ),
                [
                    (
                        e.role,
                        f"{e.weights:,}",
                        percent_or_none(e.nearest),
                        percent_or_none(e.chosen),
                        percent_or_none(e.held_out),
                    )
                    for e in found.by_role
                ],
                numeric=4,
            ),
        ]
    if found.methods:
        parts += [
            "### Rounding",
            table(
                ("Method", "Weights", "Of all weights", "Of all elements"),
                [
                    (m.name, f"{m.weights:,}", fixed(m.share), fixed(m.share_numel))
                    for m in found.methods
                ],
                numeric=3,
            ),
        ]
    if found.reasons:
        reasons = [(r.method, r.why, f"{r.weights:,}") for r in found.reasons]
        if found.other_reasons:
            reasons.append(("", "other reasons", f"{found.other_reasons:,}"))
        parts.append(table(("Method", "Reason (numbers: one example's)", "Weights"), reasons, 1))
    if found.load:
        uneven = max(found.load, key=lambda layer: layer.largest)
        unused = sum(layer.unused for layer in found.load)
        parts += [
            "### Expert load",
            f"Largest load over the layer's mean: {uneven.largest:.2f} (layer {uneven.layer}, expert "
            f"{uneven.largest_expert}). Experts that no token chose: {unused:,}.",
        ]
    dtypes: dict[str, int] = {}
    for by_dtype in sheet.bytes.values():
        for dtype, nbytes in by_dtype.items():
            dtypes[dtype] = dtypes.get(dtype, 0) + nbytes
    rows = [(dtype, size(n)) for dtype, n in sorted(dtypes.items(), key=lambda pair: -pair[1])]
    parts += ["### Bytes", table(("Dtype", "Size"), rows, numeric=1)]
    parts += ["### How it was made", table(("", ""), _provenance(sheet))]
    return "\n\n".join(parts) + "\n"


def _provenance(sheet: Sheet) -> list[tuple[str, str]]:
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
    return rows


def _data(data: Data) -> str:
    return (
        f"{data.name}, {data.samples:,} samples of {data.seq_len:,} tokens, seed {data.seed}, "
        f"SHA-256 {data.sha256}"
    )
