"""Data card: where the rows come from, and what each stage kept and dropped."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from dstools_converters.markdown import table, text
from dstools_distill.cards.markdown import bullets, counts, flat, shown
from dstools_distill.cards.runs import Runs, Stage
from dstools_distill.recipe.settings import Card
from dstools_distill.recipe.stages import STAGES, TRAINED

FLOW = tuple(name for name in STAGES if name not in (*TRAINED, "eval", "card"))
UNKNOWN = "unknown"
SETTING = ("Setting", "Value")
RESULTS = (  # keys of the reports of select and render
    *("prompts", "non_reasoning", "reasoning_share", "trains_on", "rows_with_a_trace"),
    *("rows_without_a_trace", "tokens", "target_tokens", "length", "template", "checks"),
)
CHECKED = "Every row passed every check counted here; otherwise nothing would have been written."


def text_of(settings: Card, runs: Runs) -> str:
    """Return the data card as Markdown."""
    parts = [
        f"# Data of {text(settings.name)}",
        "What the student was trained on, and how that was made.",
        "## Rows",
        _flow(runs),
        *_sources(runs),
        *_tables(runs, "generate", "Teacher", _teacher),
        *_verification(runs),
        *_decontamination(runs),
        *_tables(runs, "select", "Selection", _settings_and_results),
        *_tables(runs, "render", "Rendering", _settings_and_results, CHECKED),
        "## Licences",
        licences(settings, runs),
        "## Not checked",
        bullets(not_checked(runs)),
        "## How it was made",
        versions(runs, FLOW) or "No data stage was run.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _flow(runs: Runs) -> str:
    """Return the rows that came into, went out of and were dropped by every stage."""
    rows = []
    for name in FLOW:
        for label, stage in runs.distinct(name):
            rows_in, rows_out = stage.report.get("in"), stage.report.get("out")
            if rows_in is not None and rows_out is not None:
                dropped = counts(stage.dropped) or "none"
                rows.append((name, label, f"{rows_in:,}", f"{rows_out:,}", dropped))
    if not rows:
        return "No data stage was run."
    head = ("Stage", "Runs", "In", "Out", "Dropped")
    return table(head, rows) + "\n\nRows of `generate`: prompts in, samples out."


def _left_out(source: dict[str, Any]) -> str:
    count = source.get("bad_rows", 0)
    return f", and {count:,} left out that held no question" if count else ""


def _sources(runs: Runs) -> list[str]:
    rows = [
        (name, label, f"{source['rows']:,}{_left_out(source)}", source["licence"])
        for label, stage in runs.distinct("prompts")
        for name, source in stage.report["sources"].items()
    ]
    for label, stage in runs.distinct("select"):
        settings, mixed = stage.settings, stage.report["non_reasoning"]
        if mixed["in"]:
            name = shown(settings["non_reasoning"])
            rows.append((name, label, f"{mixed['out']:,}", settings["licence"]))
    return ["## Sources", table(("Source", "Runs", "Rows", "Licence"), rows)] if rows else []


def _tables(
    runs: Runs, name: str, title: str, rows_of: Callable[[Stage], dict[str, Any]], note: str = ""
) -> list[str]:
    """Return a section for each distinct result of a stage: a heading, a note, a table."""
    parts = []
    for label, stage in runs.distinct(name):
        parts += [_heading(title, label), note, table(SETTING, flat(rows_of(stage)))]
    return parts


def _teacher(stage: Stage) -> dict[str, Any]:
    local = ("device", "timeout_seconds")
    settings = {key: value for key, value in stage.settings.items() if key not in local}
    told = _told_teachers(stage)
    return settings | ({"teachers": told} if told else {})


def _told_teachers(stage: Stage) -> Counter[str]:
    """Return the samples of each teacher that a replayed file names, without folders of a path."""
    told = Counter[str]()
    for name, count in stage.report.get("teachers", {}).items():
        told[shown(name)] += count
    return told


def _verification(runs: Runs) -> list[str]:
    verified = runs.distinct("verify")
    if not verified:
        return ["## Verification", "Not verified: no answer was compared with a known one."]
    parts = []
    for label, stage in verified:
        report = stage.report
        rows = [
            (verdict, reason, f"{count:,}")
            for verdict, reasons in report["reasons"].items()
            for reason, count in reasons.items()
        ]
        parts += [
            _heading("Verification", label),
            "An unverifiable sample never counts as correct.",
            table(("Verdict", "Reason", "Samples"), rows, numeric=1),
            f"Samples whose steps were checked: {report['steps_checked']:,} of {report['in']:,}.",
        ]
        if wrong := report.get("answers_right_steps_wrong"):
            parts.append(f"Right answers after a wrong step: {wrong:,}; they count as incorrect.")
        checkers = report.get("checkers") or {}
        counted = [(name, f"{count:,}") for name, count in checkers.items()]
        parts.append(table(("Compared by", "Samples"), counted, numeric=1))
        parts.append(table(SETTING, flat(stage.settings)))
    return parts


def _decontamination(runs: Runs) -> list[str]:
    decontaminated = runs.distinct("decontaminate")
    if not decontaminated:
        nothing = "Not decontaminated: these rows were not searched for problems of benchmarks."
        return ["## Decontamination", nothing]
    parts = []
    for label, stage in decontaminated:
        report = stage.report
        rows = [
            (
                benchmark["name"],
                f"{benchmark.get('questions', benchmark.get('rows', 0)):,}",
                f"{benchmark['rows_hit']:,}",
                str(benchmark.get("sha256", ""))[:16],
            )
            for benchmark in report["benchmarks"]
        ]
        parts += [
            _heading("Decontamination", label),
            f"{report['in'] - report['out']:,} of {report['in']:,} rows shared text with a "
            "benchmark and were dropped.",
            table(("Benchmark", "Questions", "Rows hit", "SHA-256"), rows),
            *_shares(report),
            f"Indexes: {', '.join(f'`{digest}`' for digest in report['indexes'])}.",
            text(report["note"]),
        ]
    return parts


def _shares(report: dict[str, Any]) -> list[str]:
    """Return how much of the benchmark's texts the dropped rows have; [] if none was dropped."""
    by_share = report.get("rows_by_share", {})
    if not any(by_share.values()):
        return []
    shares = [f"{share} in {count:,}" for share, count in by_share.items() if count]
    return [f"Share of the benchmark's words in these rows: {', '.join(shares)}."]


