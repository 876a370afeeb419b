"""The data card: where rows come from, and what became of them."""

from dstools_converters.markdown import text
from dstools_distill.cards.markdown import bullets, counts, flat, shown, table
from dstools_distill.cards.runs import Runs
from dstools_distill.recipe.settings import Card
from dstools_distill.recipe.stages import TRAINED

FLOW = ("prompts", "generate", "verify", "decontaminate", "select", "render")
UNKNOWN = "unknown"


def text_of(settings: Card, runs: Runs) -> str:
    """Return the data card as Markdown."""
    parts = [
        f"# Data of {text(settings.name)}",
        "What the student was trained on, and how it came to be. Every count is of the run that made it.",
        "## Rows",
        _flow(runs),
        *_sources(runs),
        *_teacher(runs),
        *_verification(runs),
        *_decontamination(runs),
        *_selection(runs),
        *_rendering(runs),
        "## Licences",
        licences(settings, runs),
        "## Not checked",
        bullets(not_checked(runs)),
        "## How it was made",
        versions(runs, FLOW),
    ]
    return "\n\n".join(parts) + "\n"


def _flow(runs: Runs) -> str:
    """Return what came in, went out and was dropped at every stage."""
    rows = []
    for stage in FLOW:
        for label, each in runs.distinct(stage):
            come, gone = each.report.get("in"), each.report.get("out")
            if come is not None and gone is not None:
                rows.append(
                    (stage, label, f"{come:,}", f"{gone:,}", counts(each.dropped) or "none")
                )
    if not rows:
        return "No data stage was run."
    head = ("Stage", "Runs", "In", "Out", "Dropped")
    return table(head, rows) + "\n\n`generate` takes in prompts, and puts out samples."


def _sources(runs: Runs) -> list[str]:
    rows = [
        (name, label, f"{said['rows']:,}", said["licence"])
        for label, each in runs.distinct("prompts")
        for name, said in each.report["sources"].items()
    ]
    rows += [
        (
            shown(each.settings["non_reasoning"]),
            label,
            f"{mixed['out']:,}",
            each.settings["licence"],
        )
        for label, each in runs.distinct("select")
        if (mixed := each.report["non_reasoning"])["in"]
    ]
    return ["## Sources", table(("Source", "Runs", "Rows", "Licence"), rows)] if rows else []


def _teacher(runs: Runs) -> list[str]:
    parts = []
    for label, each in runs.distinct("generate"):
        said = {k: v for k, v in each.settings.items() if k not in ("device", "timeout_seconds")}
        parts += [_heading("Teacher", label), table(("Setting", "Value"), flat(said))]
    return parts


def _verification(runs: Runs) -> list[str]:
    found = runs.distinct("verify")
    if not found:
        return ["## Verification", "Not verified: no answer was compared with a known one."]
    parts = []
    for label, each in found:
        rows = [
            (verdict, reason, f"{count:,}")
            for verdict, reasons in each.report["reasons"].items()
            for reason, count in reasons.items()
        ]
        parts += [
            _heading("Verification", label),
            "What is unverifiable never counts as right.",
            table(("Verdict", "Reason", "Samples"), rows, numeric=1),
        ]
        checked = each.report["steps_checked"]
        parts.append(f"Samples whose steps were checked: {checked:,} of {each.report['in']:,}.")
        if right := each.report.get("answers_right_steps_wrong"):
            parts.append(f"Right answers behind a wrong step: {right:,}; they count as incorrect.")
        checkers = each.report.get("checkers") or {}
        if checkers:
            counted = [(name, f"{count:,}") for name, count in checkers.items()]
            parts.append(table(("Compared by", "Samples"), counted, numeric=1))
        parts.append(table(("Setting", "Value"), flat(each.settings)))
    return parts


def _decontamination(runs: Runs) -> list[str]:
    found = runs.distinct("decontaminate")
    if not found:
        nothing = "Not decontaminated: nobody looked for problems of benchmarks in these rows."
        return ["## Decontamination", nothing]
    parts = []
    for label, each in found:
        rows = [
            (
                said["name"],
                f"{said.get('questions', said.get('rows', 0)):,}",
                f"{said['rows_hit']:,}",
                str(said.get("sha256", ""))[:16],
            )
            for said in each.report["benchmarks"]
        ]
        parts += [
            _heading("Decontamination", label),
            f"{each.report['in'] - each.report['out']:,} of {each.report['in']:,} rows shared text with "
            "a benchmark, and were dropped.",
            table(("Benchmark", "Questions", "Rows hit", "SHA-256"), rows),
            f"Indexes: {', '.join(f'`{digest}`' for digest in each.report['indexes'])}.",
            text(each.report["note"]),
        ]
    return parts


