"""Rewards of GRPO: the right answer, the right form, the right language; rules without a model.

A neural reward is hacked at scale; DeepSeek-R1 used rules for reasoning (arXiv 2501.12948, section
2.2.2).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dstools_converters.model.reasoning import split
from dstools_distill.judge.prose import language_share
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Grpo
from dstools_distill.records import Record

Reward = Callable[..., list[float | None]]
FLAT = "groups_without_spread"


class Rewards(NamedTuple):
    """Reward functions and their weights, as a trainer of TRL takes them."""

    functions: list[Reward]
    weights: list[float]


def rewards(settings: Grpo, judge: Judge, tokenizer: Any, ends: Sequence[int]) -> Rewards:
    """Return the rewards with a weight above 0.

    Each is called with `completion_ids`, the token ids of every answer, and `record`, the prompt's
    record with prefilled_think as JSON; it returns a number from 0 to 1 per answer. An answer ends
    with the first id of `ends`; one without any was cut at the length limit.

    accuracy: 1 if the judge's verdict is correct; 0 for an unverifiable answer.
    format: 1 if the answer ended, with one well-formed think block and text in and after it.
    language: the share of the trace's words in `settings.language`; 0 without a trace.
    """

    def samples(completion_ids: list[list[int]], record: list[str]) -> list[Record]:
        return [
            sample(json.loads(prompt), ids, tokenizer, ends)
            for ids, prompt in zip(completion_ids, record, strict=True)
        ]

    def accuracy(
        completion_ids: list[list[int]], record: list[str], **_: Any
    ) -> list[float | None]:
        verdicts = [judge.judge(answer)["verdict"] for answer in samples(completion_ids, record)]
        return [float(verdict == "correct") for verdict in verdicts]

    def format(completion_ids: list[list[int]], record: list[str], **_: Any) -> list[float | None]:
        return [float(is_well_formed(answer)) for answer in samples(completion_ids, record)]

    def language(
        completion_ids: list[list[int]], record: list[str], **_: Any
    ) -> list[float | None]:
        traces = [answer["reasoning"] for answer in samples(completion_ids, record)]
        return [language_share(trace or "", settings.language) or 0.0 for trace in traces]

    weighted = [
        (accuracy, settings.accuracy_weight),
        (format, settings.format_weight),
        (language, settings.language_weight),
    ]
    used = [(function, weight) for function, weight in weighted if weight > 0]
    functions = logging_flat_groups([function for function, _ in used], settings.group_size)
    return Rewards(functions, [weight for _, weight in used])


def logging_flat_groups(functions: list[Reward], group_size: int) -> list[Reward]:
    """Return the functions, the last of which also logs the share of groups with equal rewards.

    TRL checks whether the spread of the weighted sums is 0, which float32 misses for a weight such
    as 0.2.
    """
    earned: list[list[float | None]] = []

    def logging(function: Reward) -> Reward:
        def logged(
            *, log_metric: Callable[[str, float], None], **options: Any
        ) -> list[float | None]:
            values = function(**options)
            earned.append(values)
            if len(earned) == len(functions):
                answers = list(zip(*earned, strict=True))
                starts = range(0, len(answers), group_size)
                flat = [len(set(answers[start : start + group_size])) == 1 for start in starts]
                log_metric(FLAT, sum(flat) / len(flat))
                earned.clear()
            return values

        logged.__name__ = function.__name__
        return logged

    return [logging(function) for function in functions]


def sample(prompt: Record, ids: list[int], tokenizer: Any, ends: Sequence[int]) -> Record:
    """Return a record for the judge: the prompt's, with the answer up to its end token."""
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    raw = tokenizer.decode(ids[:stop], skip_special_tokens=False)
    parts = split(raw, prompt["prefilled_think"])
    return prompt | {
        "raw": raw,
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "finish_reason": "length" if stop is None else "stop",
    }


def is_well_formed(answer: Record) -> bool:
    """Return whether an answer ended, with text in its one think block and after it."""
    is_whole = answer["finish_reason"] == "stop" and bool((answer["reasoning"] or "").strip())
    return is_whole and bool(answer["answer"].strip())
