"""Model card: metadata for the Hub, results with their intervals, and their limits."""

import json
import re
from typing import Any

from dstools_converters.markdown import generated, table, text
from dstools_converters.sidefiles.licences import identifier, licence_name
from dstools_distill.cards.ablation import comparison, points_between
from dstools_distill.cards.datacard import SETTING, UNKNOWN, licences, not_checked, versions
from dstools_distill.cards.markdown import between, bullets, counts, flat, percent, points
from dstools_distill.cards.runs import Run, Runs, Stage
from dstools_distill.evaluation.statistics import Interval
from dstools_distill.recipe.settings import Card
from dstools_distill.recipe.stages import TRAINED

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CLAIMS = (
    "The problems are made by reasoning-gym, at the scale of a toy. Gains on them prove that the "
    "pipeline works; they say nothing about benchmarks of language models."
)
STRICT = (
    "pass@1 is strict: an answer counts if it is finished, in the requested form, and right; it is "
    "the mean over the problems of the mean over the judged answers to each. Unverifiable ones, "
    "which could not be judged, count neither way. Lenient also counts a right "
    "answer that comes last in any text, even an unfinished one: it is not a pass@1. Intervals are "
    "Wilson's at 95 %, at the effective number of problems."
)


def text_of(settings: Card, runs: Runs, plots: list[str]) -> str:
    """Return the model card as Markdown, its text marked as generated.

    plots: names of the files there are.
    """
    parts = [
        f"# {text(settings.name)}",
        _summary(runs),
        *_results(runs, plots),
        *comparison(runs),
        *_training(runs, plots),
        "## Data",
        "Sources, counts at every stage, verification and decontamination: [DATA.md](DATA.md).",
        "## Licences",
        licences(settings, runs),
        "## Not checked",
        bullets([*_not_measured(runs), *not_checked(runs)]),
        "## How it was made",
        versions(runs, (*TRAINED, "eval")) or "Nothing was trained or evaluated.",
    ]
    content = "\n\n".join(part for part in parts if part)
    metadata = _metadata(settings, runs)
    # JSON is YAML
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]
    header = "\n".join(["---", *lines, "---"])
    return f"{header}\n\n{generated(content, metadata)}"


def _metadata(settings: Card, runs: Runs) -> dict[str, Any]:
    """Return the front matter."""
    bases = sorted({run.student.model for run in runs.all if HUB_NAME.fullmatch(run.student.model)})
    prefix, sources = "datasets:", runs.sources(["prompts"])
    names = [name.removeprefix(prefix).split("/") for name in sources if name.startswith(prefix)]
    datasets = sorted({"/".join(parts[:2]) for parts in names})  # without a configuration
    metadata: dict[str, Any] = _licence(settings)
    if bases:
        metadata |= {"base_model": bases, "base_model_relation": "finetune"}
    if datasets:
        metadata["datasets"] = datasets
    metadata["library_name"] = "transformers"
    metadata["pipeline_tag"] = "text-generation"
    trained = [stage for stage in TRAINED if runs.distinct(stage)]
    metadata["tags"] = ["reasoning", "distillation", "dstools", *trained]
    return metadata


def _licence(settings: Card) -> dict[str, Any]:
    """Return the licence as the Hub spells it: one of its list, or other with name and link."""
    known = identifier(settings.licence or UNKNOWN)
    if known and known != "other":
        return {"license": known}
    link = {"license_link": settings.licence_link} if settings.licence_link else {}
    return {"license": "other", "license_name": licence_name(settings.licence)} | link


def _summary(runs: Runs) -> str:
    """Return a sentence on what was trained from what."""
    run = next((run for run in reversed(runs.all) if set(TRAINED) & run.stages.keys()), None)
    if run is None:
        return "No model was trained."
    lineage = runs.lineage(run)
    trained = [stage for phase in lineage for stage in TRAINED if stage in phase.stages]
    first = lineage[0].student
    base = first.model or f"{(first.init or {}).get('model_type', '')} of random weights"
    parameters = run.stages[trained[-1]].report.get("parameters")
    size = f", {parameters:,} parameters" if parameters is not None else ""
    return f"A student trained by {', then '.join(trained)} from {text(base)}{size}."


# ------------------------------------------------------------------------------------- results


def _results(runs: Runs, plots: list[str]) -> list[str]:
    measured = list(runs.evaluated())
    if not measured:
        return ["## Results", "Not evaluated."]
    rows = [
        (
            run.name,
            model,
            _interval(figures["pass@1"]),
            percent(figures["lenient"]["value"]),
            percent(figures["unverifiable"]),
            percent(figures["truncated"]),
            percent(figures["not_well_formed"]),
            f"{figures['mean_tokens']:,.1f}",
        )
        for run, model, figures in _models(measured)
    ]
    head = ("Run", "Model", "pass@1", "Lenient", "Unverifiable", "Truncated", "Not well formed")
    parts = ["## Results", table((*head, "Tokens"), rows, numeric=6), STRICT]
    if "pass_at_1.svg" in plots:
        parts.append("![Strict pass@1 of every run](pass_at_1.svg)")
    parts += [*_several_answers(measured), *_gains(measured), *_languages(measured)]
    parts += _conditions(runs)
    if all(name.startswith("rg:") for name in runs.sources()):
        parts += ["## What this shows", CLAIMS]
    return parts