def _selection(runs: Runs) -> list[str]:
    parts = []
    for label, each in runs.distinct("select"):
        told = ("prompts", "non_reasoning", "reasoning_share")
        made = {name: each.report[name] for name in told if name in each.report}
        rows = flat({"settings": each.settings, "found": made})
        parts += [_heading("Selection", label), table(("", "Value"), rows)]
    return parts


def _rendering(runs: Runs) -> list[str]:
    parts = []
    told = ("trains_on", "rows_with_a_trace", "rows_without_a_trace", "tokens", "target_tokens")
    for label, each in runs.distinct("render"):
        made = {name: each.report[name] for name in (*told, "length", "template", "checks")
                if name in each.report}  # fmt: skip
        rows = flat({"settings": each.settings, "found": made})
        parts += [
            _heading("Rendering", label),
            "Every row passed every check that is counted here, or nothing would have been written.",
            table(("", "Value"), rows),
        ]
    return parts


def _heading(title: str, label: str) -> str:
    return f"## {title}: {text(label)}" if label else f"## {title}"


# ----------------------------------------------------------------------- what both cards tell


def licences(settings: Card, runs: Runs) -> str:
    """Return the licences of all that went in, and of what comes out, with a warning for each unknown one."""
    rows: dict[tuple[str, str, str], None] = {}
    for _, each in runs.distinct("prompts"):
        for name, said in each.report["sources"].items():
            rows["Source", name, said["licence"]] = None
    for _, each in runs.distinct("select"):
        if each.settings["non_reasoning"]:
            rows["Source", shown(each.settings["non_reasoning"]), each.settings["licence"]] = None
    for _, each in runs.distinct("generate"):
        teacher = shown(str(each.settings.get("model") or "the answers that came with the prompts"))
        rows["Teacher", teacher, each.settings["licence"]] = None
    for run in runs.all:
        if any(stage in run.stages for stage in TRAINED):
            student = runs.lineage(run)[0].student
            base = shown(student.model) or f"new weights; tokenizer of {shown(student.tokenizer)}"
            rows["Student's base", base, student.licence] = None
    rows["Result", settings.name, settings.licence] = None
    unknown = [name for _, name, licence in rows if licence == UNKNOWN]
    parts = [table(("", "Name", "Licence"), list(rows))]
    if unknown:
        named = ", ".join(text(name) for name in unknown)
        parts.append(
            f"**Warning: the licence of {named} is unknown. Find out before you share this.**"
        )
    return "\n\n".join(parts)


def not_checked(runs: Runs) -> list[str]:
    """Return what nobody looked at, as far as the stages tell."""
    found = ["Whether the licences allow this use: they are repeated from the recipe."]
    prompts, verify = runs.distinct("prompts"), runs.distinct("verify")
    if any(not each.settings["near_duplicates"] for _, each in prompts):
        found.append("Near duplicates among the prompts; equal ones were dropped.")
    if not verify:
        found.append(
            "Whether answers are right, finished and well formed: there is no `verify` stage."
        )
    if any(not each.settings["steps"] for _, each in verify):
        found.append("Steps of traces: `verify.steps` is off.")
    if verify:
        found.append(
            "Steps of traces where the task has no checker for them, or they are written otherwise."
        )
    if any(not each.settings["language"] for _, each in verify):
        found.append("The language of traces: `verify.language` is empty.")
    if any(each.settings["keep"] == "all" for _, each in runs.distinct("select")):
        found.append("Rows of runs with `select.keep` = all: wrong answers are among them.")
    if any(each.settings["non_reasoning"] for _, each in runs.distinct("select")):
        found.append("Whether answers of rows without a trace are right: nobody verifies them.")
    if runs.distinct("decontaminate"):
        found.append("Problems of benchmarks that were paraphrased or translated.")
    else:
        found.append("Overlap with benchmarks: there is no `decontaminate` stage.")
    return found


def versions(runs: Runs, stages: tuple[str, ...]) -> str:
    """Return the versions of what made the stages."""
    found: dict[str, set[str]] = {}
    for stage in stages:
        for _, each in runs.distinct(stage):
            for name, version in each.versions.items():
                found.setdefault(name, set()).add(version)
    rows = [(name, ", ".join(sorted(used))) for name, used in sorted(found.items())]
    return table(("Package", "Version"), rows)
