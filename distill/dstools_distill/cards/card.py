"""The card of a recipe: what was made, from what, and how good it is.

DATA.md          sources, rows kept and dropped at every stage, verification, decontamination, licences
README.md        the model's: metadata for the Hub, results, ablation, training, what was not checked
loss.png         by step, of sft and kd; reward.png of grpo
pass_at_1.png    of every run, with its interval

All is read from the manifests of finished stages, and a number that was not measured is not told: a stage
that is missing is named under "Not checked". What the stages cost is not in here, for that differs from
time to time: it lies in their timing.json.
"""

from pathlib import Path

from dstools_distill.cards import curves, datacard, modelcard
from dstools_distill.cards.runs import Runs
from dstools_distill.evaluation.statistics import Interval
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import Report, Work

DATA, MODEL = "DATA.md", "README.md"
LOSS, REWARD, PASS = "loss.png", "reward.png", "pass_at_1.png"


def card(
    settings: Card, students: dict[str, Student], stages: dict[str, dict[str, Path]], work: Work
) -> Report:
    """Write the cards, and return the names of the files.

    students: of each run; `model` as it may be told: org/name, or the name of a folder. stages: the folders
    of the finished stages of each run: {"verified-0": {"prompts": ..., "eval": ...}}, the first run being
    what others are compared with; {"": ...} for a recipe with one.
    """
    runs = Runs(stages, students)
    plots = _plots(runs, work.folder)
    _write(work.folder / DATA, datacard.text_of(settings, runs))
    _write(work.folder / MODEL, modelcard.text_of(settings, runs, plots))
    return {
        "in": sum(len(folders) for folders in stages.values()),
        "out": 2 + len(plots),
        "dropped": {},
        "files": [DATA, MODEL, *plots],
    }


def _plots(runs: Runs, folder: Path) -> list[str]:
    """Plot what there is, and return the names of the files."""
    written = []
    for file, key, stages in ((LOSS, "loss", ("sft", "kd")), (REWARD, "reward", ("grpo",))):
        found = {
            " ".join(filter(None, (label, stage))): each.curve(key)
            for stage in stages
            for label, each in runs.distinct(stage)
        }
        found = {name: curve for name, curve in found.items() if curve}
        if found:
            curves.lines(folder / file, f"{key.capitalize()} by step", key, found)
            written.append(file)
    measured = {
        " ".join(filter(None, (run.name, model))): Interval(**figures["pass@1"])
        for run, each in runs.evaluated()
        for model, figures in each.report["models"].items()
    }
    if measured:
        title = "Strict pass@1 with its interval at 95 %, over the problems"
        curves.intervals(folder / PASS, title, "pass@1, %", measured)
        written.append(PASS)
    return written


def _write(path: Path, said: str) -> None:
    path.write_text(said, encoding="utf-8")
