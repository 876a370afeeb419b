"""`dstools distill`: the stages of a recipe, one by one or in a row, and what surrounds them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from dstools.options import (
    FELL_SHORT,
    SETTINGS,
    Command,
    count_bar,
    hint_command,
    json_option,
    option,
    show,
    terminal,
)
from dstools_converters.errors import DstoolsError

if TYPE_CHECKING:
    from dstools_distill.pipeline import Pipeline
    from dstools_distill.store.stage import Done

EXAMPLES = """\b
Examples:
  dstools distill init --preset toy-cpu > toy.toml
  dstools distill run toy.toml"""
STAGES = {
    "prompts": "Import prompts, and drop those that are asked twice.",
    "generate": "Let the teacher answer each prompt some times.",
    "verify": "Judge each answer: correct, incorrect or unverifiable, and why.",
    "decontaminate": "Drop what shares text with the benchmarks of an index.",
    "select": "Keep the traces that are worth training on.",
    "render": "Turn rows into tokens and labels, and prove that no trace is lost.",
    "sft": "Fine-tune the student on rendered rows.",
    "kd": "Distil the teacher's logits on the student's own answers.",
    "grpo": "Train the student by rewards on groups of its own answers.",
}

recipe_argument = click.argument("recipe", metavar="RECIPE", help="A TOML file; see `init`.")
out_option = option(
    "--out", metavar="DIR", section="Output", help="Work there. By default beside the recipe, by its name."
)  # fmt: skip
chain_option = option(
    "--chain",
    metavar="NAME",
    help="Do that of this phase, or arm and seed: cold-start, verified-0.",
)
processes_option = option(
    "--workers", section="Output", type=click.IntRange(1, 256),
    default=lambda: len(os.sched_getaffinity(0)), show_default="the CPUs",
    help="Work on rows in this many processes.",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a command did, stage by stage."""

    out: str
    stages: list[dict[str, Any]]


