"""The report as one HTML page: no script, no network, and every text from a file escaped."""

from collections.abc import Mapping
from importlib.resources import files

from dstools.report.drawings import LOAD, PLOT_STYLE, Plot
from dstools.report.figures import Figures
from dstools.report.numbers import fixed, number, percent
from dstools.report.plots import Swatch
from dstools.report.sections import (
    errors_section,
    evaluation_section,
    load_section,
    methods_section,
)
from dstools.report.sheet import Sheet
from dstools.report.tables import bar, section, swatches, table
from dstools_converters.errors import counted, size
from dstools_converters.sidefiles.data import Data
from dstools_converters.svg import text

SMALL_ROLE = 0.001  # of all bytes; smaller roles share one line
DTYPE_CLASSES = {"F8_E4M3": "fp8", "BF16": "bf16", "F32": "f32"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser fetches nothing, runs nothing


def page(sheet: Sheet, figures: Figures, plots: Mapping[str, Plot]) -> str:
    """Return the whole page."""
    model = sheet.model
    name = text(model.folder)
    counts = (
        f"{model.parameters / 1e9:,.4g} B parameters, {counted(model.tensors, 'tensor')}, "
        f"{counted(model.shards, 'shard')}."
    )
    sections = [_tiles(figures), _missing(figures)]
    if sheet.evaluation is not None:
        sections.append(evaluation_section(sheet.evaluation, plots))
    if figures.by_role:
        sections.append(errors_section(figures, plots))
    if figures.methods:
        sections.append(methods_section(figures))
    if LOAD in plots:
        sections.append(load_section(figures, plots))
    sections += [_bytes(sheet), _provenance(sheet, figures)]
    style = PLOT_STYLE + files("dstools.report").joinpath("page.css").read_text()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{name}: quality of the quantization</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{name}</h1>
<p class="soft">{text(model.model_type)}, quantization: {text(model.quantization)}. {counts}</p>
</header>
<main>
{"".join(sections)}</main>
<footer>
<p>Made by <code>dstools report</code> from the files in the folder. No figure is estimated.</p>
</footer>
</body>
</html>
"""


def _tiles(figures: Figures) -> str:
    tiles = []
    for _, label, _, value, note in figures.headlines:
        css = "value" if value else "none"
        tiles.append(
            f'<div><dt>{text(label)}</dt><dd class="{css}">{text(value or "not measured")}</dd>'
            f'<dd class="note">{text(note)}</dd></div>\n'
        )
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n'


def _missing(figures: Figures) -> str:
    items = []
    for what, command in figures.missing:
        how = f": <code>{text(command)}</code>" if command else ""
        items.append(f"<li>{text(what)}{how}</li>")
    if not items:
        return ""
    return f'<div class="notice"><p>Not measured</p><ul>{"".join(items)}</ul></div>\n'


def _bytes(sheet: Sheet) -> str:
    total = max(sum(sum(dtypes.values()) for dtypes in sheet.bytes.values()), 1)
    shown: dict[str, dict[str, int]] = {}
    rest: dict[str, int] = {}
    small = 0
    for role, dtypes in sorted(sheet.bytes.items(), key=lambda pair: -sum(pair[1].values())):
        is_small = sum(dtypes.values()) < SMALL_ROLE * total
        small += is_small
        into = rest if is_small else shown.setdefault(role, {})
        for dtype, nbytes in dtypes.items():
            into[dtype] = into.get(dtype, 0) + nbytes
    if small:
        shown[f"{small} roles under {percent(SMALL_ROLE, 1)}"] = rest
    widest = max((sum(dtypes.values()) for dtypes in shown.values()), default=0) or 1
    rows, bars = [], []
    by_dtype: dict[str, int] = {}
    for role, dtypes in shown.items():
        nbytes = sum(dtypes.values())
        rows.append((role, size(nbytes), fixed(nbytes / total)))
        ordered = sorted(dtypes.items(), key=lambda pair: -pair[1])
        bars.append(bar((DTYPE_CLASSES.get(d, "rest"), part / widest) for d, part in ordered))
        for dtype, part in ordered:
            by_dtype[dtype] = by_dtype.get(dtype, 0) + part
    legend = swatches(
        Swatch(DTYPE_CLASSES.get(dtype, "rest"), f"{dtype} {size(part)}, {fixed(part / total)}")
        for dtype, part in sorted(by_dtype.items(), key=lambda pair: -pair[1])
    )
    caption = (
        f"Bytes in the shards by role, {size(total)} in all; scales count for their weight's role."
    )
    return section("Bytes", table(("Role", "Size", "Share"), rows, (1, 2), caption, bars), legend)


def _provenance(sheet: Sheet, figures: Figures) -> str:
    calibration, evaluation = sheet.calibration, sheet.evaluation
    rows = [("Written by", sheet.tool or "unknown: there is no manifest.json of dstools")]
    rows += [(f"Tensors, {rule}", f"{count:,}") for rule, count in sheet.rules.items()]
    if calibration is not None:
        versions = ", ".join(f"{name} {version}" for name, version in calibration.versions.items())
        device = " ".join(filter(None, (calibration.device, calibration.cpu)))
        where = f"{device}, {calibration.threads} threads, {versions}"
        rows += [
            ("Calibrated by", f"{calibration.tool}, {calibration.method}, {where}"),
            ("Scales", calibration.scale_fmt),
            *_data("Calibration", calibration.data),
        ]
    if evaluation is not None:
        rows += [("Evaluated by", evaluation.tool), *_data("Evaluation", evaluation.data)]
    parts = [table(("", ""), rows)]
    if figures.cache:
        lines = [
            (amax.part, number(amax.largest), str(amax.layer), str(amax.beyond))
            for amax in figures.cache
        ]
        caption = (
            "Largest absolute values that the KV cache held while calibrating; E4M3 ends at 448."
        )
        head = ("Part of the cache", "Largest", "In layer", "Layers over 448")
        parts += ["<h3>KV cache</h3>", table(head, lines, (1, 2, 3), caption)]
    return section("How it was made", *parts)


def _data(what: str, data: Data) -> list[tuple[str, str]]:
    cut = f"{data.samples:,} samples of {data.seq_len:,} tokens from {data.documents:,} documents"
    return [(f"{what} data", f"{data.name}: {cut}, seed {data.seed}"), ("Its SHA-256", data.sha256)]
