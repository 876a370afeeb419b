"""The figures of a report: pooled by role, layer and method, and what was not measured.

Page and Markdown show these and compute none. Pooled errors are root mean squares over the weights
that were measured, weighted by their number of elements.
"""

import math
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from dstools.report.numbers import TIMES, number, percent
from dstools.report.sheet import Rounding, Sheet
from dstools_converters.errors import size
from dstools_converters.families.names import ROLES
from dstools_converters.sidefiles.calibration import METHODS
from dstools_converters.sidefiles.evaluation import LABELS, Evaluation
from dstools_kernels.fp8 import E4M3_MAX

Key = TypeVar("Key", bound=Hashable)

MAX_REASONS = 8
MAX_WORST = 10


class Headline(NamedTuple):
    """A figure of the whole model; `figure` is None and `value` empty if not measured."""

    key: str  # for programs
    label: str
    figure: float | None
    value: str  # the same with its unit
    note: str  # what it is compared to, or why it is missing


class ErrorByRole(NamedTuple):
    """The pooled output errors of the weights of a role; None if none was measured."""

    role: str
    weights: int  # in calibration.json
    nearest: float | None
    chosen: float | None
    held_out: float | None  # on the evaluation data


class Method(NamedTuple):
    """The weights that were rounded by one method."""

    name: str
    weights: int
    share: float  # of the weight matrices
    share_numel: float  # of their elements


class Reason(NamedTuple):
    """A reason why weights were rounded by another method than the one requested."""

    method: str
    why: str  # of the first; the numbers of others may differ
    weights: int
    example: str


class LayerLoad(NamedTuple):
    """The load of a layer's experts, as multiples of their mean."""

    layer: int
    largest: float
    smallest: float
    largest_expert: int
    unused: int  # experts that no token chose
    experts: int


class CacheAmax(NamedTuple):
    """The largest value of a part of the KV cache over the layers."""

    part: str
    largest: float
    layer: int
    beyond: int  # layers whose amax exceeds the range of unscaled E4M3


@dataclass(frozen=True)
class Figures:
    """The figures that page and Markdown show, besides the sheet itself."""

    headlines: list[Headline]
    by_role: list[ErrorByRole]
    cells: dict[tuple[str, int], float]  # role, layer -> error on the calibration data
    cells_held_out: dict[tuple[str, int], float]  # on the evaluation data
    worst: list[Rounding]
    methods: list[Method]
    moved: float | None  # share of codes that are not the nearest
    far: float | None
    reasons: list[Reason]
    other_reasons: int  # weights with any other reason
    load: list[LayerLoad]
    cache: list[CacheAmax]
    missing: list[tuple[str, str]]  # what was not measured, and the command that measures it


def figures(sheet: Sheet) -> Figures:
    """Return the figures of `sheet`; empty or None if it has no data for them."""
    weights = sheet.weights
    outputs = sheet.evaluation.output_error if sheet.evaluation else ()
    reasons = _reasons(weights)
    numel = sum(w.note.numel for w in weights)
    return Figures(
        headlines=_headlines(sheet),
        by_role=_by_role(sheet),
        cells=pool(
            ((w.role, w.layer), w.note.error, w.note.numel) for w in weights if w.layer is not None
        ),
        cells_held_out=pool(((o.role, o.layer), o.error, o.numel) for o in outputs),
        worst=sorted((w for w in weights if w.note.error), key=lambda w: -(w.note.error or 0))[
            :MAX_WORST
        ],
        methods=_methods(weights),
        moved=sum(w.note.moved for w in weights) / numel if numel else None,
        far=sum(w.note.far for w in weights) / numel if numel else None,
        reasons=reasons[:MAX_REASONS],
        other_reasons=sum(reason.weights for reason in reasons[MAX_REASONS:]),
        load=_load(sheet),
        cache=_cache(sheet),
        missing=_missing(sheet),
    )


def pool(errors: Iterable[tuple[Key, float | None, int]]) -> dict[Key, float]:
    """Return sqrt(sum(numel error^2) / sum(numel)) by key, of (key, error or None, numel)."""
    squares: dict[Key, float] = {}
    numels: dict[Key, int] = {}
    for key, error, numel in errors:
        if error is not None and numel:
            squares[key] = squares.get(key, 0.0) + numel * error**2
            numels[key] = numels.get(key, 0) + numel
    return {key: math.sqrt(squares[key] / numels[key]) for key in squares}


def _headlines(sheet: Sheet) -> list[Headline]:
    model = sheet.model
    total = sum(sum(dtypes.values()) for dtypes in sheet.bytes.values())
    bits = 8 * total / max(model.parameters + model.parameters_mtp, 1)
    note = f"{number(bits)} bits a parameter"
    stored = Headline("bytes", "Size", total, size(total), note)
    return [stored, *_evaluated(sheet.evaluation), _calibrated(sheet)]


