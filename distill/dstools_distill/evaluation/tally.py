"""Figures of one model in an evaluation, counted from its judged answers."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from dstools_converters.model.reasoning import split
from dstools_distill import records
from dstools_distill.evaluation.statistics import (
    Interval,
    maj_at_k,
    paired_difference,
    pass_at_k,
    share,
)
from dstools_distill.judge.prose import LATIN, SCRIPTS, STOPS, UNSPOKEN, WORD
from dstools_distill.records import Record

PLACES = 6  # decimals written: more is noise, and the last bits differ between machines
UNKNOWN = Interval(0.0, 0.0, 1.0)  # of no judged answer
Scores = dict[str, tuple[int, int]]  # by problem: right answers, judged answers


def tally(answers: Path, k: tuple[int, ...]) -> tuple[dict[str, Any], Scores]:
    """Return the figures of a model, as JSON, and the right answers to each problem.

    answers: records with verdict, lenient and vote, those of a problem one after the other.
    "pass@1" is strict: finished, in the requested form, and right; "lenient" also counts what
    `evaluate.last_answer` returns for any text, and is not a pass@1. These two, pass@k and maj@k
    are of judged answers, for k of problems with k of them. Shares of all answers: "unverifiable"
    ones, which could not be judged; "truncated" ones, which reached max_tokens or the end of the
    context; "not_well_formed" ones, which ended without a trace in their one think block.
    """
    right, lenient = list[float](), list[float]()
    pass_at, maj_at = [list[float]() for _ in k], [list[float]() for _ in k]
    counts, tokens, languages = Counter[str](), 0, Counter[str]()
    scores: Scores = {}
    total = count = 0
    for problem, group in groupby(records.read(answers), lambda record: record["id"]):
        of_problem = list(group)
        judged = [record for record in of_problem if record["verdict"] != "unverifiable"]
        correct = sum(record["verdict"] == "correct" for record in judged)
        scores[problem] = (correct, len(judged))
        total, count = total + len(of_problem), count + len(judged)
        if judged:
            right.append(correct / len(judged))
            lenient.append(fmean(record["lenient"] for record in judged))
        votes = _votes(judged)
        for n, size in enumerate(k):
            if size <= len(judged):
                pass_at[n].append(pass_at_k(len(judged), correct, size))
                maj_at[n].append(maj_at_k(*votes, size))
        for record in of_problem:
            word = record["verdict_reason"].partition(":")[0]
            counts[f"{record['verdict']}: {word}"] += 1
            tokens += record["usage"]["completion_tokens"]
            languages.update(language_mix(_trace(record)))
    words = languages.total()
    figures = {
        "problems": len(scores),
        "answers": total,
        "pass@1": _share(right, count),
        "lenient": _share(lenient, count),
        "pass@k": {str(n): _share(pass_at[i], count) for i, n in enumerate(k)},
        "maj@k": {str(n): _share(maj_at[i], count) for i, n in enumerate(k)},
        "unverifiable": round((total - count) / total, PLACES),
        "truncated": round(counts["incorrect: unfinished"] / total, PLACES),
        "not_well_formed": round(counts["incorrect: think-block"] / total, PLACES),
        "reasons": dict(sorted(counts.items())),
        "mean_tokens": round(tokens / total, 1),
        "language_mix": {k: round(n / words, PLACES) for k, n in sorted(languages.items())},
    }
    return figures, scores


def difference(first: Scores, last: Scores) -> Interval | None:
    """Return the difference of pass@1 over the problems to which both have judged answers.

    None if there are none.
    """
    both = [problem for problem in first if first[problem][1] and last[problem][1]]
    if not both:
        return None
    before = [first[problem][0] / first[problem][1] for problem in both]
    after = [last[problem][0] / last[problem][1] for problem in both]
    return paired_difference(before, after)


def _share(means: list[float], judged: int) -> dict[str, float]:
    return as_json(share(means, judged) if means else UNKNOWN)


def as_json(interval: Interval) -> dict[str, float]:
    """Return a figure with its interval, rounded, as JSON."""
    return {name: round(value, PLACES) for name, value in interval._asdict().items()}


def _votes(of_problem: list[Record]) -> tuple[int, list[int], int]:
    """Return the votes for the right answer and for each other one, and the number of abstentions.

    A right answer is right however it is spelled; others are distinguished by their text.
    """
    is_right = {record["vote"] for record in of_problem if record["verdict"] == "correct"}
    cast = Counter(record["vote"] for record in of_problem)
    silent = cast.pop(None, 0)
    right = sum(count for vote, count in cast.items() if vote in is_right)
    return right, [cast[vote] for vote in sorted(cast) if vote not in is_right], silent


def _trace(record: Record) -> str:
    """Return the reasoning, or the whole text if it cannot be split."""
    reasoning = split(record["raw"], record["prefilled_think"]).reasoning
    return record["raw"] if reasoning is None else reasoning


def language_mix(text: str) -> Counter[str]:
    """Return the number of words by language, without code, formulas and single letters.

    A script counts for the first language that prose.py lists for it. A line in Latin letters
    counts for the language with the most frequent words in it, for "latin" without any or with a
    tie.
    """
    mix: Counter[str] = Counter()
    for line in UNSPOKEN.sub(" ", text).split("\n"):
        words = WORD.findall(line.lower())
        latin = [word for word in words if LATIN.match(word)]
        if latin:
            spoken = Counter(name for word in latin for name in STOPS.get(word, ()))
            best = spoken.most_common(2)
            is_clear = len(best) == 1 or (len(best) == 2 and best[0][1] > best[1][1])
            mix[best[0][0] if is_clear else "latin"] += len(latin)
        for word in words:
            if not LATIN.match(word):
                mix[_script(word[0])] += 1
    return mix


def _script(letter: str) -> str:
    for name, ranges in SCRIPTS.items():
        starts, ends = ranges[::3], ranges[2::3]
        if any(low <= letter <= high for low, high in zip(starts, ends, strict=True)):
            return name
    return "other"