def _models(measured: list[tuple[Run, Stage]]) -> list[tuple[Run, str, dict[str, Any]]]:
    """Return each evaluated model: its run, its name and its figures."""
    return [
        (run, model, figures)
        for run, stage in measured
        for model, figures in stage.report["models"].items()
    ]


def _several_answers(measured: list[tuple[Run, Stage]]) -> list[str]:
    """Return pass@k and maj@k where problems were answered several times."""
    rows = [
        (run.name, model, k, _interval(figures["pass@k"][k]), _interval(figures["maj@k"][k]))
        for run, model, figures in _models(measured)
        for k in figures["pass@k"]
        if k != "1"
    ]
    if not rows:
        return []
    return [
        table(("Run", "Model", "k", "pass@k", "maj@k"), rows, numeric=3),
        "pass@k is the unbiased estimate; maj@k the mean over all draws of k answers, ties shared.",
    ]


def _gains(measured: list[tuple[Run, Stage]]) -> list[str]:
    """Return the gain of training where the student was evaluated before it."""
    rows = []
    for run, stage in measured:
        if gain := stage.report.get("difference"):
            interval = Interval(gain["value"], gain["low"], gain["high"])
            cells = (points(interval.value), points_between(interval))
            rows.append((run.name, gain["from"], gain["to"], *cells))
    return [table(("Run", "From", "To", "pass@1, points", "Interval"), rows, numeric=2)]


def _interval(figure: dict[str, float]) -> str:
    return f"{percent(figure['value'])} ({between(figure['low'], figure['high'])})"


def _languages(measured: list[tuple[Run, Stage]]) -> list[str]:
    rows = [
        (run.name, model, ", ".join(f"{name} {percent(share)}" for name, share in mix.items()))
        for run, model, figures in _models(measured)
        if (mix := figures["language_mix"])
    ]
    return [table(("Run", "Model", "Words of traces by language"), rows)]


def _conditions(runs: Runs) -> list[str]:
    """Return the settings of the evaluations."""
    parts = []
    for rows, group in runs.alike("eval", _condition):
        label = runs.label(group)
        heading = f"Settings of the evaluation, {text(label)}:" if label else "Settings:"
        parts += [heading, table(SETTING, rows)]
    return parts


def _condition(stage: Stage) -> list[tuple[str, str]]:
    problems = {
        "problems": ", ".join(f"{name} {n:,}" for name, n in stage.report["sources"].items()),
        "dropped": counts(stage.dropped),
        "context, tokens": stage.figures.get("context"),
    }
    hidden = ("source", "verify", "limit")
    settings = {key: value for key, value in stage.settings.items() if key not in hidden}
    return flat(problems | settings)


# ------------------------------------------------------------------------------------- training


def _training(runs: Runs, plots: list[str]) -> list[str]:
    parts: list[str] = []
    for stage in TRAINED:
        groups = runs.alike(stage, _settings_and_results)
        for rows, group in groups:
            seeds = sorted({run.stages[stage].settings.get("seed", 0) for run in group})
            label = f": {text(runs.label(group))}" if len(groups) > 1 else ""
            seeded = ("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, seeds)))
            parts += [f"### {stage}{label}", table(SETTING, [*rows, seeded])]
    if not parts:
        return []
    drawn = [name for name in ("loss", "reward") if f"{name}.svg" in plots]
    parts += [f"![{name.capitalize()} by step]({name}.svg)" for name in drawn]
    return ["## Training", *parts]


def _settings_and_results(stage: Stage) -> list[tuple[str, str]]:
    """Return rows of the settings and the report of a training, without its seed."""
    settings = {key: value for key, value in stage.settings.items() if key != "seed"}
    known = {*stage.settings, "dropped"}
    results = {key: value for key, value in stage.report.items() if key not in known}
    return flat(settings | {"results": results})


def _not_measured(runs: Runs) -> list[str]:
    lines = []
    measured = list(runs.evaluated())
    if not measured:
        lines.append("What the student can do: there is no `eval` stage.")
    else:
        if any(run.student.model and "before" not in s.report["models"] for run, s in measured):
            lines.append("What the student could do before it was trained.")
        if all(name.startswith("rg:") for name in runs.sources(["eval"])):
            lines.append("Any benchmark of language models.")
    is_seeded = runs.arms and all(len(seeds) > 1 for seeds in runs.arms.values())
    if not is_seeded and any(runs.distinct(stage) for stage in TRAINED):
        lines.append("How much results differ between seeds.")
    return lines
