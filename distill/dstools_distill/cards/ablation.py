"""Runs against each other: arms over their seeds, or runs over the same problems."""

from dstools_converters.markdown import text
from dstools_distill.cards.markdown import NONE, between, percent, points, table
from dstools_distill.cards.runs import Runs, Stage
from dstools_distill.evaluation.statistics import Interval, over_seeds, paired_difference


def comparison(runs: Runs) -> list[str]:
    """Compare arms over their seeds, or runs over the problems, with the first one."""
    measured = list(runs.evaluated())
    if len(measured) < 2:
        return []
    if runs.arms:
        return ["## Ablation", *_arms(runs)]
    first = measured[0][1]
    rows = []
    for run, each in measured[1:]:
        difference = _over_problems(first, each)
        said = points_between(difference) if difference else "other problems"
        rows.append((run.name, points(difference.value) if difference else NONE, said))
    head = ("Run", f"pass@1 against {text(measured[0][0].name)}, points", "Interval")
    return ["## Runs compared", table(head, rows, numeric=2), PAIRED]


PAIRED = "Intervals of differences are over the problems, which are the same: Agresti and Min's."


def _arms(runs: Runs) -> list[str]:
    arms = {
        arm: {seed: run.stages["eval"] for seed, run in seeds.items() if "eval" in run.stages}
        for arm, seeds in runs.arms.items()
    }
    arms = {arm: seeds for arm, seeds in arms.items() if seeds}
    first_name, first = next(iter(arms.items()))
    rows = []
    for arm, seeds in arms.items():
        values = {seed: each.figures["pass@1"]["value"] for seed, each in seeds.items()}
        mean = over_seeds(list(values.values())) if len(values) > 1 else None
        rows.append(
            (
                arm,
                percent(sum(values.values()) / len(values)),
                between(mean.low, mean.high) if mean else NONE,
                ", ".join(f"{seed}: {percent(value)}" for seed, value in values.items()),
                *(("", "") if arm == first_name else _against(first, seeds)),
            )
        )
    head = (
        "Arm",
        "pass@1",
        "Interval",
        "By seed",
        f"Against {text(first_name)}, points",
        "Interval of that",
    )
    explained = (
        "Means over seeds, with Student's interval at 95 % over them; it may reach past 0 and 100 %. "
        "They tell how much runs differ, not how few the problems are: that is in the table above. Differences "
        "are between runs of the same seed."
    )
    if any(len(seeds) == 1 for seeds in arms.values()):
        explained += f" Of an arm with one seed, the spread over seeds is not known. {PAIRED}"
    return [table(head, rows, numeric=5), explained]


def _against(first: dict[int, Stage], seeds: dict[int, Stage]) -> tuple[str, str]:
    """Return the difference of an arm to the first one, and its interval."""
    common = [seed for seed in seeds if seed in first]
    if not common:
        return NONE, "no common seed"
    found = [_over_problems(first[seed], seeds[seed]) for seed in common]
    differences = [difference for difference in found if difference]
    if len(differences) < len(found):
        return NONE, "other problems"
    if len(differences) == 1:
        return points(differences[0].value), points_between(differences[0])
    mean = over_seeds([difference.value for difference in differences])
    return points(mean.value), points_between(mean)


def _over_problems(first: Stage, second: Stage) -> Interval | None:
    """Return the difference over the same problems; None where they are others."""
    if set(first.scores) != set(second.scores):
        return None
    problems = list(first.scores)
    return paired_difference(
        [first.scores[each] for each in problems], [second.scores[each] for each in problems]
    )


def points_between(found: Interval) -> str:
    """Spell the interval of a difference: "+3.1 to +12.0"."""
    return between(found.low, found.high, points)
