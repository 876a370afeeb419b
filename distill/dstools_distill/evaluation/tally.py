"""Figures of one model in an evaluation, counted from its judged answers."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from dstools_converters.model.reasoning import split
from dstools_distill import records
from dstools_distill.evaluation.statistics import Interval, maj_at_k, pass_at_k, share
from dstools_distill.judge.prose import LATIN, SCRIPTS, STOPS, UNSPOKEN, WORD
from dstools_distill.records import Record

PLACES = 6  # decimals written: more is noise, and the last bits differ between machines
Scores = dict[str, tuple[int, int]]  # by problem: right answers, answers


def tally(answers: Path, k: tuple[int, ...]) -> tuple[dict[str, Any], Scores]:
    """Return the figures of a model, as JSON, and the right answers to each problem.

    answers: records with verdict, lenient and vote, those of a problem one after the other. Shares
    are of all answers. "pass@1" is strict: finished, in the requested form, and right; "lenient"
    also counts what `evaluate.last_answer` returns for any text, and is not a pass@1. "truncated"
    reached max_tokens or the end of the context; "not_well_formed" ended without its one think
    block.
    """
    right: list[int] = []
    lenient, pass_at, maj_at = [], [list[float]() for _ in k], [list[float]() for _ in k]
    counts, tokens, languages = Counter[str](), 0, Counter[str]()
    scores: Scores = {}
    samples = 0
    for problem, group in groupby(records.read(answers), lambda record: record["id"]):
        of_problem = list(group)
        samples = len(of_problem)
        correct = sum(record["verdict"] == "correct" for record in of_problem)
        scores[problem] = (correct, samples)
        right.append(correct)
        lenient.append(fmean(record["lenient"] for record in of_problem))
        votes = _votes(of_problem)
        for n, size in enumerate(k):
            pass_at[n].append(pass_at_k(samples, correct, size))
            maj_at[n].append(maj_at_k(*votes, size))
        for record in of_problem:
            word = record["verdict_reason"].partition(":")[0]
            counts[f"{record['verdict']}: {word}"] += 1
            tokens += record["usage"]["completion_tokens"]
            languages.update(language_mix(_trace(record)))
    total = samples * len(right)
    words = languages.total()
    figures = {
        "problems": len(right),
        "answers": total,
        "pass@1": as_json(share([n / samples for n in right], total)),
        "lenient": as_json(share(lenient, total)),
        "pass@k": {str(n): as_json(share(pass_at[i], total)) for i, n in enumerate(k)},
        "maj@k": {str(n): as_json(share(maj_at[i], total)) for i, n in enumerate(k)},
        "truncated": round(counts["incorrect: unfinished"] / total, PLACES),
        "not_well_formed": round(counts["incorrect: think-block"] / total, PLACES),
        "reasons": dict(sorted(counts.items())),
        "mean_tokens": round(tokens / total, 1),
        "language_mix": {k: round(n / words, PLACES) for k, n in sorted(languages.items())},
    }
    return figures, scores


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