def _evaluated(evaluation: Evaluation | None) -> list[Headline]:
    """Return the headlines of eval.json."""
    why = "no eval.json" if evaluation is None else "needs --against"
    headlines = {
        key: Headline(key, label, None, "", why)
        for key, label in (
            ("perplexity", "Perplexity"),
            ("kl_mean", "KL divergence"),
            ("top1_agreement", "Top-1 agreement"),
            ("router_flips", "Router flips"),
        )
    }

    def measured(key: str, figure: float, value: str, note: str) -> None:
        headlines[key] = Headline(key, headlines[key].label, figure, value, note)

    if evaluation is not None:
        e, note = evaluation, "no reference: needs --against"
        if e.perplexity_against:
            change = 100 * (e.perplexity / e.perplexity_against - 1)
            note = f"{change:+.2f} % of the reference's {number(e.perplexity_against, 5)}"
        measured("perplexity", e.perplexity, number(e.perplexity, 5), note)
        if e.kl_mean is not None:
            worst = f"; 99th percentile {number(e.kl_p99)}" if e.kl_p99 is not None else ""
            note = f"{LABELS[e.activations]}: mean, nats a token{worst}"
            other = e.other_activations
            if other is not None and other.kl_mean is not None:
                note += f". {LABELS[other.activations].capitalize()}: {number(other.kl_mean)}"
            measured("kl_mean", e.kl_mean, number(e.kl_mean), note)
        if e.top1_agreement is not None:
            share = percent(e.top1_agreement, 4)
            measured("top1_agreement", e.top1_agreement, share, f"of {e.tokens:,} tokens")
        if e.router_flips:
            mean = sum(e.router_flips.values()) / len(e.router_flips)
            layer, most = max(e.router_flips.items(), key=lambda item: item[1])
            note = f"mean of {len(e.router_flips)} layers, most in layer {layer}: {percent(most)}"
            measured("router_flips", mean, percent(mean), note)
    return list(headlines.values())


def _calibrated(sheet: Sheet) -> Headline:
    """Return the headline of calibration.json."""
    key, label = "output_error", "Output error, calibration"
    if sheet.calibration is None:
        return Headline(key, label, None, "", "no calibration.json")
    both = [
        (w.note.error, w.note.error_nearest, w.note.numel)
        for w in sheet.weights
        if w.note.error is not None and w.note.error_nearest is not None
    ]
    chosen = pool(((), error, numel) for error, _, numel in both)
    nearest = pool(((), error, numel) for _, error, numel in both)
    if not chosen:
        return Headline(key, label, None, "", "no weight saw a token")
    ratio = f" ({number(chosen[()] / nearest[()])} {TIMES})" if nearest[()] else ""
    note = f"{percent(nearest[()])} if rounded to nearest{ratio}"
    return Headline(key, label, chosen[()], percent(chosen[()]), note)


def _by_role(sheet: Sheet) -> list[ErrorByRole]:
    weights = sheet.weights
    outputs = sheet.evaluation.output_error if sheet.evaluation else ()
    counts: dict[str, int] = {}
    for w in weights:
        counts[w.role] = counts.get(w.role, 0) + 1
    nearest = pool((w.role, w.note.error_nearest, w.note.numel) for w in weights)
    chosen = pool((w.role, w.note.error, w.note.numel) for w in weights)
    held_out = pool((str(o.role), o.error, o.numel) for o in outputs)
    return [
        ErrorByRole(
            role, counts.get(role, 0), nearest.get(role), chosen.get(role), held_out.get(role)
        )
        for role in by_model([*counts, *held_out])
    ]


def by_model(roles: Iterable[str]) -> list[str]:
    """Return each role once, in the order of `ROLES`, unknown ones last."""
    order: dict[str, int] = {role: n for n, role in enumerate(ROLES)}
    return sorted(set(roles), key=lambda role: (order.get(role, len(order)), role))


def _methods(weights: list[Rounding]) -> list[Method]:
    numel = sum(w.note.numel for w in weights)
    methods = []
    for name in METHODS:
        chosen = [w for w in weights if w.note.method == name]
        if chosen:
            share_numel = sum(w.note.numel for w in chosen) / max(numel, 1)
            methods.append(Method(name, len(chosen), len(chosen) / len(weights), share_numel))
    return methods


def _reasons(weights: list[Rounding]) -> list[Reason]:
    """Return the reasons, most frequent first; those that differ only in numbers are merged."""
    groups: dict[tuple[str, str], list[Rounding]] = {}
    for w in weights:
        if w.note.why:
            groups.setdefault((w.note.method, re.sub(r"\d+(\.\d+)?", "#", w.note.why)), []).append(
                w
            )
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return [
        Reason(group[0].note.method, group[0].note.why, len(group), group[0].name)
        for group in ordered
    ]


def _load(sheet: Sheet) -> list[LayerLoad]:
    loads = []
    for layer, tokens in sheet.expert_load.layers.items() if sheet.expert_load else ():
        mean = sum(tokens) / len(tokens)
        most = max(tokens)
        if mean:
            extremes = most / mean, min(tokens) / mean
            loads.append(
                LayerLoad(layer, *extremes, tokens.index(most), tokens.count(0), len(tokens))
            )
    return loads


def _cache(sheet: Sheet) -> list[CacheAmax]:
    parts = []
    for part, amax in sheet.calibration.kv.items() if sheet.calibration else ():
        if amax:
            layer = max(amax, key=lambda layer: amax[layer])
            beyond = sum(value > E4M3_MAX for value in amax.values())
            parts.append(CacheAmax(part, amax[layer], layer, beyond))
    return parts


def _missing(sheet: Sheet) -> list[tuple[str, str]]:
    calibrate = "dstools quantize SOURCE OUT --calibrate DATA --method gptq"
    evaluate = "dstools eval OUT --data DATA --against SOURCE"
    missing = []
    if sheet.evaluation is None:
        what = (
            "perplexity, KL divergence, top-1 agreement, router flips, held-out error (eval.json)"
        )
        missing.append((what, evaluate))
    elif sheet.evaluation.against is None:
        missing.append(("KL divergence, top-1 agreement, router flips: no reference", evaluate))
    if sheet.calibration is None:
        missing.append(("error of each weight on calibration data (calibration.json)", calibrate))
    if sheet.expert_load is None and sheet.model.experts:
        missing.append(("tokens of each expert (expert_load.json)", calibrate))
    if sheet.tool is None:
        missing.append(("what wrote the folder: it has no manifest.json of dstools", ""))
    return missing
