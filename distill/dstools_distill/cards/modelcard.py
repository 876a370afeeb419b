"""The model card: metadata for the Hub, results with their intervals, and what they do not say."""

import json
import re
from typing import Any

from dstools_converters.markdown import text
from dstools_distill.cards.ablation import comparison, points_between
from dstools_distill.cards.datacard import licences, not_checked, versions
from dstools_distill.cards.markdown import (
    between,
    bullets,
    counts,
    flat,
    percent,
    points,
    table,
)
from dstools_distill.cards.runs import Run, Runs, Stage
from dstools_distill.evaluation.statistics import Interval
from dstools_distill.recipe.settings import Card
from dstools_distill.recipe.stages import TRAINED

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CLAIMS = (
    "The problems are made by reasoning-gym, at the scale of a toy. Gains on them prove that the pipeline "
    "works; they say nothing about benchmarks of language models."
)
STRICT = (
    "pass@1 is strict: an answer counts where it is finished, in the form that was asked for, and right; "
    "it is the mean over the problems of the mean over the answers to each. Lenient also counts a right "
    "answer that stands last in any text, unfinished ones included: it is no pass@1. Intervals are at 95 %: "
    "Wilson's at the effective number of problems."
)


def text_of(settings: Card, runs: Runs, plots: list[str]) -> str:
    """Return the model card as Markdown."""
    parts = [
        _metadata(settings, runs),
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
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(settings: Card, runs: Runs) -> str:
    """Return the YAML header, its values in JSON, which is YAML."""
    students = [run.student.model for run in runs.all]
    bases = sorted({name for name in students if HUB_NAME.fullmatch(name)})
    named = sorted(
        name.removeprefix("datasets:")
        for name in runs.sources(["prompts"])
        if name.startswith("datasets:")
    )
    trained = [stage for stage in TRAINED if runs.distinct(stage)]
    said: dict[str, Any] = {"license": settings.licence}
    if bases:
        said |= {"base_model": bases, "base_model_relation": "finetune"}
    if named:
        said["datasets"] = named
    said["library_name"] = "transformers"
    said["pipeline_tag"] = "text-generation"
    said["tags"] = ["reasoning", "distillation", "dstools", *trained]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in said.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(runs: Runs) -> str:
    """Say what was trained from what."""
    run = next((run for run in reversed(runs.all) if set(TRAINED) & run.stages.keys()), None)
    if run is None:
        return "No model was trained."
    lineage = runs.lineage(run)
    trained = [stage for each in lineage for stage in TRAINED if stage in each.stages]
    first = lineage[0].student
    base = first.model or f"{(first.init or {}).get('model_type', '')} of random weights"
    stages = ", then ".join(trained)
    size = run.stages[trained[-1]].report.get("parameters")
    said = f", {size:,} parameters" if size is not None else ""
    return f"A student trained by {stages} from {text(base)}{said}."


# ------------------------------------------------------------------------------------- results


def _results(runs: Runs, plots: list[str]) -> list[str]:
    measured = list(runs.evaluated())
    if not measured:
        return ["## Results", "Not evaluated."]
    rows = []
    for run, each in measured:
        for model, found in each.report["models"].items():
            right = Interval(**found["pass@1"])
            rows.append(
                (
                    run.name,
                    model,
                    f"{percent(right.value)} ({between(right.low, right.high)})",
                    percent(found["lenient"]["value"]),
                    percent(found["truncated"]),
                    percent(found["not_well_formed"]),
                    f"{found['mean_tokens']:,.1f}",
                )
            )
    head = ("Run", "Model", "pass@1", "Lenient", "Truncated", "Not well formed", "Tokens")
    parts = ["## Results", table(head, rows, numeric=5), STRICT]
    if "pass_at_1.svg" in plots:
        parts.append("![Strict pass@1 of every run](pass_at_1.svg)")
    parts += [*_drawn(measured), *_gains(measured), *_languages(measured), *_conditions(runs)]
    if all(name.startswith("rg:") for name in runs.sources()):
        parts += ["## What this shows", CLAIMS]
    return parts


def _drawn(measured: list[tuple[Run, Stage]]) -> list[str]:
    """Tell of several answers to a problem, where there are some."""
    rows = [
        (run.name, model, *(_interval(found[kind][k]) for kind in ("pass@k", "maj@k")), k)
        for run, each in measured
        for model, found in each.report["models"].items()
        for k in found["pass@k"]
        if k != "1"
    ]
    if not rows:
        return []
    cells = [(run, model, k, passed, major) for run, model, passed, major, k in rows]
    return [
        table(("Run", "Model", "k", "pass@k", "maj@k"), cells, numeric=3),
        "pass@k is the unbiased estimate, maj@k the mean over all draws of k answers, ties shared.",
    ]


def _gains(measured: list[tuple[Run, Stage]]) -> list[str]:
    """Tell what training brought, where the student was evaluated before it."""
    rows = [
        (run.name, said["from"], said["to"], points(said["value"]), points_between(Interval(said["value"], said["low"], said["high"])))
        for run, each in measured
        if (said := each.report.get("difference"))
    ]  # fmt: skip
    head = ("Run", "From", "To", "pass@1, points", "Interval")
    return [table(head, rows, numeric=2)] if rows else []


def _interval(found: dict[str, float]) -> str:
    return f"{percent(found['value'])} ({between(found['low'], found['high'])})"


def _languages(measured: list[tuple[Run, Stage]]) -> list[str]:
    rows = [
        (run.name, model, ", ".join(f"{name} {percent(share)}" for name, share in mix.items()))
        for run, each in measured
        for model, found in each.report["models"].items()
        if (mix := found["language_mix"])
    ]
    return [table(("Run", "Model", "Words of traces by language"), rows)] if rows else []


def _conditions(runs: Runs) -> list[str]:
    """Return the settings that the figures hang on."""
    parts = []
    for rows, group in runs.alike("eval", _condition):
        label = runs.label(group)
        heading = f"Settings of the evaluation, {text(label)}:" if label else "Settings:"
        parts += [heading, table(("Setting", "Value"), rows)]
    return parts


def _condition(each: Stage) -> list[tuple[str, str]]:
    said = {
        "problems": ", ".join(f"{name} {n:,}" for name, n in each.report["sources"].items()),
        "dropped": counts(each.dropped),
        "context, tokens": each.figures.get("context"),
    }
    settings = {k: v for k, v in each.settings.items() if k not in ("source", "verify", "limit")}
    return flat(said | settings)


# ------------------------------------------------------------------------------------- training


def _training(runs: Runs, plots: list[str]) -> list[str]:
    parts: list[str] = []
    for stage in TRAINED:
        groups = runs.alike(stage, _told)
        for rows, group in groups:
            seeds = sorted({run.stages[stage].settings.get("seed", 0) for run in group})
            heading = (
                f"### {stage}: {text(runs.label(group))}" if len(groups) > 1 else f"### {stage}"
            )
            seeded = ("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, seeds)))
            parts += [heading, table(("Setting", "Value"), [*rows, seeded])]
    if not parts:
        return []
    parts += [
        f"![{name.capitalize()} by step]({name}.svg)"
        for name in ("loss", "reward")
        if f"{name}.svg" in plots
    ]
    return ["## Training", *parts]


def _told(each: Stage) -> list[tuple[str, str]]:
    """Return what training was asked to do, and what it found, but for the seed."""
    report = {k: v for k, v in each.report.items() if k not in each.settings and k != "dropped"}
    settings = {k: v for k, v in each.settings.items() if k != "seed"}
    return flat(settings | {"found": report})


def _not_measured(runs: Runs) -> list[str]:
    found = []
    measured = list(runs.evaluated())
    if not measured:
        found.append("What the student can do: there is no `eval` stage.")
    else:
        if any(
            run.student.model and "before" not in each.report["models"] for run, each in measured
        ):
            found.append("What the student could do before it was trained.")
        if all(name.startswith("rg:") for name in runs.sources(["eval"])):
            found.append("Any benchmark of language models.")
    is_seeded = runs.arms and all(len(seeds) > 1 for seeds in runs.arms.values())
    if not is_seeded and any(runs.distinct(stage) for stage in TRAINED):
        found.append("How much results differ between seeds.")
    return found