class InOrder(click.Group):
    """A group whose --help lists commands in the order they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        return list(self.commands)


@click.group(
    cls=InOrder,
    context_settings=SETTINGS,
    epilog=EXAMPLES,
    short_help="Distill reasoning traces into a dense student.",
)
def distill() -> None:
    """Turn a teacher's reasoning into a dense student, with no trace lost on the way.

    A recipe has a table for every stage that is to run. A stage makes a folder from the folders of those
    before it; what is finished is found again, what was interrupted goes on.
    """


@distill.command(
    cls=Command,
    epilog="dstools distill run toy.toml\ndstools distill run toy.toml --from sft --json",
)
@recipe_argument
@option(
    "--from", "start", metavar="STAGE",
    help="Take what comes before this stage as it lies there, whatever the recipe says now.",
)  # fmt: skip
@out_option
@processes_option
@json_option
def run(recipe: str, start: str | None, out: str | None, workers: int, as_json: bool) -> None:
    """Run every stage of a recipe that is not done yet, and write its card.

    STAGE is a stage's name, or that of a phase or arm before it: cold-start/sft.
    """
    with _pipeline(recipe, out, workers) as pipeline:
        done: list[tuple[str, str, Done]] = []

        def tell(chain: str, stage: str, each: "Done") -> None:
            done.append((chain, stage, each))
            if not as_json:
                click.echo(terminal(_line(chain, stage, each)))

        pipeline.run(start or "", tell)
    _finish(pipeline, done, as_json, text="")


def _stage_command(stage: str, summary: str) -> click.Command:
    """Return the command of one stage."""

    @click.command(
        stage,
        cls=Command,
        help=summary,
        epilog=f"dstools distill {stage} toy.toml\ndstools distill {stage} toy.toml --json",
    )
    @recipe_argument
    @chain_option
    @out_option
    @processes_option
    @json_option
    def command(
        recipe: str, chain: str | None, out: str | None, workers: int, as_json: bool
    ) -> None:
        with _pipeline(recipe, out, workers) as pipeline:
            chosen = pipeline.chain(chain or "", stage)
            done = pipeline.run_one(chosen, stage)
        text = _line(chosen.name, stage, done)
        _finish(pipeline, [(chosen.name, stage, done)], as_json, text)

    return command


@click.command(
    "eval",
    cls=Command,
    epilog="dstools distill eval toy.toml\n"
    "dstools distill eval qwen.toml --lm-eval gpqa_diamond_cot_zeroshot",
)
@recipe_argument
@chain_option
@option(
    "--lm-eval", "tasks", metavar="TASKS",
    help="Hand the trained student over to lm-evaluation-harness for these tasks, too.",
)  # fmt: skip
@out_option
@processes_option
@json_option
def evaluate(
    recipe: str,
    chain: str | None,
    tasks: str | None,
    out: str | None,
    workers: int,
    as_json: bool,
) -> None:
    """Measure the student on problems that it has not seen."""
    with _pipeline(recipe, out, workers) as pipeline:
        chosen = pipeline.chain(chain or "", "eval")
        done = pipeline.run_one(chosen, "eval")
        text = _line(chosen.name, "eval", done)
        if tasks:
            from dstools_distill.evaluation.harness import lm_eval
            from dstools_distill.store.stage import digest

            student = pipeline.places.trained(chosen, before="eval")
            # other weights or other tasks are another folder: what lies there is found again
            name = f"lm-eval-{digest(student)[:12]}-{quote(tasks, safe=',')}"
            scores = lm_eval(student, tasks, pipeline.places.out / name)
            text += "".join(f"\n{task:24} {found}" for task, found in scores["tasks"].items())
            text += f"\n{'':24} in {pipeline.places.out / name}"
            done = replace(done, report=done.report | {"lm_eval": scores})
    _finish(pipeline, [(chosen.name, "eval", done)], as_json, text)


@click.command(
    "card",
    cls=Command,
    epilog="dstools distill card toy.toml\ndstools distill card toy.toml --json",
)
@recipe_argument
@out_option
@processes_option
@json_option
def write_card(recipe: str, out: str | None, workers: int, as_json: bool) -> None:
    """Write the data card, the model card and their plots."""
    with _pipeline(recipe, out, workers) as pipeline:
        done = pipeline.run_card()
    _finish(pipeline, [("", "card", done)], as_json, _line("", "card", done))


for name, summary in STAGES.items():
    distill.add_command(_stage_command(name, summary))
distill.add_command(evaluate)
distill.add_command(write_card)


@distill.command(
    cls=Command,
    epilog="dstools distill init --preset toy-cpu\n"
    "dstools distill init --preset r1-distill-qwen-1.5b > qwen.toml",
)
@option(
    "--preset", section="Output", metavar="NAME",
    help="Print this one of the recipes; without, their names are listed.",
)  # fmt: skip
def init(preset: str | None) -> None:
    """Print a recipe with its comments, to be saved and changed."""
    from dstools_distill.recipe.presets import preset_text, presets

    click.echo(preset_text(preset) if preset else "\n".join(presets()), nl=not preset)


@distill.command(
    cls=Command,
    epilog="dstools distill index benchmarks.ngrams aime24.jsonl math500.jsonl\n"
    "dstools distill index benchmarks.ngrams gpqa.parquet --json",
)
@click.argument("out", metavar="OUT", help="The index to write; it must not exist.")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, help="Your copies of benchmarks."
)
@json_option
def index(out: str, files: tuple[str, ...], as_json: bool) -> None:
    """Hash your copies of benchmarks into an index for `decontaminate`.

    It holds no text. A file is JSONL, Parquet or, a problem a line, plain text.
    """
    from dstools_distill.data.decontaminate import build_index

    built = build_index([Path(file) for file in files], Path(out))
    lines = [f"{name:24} {rows:8,} rows" for name, rows in built.benchmarks.items()]
    show(built, as_json, "\n".join([*lines, f"wrote {out}"]))


@distill.command(
    cls=Command,
    epilog="dstools distill doctor ./Qwen2.5-7B\n"
    "dstools distill doctor ./Qwen2.5-7B --config trl.yaml --sample traces.jsonl",
)
@click.argument("tokenizer", metavar="TOKENIZER", help="A folder with a tokenizer, or org/name.")
@option(
    "--config", metavar="FILE", type=click.Path(path_type=Path),
    help="The configuration of a trainer: of TRL, LLaMA-Factory or axolotl.",
)  # fmt: skip
@option(
    "--sample", metavar="FILE", type=click.Path(path_type=Path),
    help="Take the first row of this JSONL in place of a sample of our own.",
)  # fmt: skip
@json_option
def doctor(tokenizer: str, config: Path | None, sample: Path | None, as_json: bool) -> None:
    """Show what somebody's trainer would really train on, and what of a trace would be lost.

    Exit code 3 where something would be.
    """
    from dstools.hub.source import resolve
    from dstools_distill.tokens.doctor import diagnose, text

    found = diagnose(resolve(tokenizer), config, sample)
    show(found, as_json, text(found))
    if any(finding.level == "error" for finding in found.findings):
        click.get_current_context().exit(FELL_SHORT)


@contextmanager
def _pipeline(recipe: str, out: str | None, workers: int) -> "Iterator[Pipeline]":
    """Hold the folder of a recipe's results."""
    from dstools.hub.source import resolve
    from dstools_distill.pipeline import Pipeline
    from dstools_distill.places import Places
    from dstools_distill.recipe.recipe import read_recipe
    from dstools_distill.store.stage import locked

    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        # DeepSpeed, where it is installed, otherwise says on stdout that it has guessed this
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # what libraries tell each other of their next versions
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    path = Path(recipe)
    read = read_recipe(path)
    place = Path(out) if out else path.with_suffix("")
    if place == path:
        raise DstoolsError(
            f"{path}: its name has no suffix to leave out", "name a folder: --out DIR"
        )
    with locked(place):
        yield Pipeline(Places(read, place, resolve), workers, count_bar)


