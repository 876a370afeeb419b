"""`dstools distill`: the stages of a recipe, all in a row or one at a time."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from dstools.commands.distill_preview import show_checked, show_preview
from dstools.commands.distill_tools import doctor, index
from dstools.options import (
    SETTINGS,
    Command,
    count_bar,
    hint_command,
    json_option,
    option,
    path_argument,
    show,
    terminal,
)
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_distill.pipeline import Pipeline
    from dstools_distill.places import Places
    from dstools_distill.store.stage import Done

EXAMPLES = """\b
Examples:
  dstools distill init --preset toy-cpu > toy.toml
  dstools distill run toy.toml"""

recipe_argument = path_argument("recipe", metavar="RECIPE", help="A TOML file; see `init`.")
out_option = option(
    "--out", metavar="DIR", section="Output", help="Work there; default: RECIPE without .toml."
)
chain_option = option(
    "--chain", metavar="NAME", help="Run only this chain, e.g. cold-start or verified-0."
)
tasks_option = option(
    "--lm-eval",
    "tasks",
    metavar="TASKS",
    help="Also evaluate the trained student on these tasks of lm-evaluation-harness.",
)
processes_option = option(
    "--workers",
    section="Output",
    type=click.IntRange(1, 256),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="the CPUs",
    help="Work on rows in this many processes.",
)


@dataclass(frozen=True)
class Result:
    """What a command did, stage by stage."""

    out: str
    stages: list[dict[str, Any]]


class StageGroup(click.Group):
    """A group with one command per stage, made when it is asked for.

    The table of stages is not imported until then, which keeps `dstools --help` quick.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, the stages in the order data flows."""
        from dstools_distill.recipe.stages import STAGES

        return ["run", "check", *STAGES, "init", "index", "doctor"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        from dstools_distill.recipe.stages import STAGES

        if cmd_name in STAGES and cmd_name not in self.commands:
            self.add_command(_stage_command(cmd_name, STAGES[cmd_name].help))
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=StageGroup,
    context_settings=SETTINGS,
    epilog=EXAMPLES,
    short_help="Distill reasoning traces into a dense student.",
)
def distill() -> None:
    """Turn a teacher's reasoning into a dense student without losing a trace.

    A recipe has a table for every stage that is to run. A stage makes a folder from the folders of
    earlier stages; a finished one is reused, an interrupted one resumes.
    """


@distill.command(
    cls=Command,
    short_help="Run all stages of a recipe and write its card.",
    epilog="dstools distill run toy.toml --dry-run\ndstools distill run toy.toml --from sft --json",
)
@recipe_argument
@option(
    "--from",
    "start",
    metavar="STAGE",
    help="Start here, and use earlier results as they are, whatever the recipe says now.",
)
@out_option
@option("--dry-run", section="Output", is_flag=True, help="Print what would run and write nothing.")
@processes_option
@json_option
def run(
    recipe: str, start: str | None, out: str | None, dry_run: bool, workers: int, as_json: bool
) -> None:
    """Run every stage of a recipe that is not done yet, and write its card.

    STAGE is the name of a stage, or that of a phase or arm before it: cold-start/sft.
    """
    from dstools_distill import preview

    if dry_run:
        show_preview(preview.preview(_places(recipe, out), start or ""), as_json)
        return
    with _pipeline(recipe, out, workers) as pipeline:
        done: list[tuple[str, str, Done]] = []

        def report(chain: str, stage: str, one: "Done") -> None:
            done.append((chain, stage, one))
            if not as_json:
                click.echo(terminal(_line(chain, stage, one)))

        if not start:
            preview.check(pipeline.places)  # before the first stage costs anything
        preview.require_machine(pipeline.places, start or "")
        pipeline.run(start or "", report)
    _finish(pipeline, done, as_json, text="")


@distill.command(
    cls=Command,
    short_help="Validate a recipe without running it.",
    epilog="dstools distill check toy.toml\ndstools distill check toy.toml --json",
)
@recipe_argument
@out_option
@json_option
def check(recipe: str, out: str | None, as_json: bool) -> None:
    """Validate a recipe: keys, values, paths, and what each stage needs of earlier ones.

    Nothing is run and nothing is written. Exits 1 with the first fault. Faults that only running
    can show, such as a bad row of a source, are not found. What only this machine lacks, such as
    GPUs, is said, and is not a fault of the recipe.
    """
    from dstools_distill import preview

    places = _places(recipe, out)
    preview.check(places)
    faults = {name: problem for name, (problem, _) in preview.unfit(places).items()}
    show_checked(places.recipe, faults, as_json)


def _stage_command(stage: str, summary: str) -> click.Command:
    """Return the command of one stage."""
    examples = ["", "--lm-eval gpqa_diamond_cot_zeroshot" if stage == "eval" else "--json"]
    options = [recipe_argument]
    options += [] if stage == "card" else [chain_option]
    options += [tasks_option] if stage == "eval" else []

    def command(
        recipe: str,
        out: str | None,
        workers: int,
        as_json: bool,
        chain: str | None = None,
        tasks: str | None = None,
    ) -> None:
        with _pipeline(recipe, out, workers) as pipeline:
            if stage == "card":
                name, done = "", pipeline.run_card()
            else:
                chosen = pipeline.chain(chain or "", stage)
                name, done = chosen.name, pipeline.run_one(chosen, stage)
            text = _line(name, stage, done)
            if tasks:
                student = pipeline.places.trained(chosen, before="eval")
                scores, table = _lm_eval(student, tasks, pipeline.places.out)
                text, done = text + table, replace(done, report=done.report | {"lm_eval": scores})
        _finish(pipeline, [(name, stage, done)], as_json, text)

    for add in reversed([*options, out_option, processes_option, json_option]):
        command = add(command)
    return click.command(
        stage,
        cls=Command,
        help=summary,
        short_help=summary,
        epilog="\n".join(f"dstools distill {stage} toy.toml {end}".rstrip() for end in examples),
    )(command)


def _lm_eval(student: Path, tasks: str, out: Path) -> tuple[dict[str, Any], str]:
    """Return the scores of lm-evaluation-harness, and their lines for a person."""
    from dstools_distill.evaluation.harness import lm_eval
    from dstools_distill.store.stage import digest

    # other weights or other tasks are another folder, so finished scores are found again
    folder = out / f"lm-eval-{digest(student)[:12]}-{quote(tasks, safe=',')}"
    scores = lm_eval(student, tasks, folder)
    lines = [f"\n{task:24} {score}" for task, score in scores["tasks"].items()]
    return scores, "".join([*lines, f"\n{'':24} in {folder}"])


@distill.command(
    cls=Command,
    short_help="Print a recipe to start from.",
    epilog="dstools distill init --preset toy-cpu\n"
    "dstools distill init --preset r1-distill-qwen-1.5b > qwen.toml",
)
@option(
    "--preset", section="Output", metavar="NAME", help="Print this recipe; default: list all names."
)
def init(preset: str | None) -> None:
    """Print a recipe with its comments, to be saved and edited."""
    from dstools_distill.recipe.presets import preset_text, presets

    click.echo(preset_text(preset) if preset else "\n".join(presets()), nl=not preset)


distill.add_command(index)
distill.add_command(doctor)


def _places(recipe: str, out: str | None) -> "Places":
    """Return a recipe and the folder of its results."""
    from dstools.source import resolve
    from dstools_distill.places import Places
    from dstools_distill.recipe.recipe import read_recipe

    path = Path(recipe)
    read = read_recipe(path)
    place = Path(out) if out else path.with_suffix("")
    if place == path:
        raise DstoolsError(f"{path}: its name has no suffix to remove", "name a folder: --out DIR")
    return Places(read, place, resolve)


@contextmanager
def _pipeline(recipe: str, out: str | None, workers: int) -> "Iterator[Pipeline]":
    """Hold the lock on the folder of a recipe's results."""
    from dstools_distill.pipeline import Pipeline
    from dstools_distill.store.stage import locked

    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        # without this, an installed DeepSpeed prints its guess of the device on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # warnings of these libraries about their own next versions
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    places = _places(recipe, out)
    with locked(places.out):
        yield Pipeline(places, workers, count_bar)


