"""Which samples are right, and how that is known: a verdict of three values, with its reason.

| verdict | means |
|---|---|
| correct | every check that was asked for passed |
| incorrect | one did not: unfinished, no think block, another answer, a wrong step, language, repetition |
| unverifiable | nobody can tell: no gold, gold or answer in a form that is not read, checkers that disagree |

What is unverifiable never counts as right.
"""

from types import TracebackType
from typing import Any, Self

from dstools_distill.records import Record, split
from dstools_distill.settings import Verify


class Judge:
    """Judges samples one by one; a context manager, which ends the processes that it started.

    It may be used without `with`: the processes then end when it is collected, or with this process.
    """

    def __init__(self, settings: Verify) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that were started."""

    def judge(self, record: Record) -> dict[str, Any]:
        """Return the fields that `verify` adds to a record which has its prompt and sample fields.

        Read: gold, answer_type, task, raw, prefilled_think, finish_reason. Returned:
        verdict: "correct", "incorrect" or "unverifiable";
        verdict_reason: a stable word, or "word: detail";
        checkers: names of what compared the answers, e.g. ["math-verify", "numeric"];
        steps: null, or {"count": steps checked, "fault": null or "word: detail"};
        language: null, or the share of words in the language that was asked for;
        repetition: the share of the text that repeats runs of 20 words.

        Raises DstoolsError where a code answer comes and bubblewrap is missing.
        """
        parts = split(record["raw"], record["prefilled_think"])
        verdict, reason = "unverifiable", "no-gold"
        if record["finish_reason"] != "stop":
            verdict, reason = "incorrect", f"unfinished: {record['finish_reason']}"
        elif parts.reasoning is None:
            verdict, reason = "incorrect", "think-block"
        elif record["gold"] is not None:
            is_right = parts.answer.strip() == record["gold"]
            verdict, reason = ("correct", "equal") if is_right else ("incorrect", "differs")
        return {
            "verdict": verdict,
            "verdict_reason": reason,
            "checkers": [],
            "steps": None,
            "language": None,
            "repetition": 0.0,
        }