def _line(chain: str, stage: str, done: "Done") -> str:
    """Return a line about a stage: what came of it."""
    where = f"{chain}/{stage}" if chain else stage
    return f"{where:24} {_said(done.report)}{'  (was done)' if done.is_reused else ''}"


def _said(report: dict[str, Any]) -> str:
    """Return what is worth knowing of a report: scores, steps, or rows in and out with their losses."""
    if "models" in report:
        return ", ".join(
            f"{name} {found['pass@1']['value']:.1%} pass@1 ({found['pass@1']['low']:.1%} to "
            f"{found['pass@1']['high']:.1%}) on {found['problems']} problems"
            for name, found in report["models"].items()
        )
    if "steps" in report:
        return f"{report['steps']:,} steps, {report['parameters']:,} parameters"
    if "files" in report:
        return ", ".join(report["files"])
    lost = [f"{count:,} {why}" for why, count in report["dropped"].items() if count]
    return ", ".join([f"{report['in']:,} -> {report['out']:,}", *lost])


def _finish(
    pipeline: "Pipeline", done: "list[tuple[str, str, Done]]", as_json: bool, text: str
) -> None:
    """Print what was done."""
    stages = [
        {"chain": chain, "stage": stage} | asdict(each) | {"folder": str(each.folder)}
        for chain, stage, each in done
    ]
    if as_json or text:
        show(Result(str(pipeline.places.out), stages), as_json, text)
    from dstools_distill.recipe.stages import TRAINED

    trained = [each.folder for _, stage, each in done if stage in TRAINED]
    if done[-1][1] == "card" and trained:
        hint_command("quantize", str(trained[-1]), "OUT")