def _settings_and_results(stage: Stage) -> dict[str, Any]:
    results = {key: stage.report[key] for key in RESULTS if key in stage.report}
    return {"settings": stage.settings, "results": results}


def _heading(title: str, label: str) -> str:
    return f"## {title}: {text(label)}" if label else f"## {title}"


# ------------------------------------------------------------------------- parts of both cards


def licences(settings: Card, runs: Runs) -> str:
    """Return the licences of all inputs and of the result, with a warning for unknown ones."""
    rows: dict[tuple[str, str, str], None] = {}
    for _, stage in runs.distinct("prompts"):
        for name, source in stage.report["sources"].items():
            rows["Source", name, source["licence"]] = None
    for _, stage in runs.distinct("select"):
        if mixed := stage.settings["non_reasoning"]:
            rows["Source", shown(mixed), stage.settings["licence"]] = None
    for _, stage in runs.distinct("generate"):
        model = stage.settings.get("model")
        teacher = shown(str(model or "the answers that came with the prompts"))
        for name in _told_teachers(stage) or [teacher]:
            rows["Teacher", name, stage.settings["licence"]] = None
    for run in runs.all:
        if any(stage in run.stages for stage in TRAINED):
            student = runs.lineage(run)[0].student
            base = shown(student.model) or f"new weights; tokenizer of {shown(student.tokenizer)}"
            rows["Student's base", base, student.licence] = None
    rows["Result", settings.name, settings.licence] = None
    licence_table = table(("", "Name", "Licence"), list(rows))
    unknown = ", ".join(text(name) for _, name, licence in rows if licence == UNKNOWN)
    if not unknown:
        return licence_table
    warning = f"**Warning: the licence of {unknown} is unknown. Find out before you share this.**"
    return f"{licence_table}\n\n{warning}"


def not_checked(runs: Runs) -> list[str]:
    """Return what was not checked, as far as the stages tell."""
    lines = ["Whether the licences allow this use: they are repeated from the recipe."]
    verified = [stage.settings for _, stage in runs.distinct("verify")]
    selected = [stage.settings for _, stage in runs.distinct("select")]
    if any(not stage.settings["near_duplicates"] for _, stage in runs.distinct("prompts")):
        lines.append("Near duplicates among the prompts; equal ones were dropped.")
    if not verified:
        without = "there is no `verify` stage."
        lines.append(f"Whether answers are right, finished and well formed: {without}")
    if any(not settings["steps"] for settings in verified):
        lines.append("Steps of traces: `verify.steps` is off.")
    if verified:
        lines.append(
            "Steps of traces whose task has no step checker, or that use another notation."
        )
    if any(not settings["language"] for settings in verified):
        lines.append("The language of traces: `verify.language` is empty.")
    if any(settings["keep"] == "all" for settings in selected):
        lines.append("Rows of runs with `select.keep` = all: they include wrong answers.")
    if any(settings["non_reasoning"] for settings in selected):
        lines.append("Whether answers of rows without a trace are right: they are not verified.")
    if runs.distinct("decontaminate"):
        lines.append("Problems of benchmarks that were paraphrased or translated.")
    else:
        lines.append("Overlap with benchmarks: there is no `decontaminate` stage.")
    return lines


def versions(runs: Runs, stages: tuple[str, ...]) -> str:
    """Return a table of the package versions that made the stages; "" if there are none."""
    by_package: dict[str, set[str]] = {}
    for name in stages:
        for _, stage in runs.distinct(name):
            for package, version in stage.versions.items():
                by_package.setdefault(package, set()).add(version)
    rows = [(package, ", ".join(sorted(used))) for package, used in sorted(by_package.items())]
    return table(("Package", "Version"), rows)
