"""Which samples are right, and how that is known: a verdict of three values, with its reason.

| verdict | means |
|---|---|
| correct | every check that was asked for passed |
| incorrect | one did not: unfinished, no think block, another answer, a wrong step, language, repetition |
| unverifiable | nobody can tell: no gold, gold or answer in a form that is not read, checkers that disagree |

What is unverifiable never counts as right. All rows are kept, each with its verdict; `select` chooses.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError
from dstools_distill.judge import sandbox, steps
from dstools_distill.judge.answers import DIGITS, INTEGER, RIGHT, Ruling, compare, integers
from dstools_distill.judge.extract import final_answer
from dstools_distill.judge.prose import LANGUAGES, language_share, repetition
from dstools_distill.judge.referee import Referee
from dstools_distill.recipe.settings import Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import CLOSE, OPEN, Record, dump, split
from dstools_distill.store.rows import Chunk, Rows, each_record, map_rows
from dstools_distill.store.stage import Report, Work

RIGHT_SCORE = 0.99  # of reasoning-gym's 0 to 1; less is partly right, which is wrong
PLACES = 4  # of shares
ONE_VALUED = ("chain_sum",)  # tasks of which another integer is wrong, without asking the scorer


def verify(settings: Verify, inputs: Inputs, work: Work) -> Report:
    """Add the verdict to each row of samples/records.jsonl; return the counts of verdicts and reasons.

    The report: in, out, dropped (none); verdicts {verdict: n}; reasons {verdict: {word: n}};
    checkers {names: n}; steps_checked, rows; answers_right_steps_wrong, which of the incorrect have a right answer and a
    wrong step. Raises DstoolsError where a row is bad, or code comes and bubblewrap is missing.
    """
    source = inputs.samples / "records.jsonl"
    counts = map_rows(source, work, ("records.jsonl",), _rows_of, settings, source, what="verify")
    reasons: dict[str, dict[str, int]] = {}
    for key in sorted(key for key in counts if key.startswith("reason ")):
        _, verdict, word = key.split(" ", 2)
        reasons.setdefault(verdict, {})[word] = counts[key]
    return {
        "in": counts["rows"],
        "out": counts["rows"],
        "dropped": {},
        "verdicts": {verdict: sum(words.values()) for verdict, words in reasons.items()},
        "reasons": reasons,
        "checkers": {
            key.removeprefix("checkers "): counts[key]
            for key in sorted(counts)
            if key.startswith("checkers ")
        },
        "steps_checked": counts["steps"],
        "answers_right_steps_wrong": reasons.get("incorrect", {}).get("wrong-step", 0),
    }


def _rows_of(settings: Verify, source: Path) -> Callable[[Rows], Chunk]:
    """Return what a worker does with its rows."""
    judge = Judge(settings)

    def process(rows: Rows) -> Chunk:
        lines, counts = [], Counter[str]()
        for record in each_record(source, rows):
            found = judge.judge(record)
            counts["rows"] += 1
            counts[f"reason {found['verdict']} {found['verdict_reason'].partition(':')[0]}"] += 1
            counts["steps"] += bool(
                found["steps"] and (found["steps"]["right"] or found["steps"]["fault"])
            )
            if found["checkers"]:
                counts[f"checkers {' + '.join(found['checkers'])}"] += 1
            lines.append(dump(record | found))
        return Chunk({"records.jsonl": b"".join(lines)}, counts)

    return process


class Judge:
    """Judges samples one by one; `close` ends the process that it may have started.

    Without, the process ends when the judge is collected, or with this process.
    Raises DstoolsError for a language that cannot be told.
    """

    def __init__(self, settings: Verify) -> None:
        if settings.language and settings.language not in LANGUAGES:
            raise DstoolsError(
                f"verify.language {settings.language} cannot be told from others",
                f"one of {', '.join(sorted(LANGUAGES))}",
            )
        self._settings = settings
        self._referee = Referee(settings.timeout_seconds)

    def close(self) -> None:
        """End the process that was started; a later question starts another."""
        self._referee.close()

    def judge(self, record: Record) -> dict[str, Any]:
        """Return the fields that `verify` adds to a record which has its prompt and sample fields.

        Read: gold, answer_type, task, raw, prefilled_think, finish_reason. Returned:
        verdict: "correct", "incorrect" or "unverifiable";
        verdict_reason: a stable word, or "word: detail";
        checkers: names of what compared the answers, e.g. ["numeric", "math-verify"];
        steps: null, or {"right": columns and totals that are, "fault": null or "word: detail"};
        language: null, or the share of words in the language that was asked for;
        repetition: the share of the text that repeats runs of 20 words.

        Raises DstoolsError where a code answer comes and bubblewrap is missing.
        """
        settings, raw = self._settings, record["raw"]
        parts = split(raw, record["prefilled_think"])
        language = language_share(raw, settings.language) if settings.language else None
        repeated = repetition(raw)
        checked: steps.Steps | None = None
        if record["finish_reason"] != "stop":
            ruling = Ruling("incorrect", f"unfinished: {record['finish_reason']}")
        elif parts.reasoning is None and (settings.reasoning or OPEN in raw or CLOSE in raw):
            ruling = Ruling("incorrect", "think-block")
        else:
            ruling = self._rule(record, parts.answer)
            if settings.steps and parts.reasoning is not None:
                checked = _check_steps(record["task"], parts.reasoning, parts.answer)
        if ruling.verdict == "incorrect" and checked and (checked.fault or "").startswith("answer"):
            ruling = ruling._replace(reason=f"miscopied: {checked.fault}")
        if ruling.verdict == "correct":
            ruling = _look_at_text(ruling, checked, language, repeated, settings)
        return {
            "verdict": ruling.verdict,
            "verdict_reason": ruling.reason,
            "checkers": list(ruling.checkers),
            "steps": checked._asdict() if checked else None,
            "language": language if language is None else round(language, PLACES),
            "repetition": round(repeated, PLACES),
        }

    def _rule(self, record: Record, answer: str) -> Ruling:
        """Compare the answer in the way of its task or type."""
        gold, kind, task = record["gold"], record["answer_type"], record["task"]
        if task is not None:
            return _score(answer, task, self._referee)
        if kind == "code" and gold is not None:
            return _run_code(answer, gold, self._settings)
        return compare(answer, gold, kind, self._referee)


def _look_at_text(
    ruling: Ruling,
    checked: steps.Steps | None,
    language: float | None,
    repeated: float,
    settings: Verify,
) -> Ruling:
    """Refuse a right answer for what stands before it."""
    reason = ""
    if checked and checked.fault:
        reason = f"wrong-step: {checked.fault}"
    elif language is not None and language < settings.min_language:
        reason = f"language: {language:.2f} {settings.language}"
    elif repeated > settings.max_repetition:
        reason = f"repetition: {repeated:.2f}"
    return Ruling("incorrect", reason, ruling.checkers) if reason else ruling


def _check_steps(task: dict[str, Any] | None, reasoning: str, answer: str) -> steps.Steps | None:
    """Check the steps where the task has a checker for them."""
    if task is None or task["name"] != "chain_sum":
        return None
    said = final_answer(answer).text or answer
    return steps.check(task["entry"]["metadata"]["expression"], reasoning, said)


def _score(answer: str, task: dict[str, Any], referee: Referee) -> Ruling:
    """Rule by reasoning-gym's scorer; the oracle's own text needs none."""
    oracle: str | None = task["entry"][
        "answer"
    ]  # some tasks have many right answers, and name none
    said = answer.strip()
    if said == oracle:
        return RIGHT
    found = final_answer(said)
    if found.problem in ("several-answers", "taken-back"):
        return Ruling("incorrect", found.problem)
    said = found.text or said
    if said == oracle:
        return RIGHT
    if oracle and INTEGER.fullmatch(oracle) and DIGITS.fullmatch(said):
        ruling = integers(said, oracle)
        if ruling.reason.startswith("not-canonical") or task["name"] in ONE_VALUED:
            return ruling
    score = referee.score(task["name"], said, task["entry"])
    if isinstance(score, str):
        return Ruling("unverifiable", score, ("reasoning-gym",))
    if score >= RIGHT_SCORE:
        return Ruling("correct", "scored", ("reasoning-gym",))
    return Ruling("incorrect", f"scored: {score:.2f}", ("reasoning-gym",))


FENCED = re.compile(r"```(?:python|py|python3)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)


def _run_code(answer: str, gold: str, settings: Verify) -> Ruling:
    """Rule by running the last fenced block of Python on every case."""
    cases = sandbox.read_cases(gold)
    if cases is None:
        return Ruling("unverifiable", "gold-not-read")
    blocks = FENCED.findall(answer)
    if not blocks:
        return Ruling("incorrect", "no-code")
    problem = sandbox.judge(
        blocks[-1], cases, settings.code_timeout_seconds, settings.code_memory_mib
    )
    if problem:
        return Ruling("incorrect", problem, ("sandbox",))
    return Ruling("correct", f"passed: {len(cases)} cases", ("sandbox",))
