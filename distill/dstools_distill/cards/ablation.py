"""Comparison of runs: arms over their seeds, or runs over the same problems."""

from dstools_converters.markdown import table, text
from dstools_distill.cards.markdown import NONE, between, percent, points
from dstools_distill.cards.runs import Runs, Stage
from dstools_distill.evaluation.statistics import Interval, over_seeds
from dstools_distill.evaluation.tally import difference

PAIRED = "Intervals of differences are Agresti and Min's, over the problems, which are the same."
SEEDS = (
    "Means over seeds, with Student's interval at 95 % over them; it may reach past 0 and 100 %. "
    "It shows how much runs differ; for how few the problems are, see the table above. "
    "Differences are between runs of the same seed."
)


def comparison(runs: Runs) -> list[str]:
    """Compare arms over their seeds, or runs over the problems, with the first one."""
    measured = list(runs.evaluated())
    if len(measured) < 2:
        return []
    if runs.arms:
        return ["## Ablation", *_arms(runs)]
    first_run, first = measured[0]
    rows = []
    for run, evaluation in measured[1:]:
        difference = _over_problems(first, evaluation)
        if difference is None:
            rows.append((run.name, NONE, "other problems"))
        else:
            rows.append((run.name, points(difference.value), points_between(difference)))
    head = ("Run", f"pass@1 against {text(first_run.name)}, points", "Interval")
    return ["## Runs compared", table(head, rows, numeric=2), PAIRED]


def points_between(interval: Interval) -> str:
    """Return the interval of a difference as text: "+3.1 to +12.0"."""
    return between(interval.low, interval.high, points)


def _arms(runs: Runs) -> list[str]:
    arms = {
        arm: {seed: run.stages["eval"] for seed, run in seeds.items() if "eval" in run.stages}
        for arm, seeds in runs.arms.items()
    }
    arms = {arm: seeds for arm, seeds in arms.items() if seeds}
    first_name, first = next(iter(arms.items()))
    rows = []
    for arm, seeds in arms.items():
        values = {seed: stage.figures["pass@1"]["value"] for seed, stage in seeds.items()}
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
    against = f"Against {text(first_name)}, points"
    head = ("Arm", "pass@1", "Interval", "By seed", against, "Interval of that")
    note = SEEDS
    if any(len(seeds) == 1 for seeds in arms.values()):
        note += f" The spread over seeds of an arm with one seed is not known. {PAIRED}"
    return [table(head, rows, numeric=5), note]


def _against(first: dict[int, Stage], seeds: dict[int, Stage]) -> tuple[str, str]:
    """Return the difference of an arm to the first one, and its interval."""
    common = [seed for seed in seeds if seed in first]
    if not common:
        return NONE, "no common seed"
    by_seed = [_over_problems(first[seed], seeds[seed]) for seed in common]
    differences = [difference for difference in by_seed if difference]
    if len(differences) < len(by_seed):
        return NONE, "other problems"
    if len(differences) == 1:
        return points(differences[0].value), points_between(differences[0])
    mean = over_seeds([difference.value for difference in differences])
    return points(mean.value), points_between(mean)


def _over_problems(first: Stage, second: Stage) -> Interval | None:
    """Return the difference over the same problems; None where the problems differ."""
    if set(first.scores) != set(second.scores):
        return None
    return difference(first.scores, second.scores)