def _line(chain: str, stage: str, done: "Done") -> str:
    """Return a line about a stage and its result."""
    where = f"{chain}/{stage}" if chain else stage
    return f"{where:24} {_summary(done.report)}{'  (was done)' if done.is_reused else ''}"


def _summary(report: dict[str, Any]) -> str:
    """Return the scores, the steps, or the rows in and out with their losses, of a report."""
    if "models" in report:
        return ", ".join(
            f"{name} {model['pass@1']['value']:.1%} pass@1 ({model['pass@1']['low']:.1%} to "
            f"{model['pass@1']['high']:.1%}) on {model['problems']} problems"
            + (f", {model['unverifiable']:.1%} not judged" if model["unverifiable"] else "")
            for name, model in report["models"].items()
        )
    if "drafts_kept" in report:
        kept = report["drafts_kept"]
        layer = "" if report["layer"] == "fitted" else f", layer {report['layer']}"
        change = f"{kept['before']:.1%} -> {kept['after']:.1%}"
        return f"{report['steps']:,} steps, drafts kept {change}{layer}"
    if "steps" in report:
        mtp = f", MTP layers: {report['mtp_layers']}" if "mtp_layers" in report else ""
        return f"{report['steps']:,} steps, {report['parameters']:,} parameters{mtp}"
    if "files" in report:
        return ", ".join(report["files"])
    suffixes = {why: f" ({detail})" for why, detail in report.get("details", {}).items()}
    lost = [
        f"{count:,} {why}{suffixes.get(why, '')}"
        for why, count in report["dropped"].items()
        if count
    ]
    return ", ".join([f"{report['in']:,} -> {report['out']:,}", *lost])


def _finish(
    pipeline: "Pipeline", done: "list[tuple[str, str, Done]]", as_json: bool, text: str
) -> None:
    """Print the result, and name the next command after a training."""
    stages = [
        {"chain": chain, "stage": stage} | asdict(one) | {"folder": str(one.folder)}
        for chain, stage, one in done
    ]
    if as_json or text:
        show(Result(str(pipeline.places.out), stages), as_json, text)
    from dstools_distill.recipe.stages import TRAINED

    trained = [one.folder for _, stage, one in done if stage in TRAINED]
    if done[-1][1] == "card" and trained:
        hint_command("quantize", str(trained[-1]), "OUT")
