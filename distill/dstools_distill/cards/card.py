"""Data card and model card of a recipe: what was made from what, and how good it is.

DATA.md         sources, rows kept and dropped by every stage, verification, licences
README.md       metadata for the Hub, results, ablation, training, what was not checked
loss.svg        by step, of sft and kd; reward.svg of grpo
pass_at_1.svg   of every run, with its interval

Everything is read from the manifests of finished stages. A missing stage is named under "Not
checked". What the stages cost differs from run to run and is left out; see their timing.json.
"""

from pathlib import Path

from dstools_distill.cards import curves, datacard, modelcard
from dstools_distill.cards.runs import Runs
from dstools_distill.evaluation.statistics import Interval
from dstools_distill.recipe.settings import Card, Student
from dstools_distill.store.stage import Report, Work

DATA, MODEL = "DATA.md", "README.md"
LOSS, REWARD, PASS = "loss.svg", "reward.svg", "pass_at_1.svg"


def card(
    settings: Card, students: dict[str, Student], stages: dict[str, dict[str, Path]], work: Work
) -> Report:
    """Write the cards, and return the names of the files.

    students: of each run, `model` as it may be published: org/name, or the name of a folder.
    stages: the folders of the finished stages by run, {"verified-0": {"prompts": ..., ...}}, or
    {"": ...} of a recipe with one run. Others are compared with the first run.
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
    """Plot what was measured, and return the names of the files."""
    written = []
    for file, key, stages in ((LOSS, "loss", ("sft", "kd")), (REWARD, "reward", ("grpo",))):
        by_name = {
            " ".join(filter(None, (label, name))): stage.curve(key)
            for name in stages
            for label, stage in runs.distinct(name)
        }
        by_name = {name: curve for name, curve in by_name.items() if curve}
        if by_name:
            svg = curves.lines(key, f"{key.capitalize()} by step", key, by_name)
            _write(folder / file, svg)
            written.append(file)
    measured = {
        " ".join(filter(None, (run.name, model))): Interval(**figures["pass@1"])
        for run, stage in runs.evaluated()
        for model, figures in stage.report["models"].items()
    }
    if measured:
        title = "Strict pass@1 with its interval at 95 %, over the problems"
        _write(folder / PASS, curves.intervals("pass", title, "pass@1, %", measured))
        written.append(PASS)
    return written


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
