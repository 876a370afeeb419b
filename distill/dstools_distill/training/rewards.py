"""What GRPO pays for: the right answer, the right form, the right language. Rules, no model.

A neural reward is hacked at scale; DeepSeek-R1 took rules for reasoning (arXiv 2501.12948, section 2.2.2).
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from dstools_distill import records
from dstools_distill.judge.prose import language_share
from dstools_distill.judge.verify import Judge
from dstools_distill.recipe.settings import Grpo
from dstools_distill.records import Record

Reward = Callable[..., list[float | None]]
FLAT = "groups_without_spread"


class Rewards(NamedTuple):
    """What a trainer of TRL takes: functions and their weights."""

    functions: list[Reward]
    weights: list[float]


def rewards(settings: Grpo, judge: Judge, tokenizer: Any) -> Rewards:
    """Return the rewards with a weight above 0.

    Each is called with `completion_ids`, a list of token ids for every answer, and `record`, the prompt's
    record and prefilled_think as JSON, and returns a number from 0 to 1 for each. An answer ends with the
    tokenizer's eos; one without was cut at the length limit.

    accuracy: 1 where the judge says correct. What is unverifiable earns nothing.
    format: 1 where the answer ended, with one well-formed think block and something behind it.
    language: the share of the trace's words in `settings.language`; 0 without a trace.
    """

    def samples(completion_ids: list[list[int]], record: list[str]) -> list[Record]:
        return [
            sample(json.loads(asked), ids, tokenizer)
            for ids, asked in zip(completion_ids, record, strict=True)
        ]

    def accuracy(
        completion_ids: list[list[int]], record: list[str], **_: Any
    ) -> list[float | None]:
        said = [judge.judge(each)["verdict"] for each in samples(completion_ids, record)]
        return [float(verdict == "correct") for verdict in said]

    def format(completion_ids: list[list[int]], record: list[str], **_: Any) -> list[float | None]:
        return [float(is_well_formed(each)) for each in samples(completion_ids, record)]

    def language(
        completion_ids: list[list[int]], record: list[str], **_: Any
    ) -> list[float | None]:
        traces = [each["reasoning"] for each in samples(completion_ids, record)]
        return [language_share(trace or "", settings.language) or 0.0 for trace in traces]

    weighted = [
        (accuracy, settings.accuracy_weight),
        (format, settings.format_weight),
        (language, settings.language_weight),
    ]
    used = [(function, weight) for function, weight in weighted if weight > 0]
    functions = _noting_flat_groups([function for function, _ in used], settings.group_size)
    return Rewards(functions, [weight for _, weight in used])


def _noting_flat_groups(functions: list[Reward], group_size: int) -> list[Reward]:
    """Return the same functions; the last one logs the share of groups whose answers all earned the same.

    TRL looks whether the spread of the weighted sums is 0, which float32 misses for a weight such as 0.2.
    """
    earned: list[list[float | None]] = []

    def noting(function: Reward) -> Reward:
        def note(*, log_metric: Callable[[str, float], None], **given: Any) -> list[float | None]:
            found = function(**given)
            earned.append(found)
            if len(earned) == len(functions):
                answers = list(zip(*earned, strict=True))
                starts = range(0, len(answers), group_size)
                flat = [len(set(answers[start : start + group_size])) == 1 for start in starts]
                log_metric(FLAT, sum(flat) / len(flat))
                earned.clear()
            return found

        note.__name__ = function.__name__
        return note

    return [noting(function) for function in functions]


def sample(asked: Record, ids: list[int], tokenizer: Any) -> Record:
    """Return a record that can be judged: the prompt's, and the answer up to its end token."""
    stop = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
    raw = tokenizer.decode(ids[:stop], skip_special_tokens=False)
    parts = records.split(raw, asked["prefilled_think"])
    return asked | {
        "raw": raw,
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "finish_reason": "length" if stop is None else "stop",
    }


def is_well_formed(answered: Record) -> bool:
    """Tell whether an answer ended, with one think block and something behind it."""
    is_whole = answered["finish_reason"] == "stop" and answered["reasoning"] is not None
    return is_whole and bool(answered["answer"].strip())
