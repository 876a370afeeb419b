"""The verify stage: a verdict on each sample, with its reason.

| verdict | means |
|---|---|
| correct | every check passed |
| incorrect | one failed: finish, think block, answer, steps, language or repetition |
| unverifiable | no gold, an answer taken back, a gold or answer that cannot be compared, or an |
| | end in a server's word that is not known |

Unverifiable never counts as correct. All rows are kept, each with its verdict; `select` chooses.
"""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dstools_converters.model.reasoning import (
    CLOSE,
    IN_TAGS,
    OPEN,
    after_thought,
    other_tag,
    split,
    tag_hint,
)
from dstools_distill.judge import program, sandbox, steps
from dstools_distill.judge.answers import EQUAL, Ruling, compare, integers, names_another_option
from dstools_distill.judge.extract import final_answer
from dstools_distill.judge.prose import language_share, repetition, require_language
from dstools_distill.judge.referee import Referee
from dstools_distill.judge.steps import Steps
from dstools_distill.recipe.settings import Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record, dump, how_ended
from dstools_distill.store.rows import Chunk, Rows, each_record, map_rows
from dstools_distill.store.stage import Report, Work

log = logging.getLogger(__name__)
RIGHT_SCORE = 0.99  # of reasoning-gym's 0 to 1; a partly correct answer is incorrect
NOT_FINITE = "logits are not finite"  # a finish reason of a local model
# finish reasons of samples that the model itself left without an answer. Any other word is
# unverifiable: a server's filter, error or abort says nothing about the model
UNFINISHED = ("length", "tool_calls", "function_call", NOT_FINITE)
PLACES = 4  # decimals of shares
HINTS = {  # what to do if one reason is that of all samples
    "think-block": "for answers without a trace set verify.reasoning = false",
    "unfinished": "see finish_reason: generate.max_tokens may be too low",
    "no-gold": "name the column with the right answers `answer`, or leave [verify] out",
    "gold-not-read": "see gold and answer_type in the records of prompts",
    "answer-not-found": "ask for final answers in \\boxed{}, in prompts.system or the questions",
}
VERDICTS = ("correct", "incorrect", "unverifiable")
CHECKED_BY = "checked by "  # and names: a count of rows
SCORER = ("reasoning-gym",)
SUMS = ("chain_sum",)  # tasks with one correct integer, which need no scorer; steps are checked


def verify(settings: Verify, inputs: Inputs, work: Work) -> Report:
    """Add a verdict to each row of samples/records.jsonl; count verdicts and reasons.

    The report: in, out, dropped (empty); verdicts {verdict: n}; reasons {verdict: {word: n}};
    checkers {names: n}; steps_checked, the number of rows with steps to check;
    answers_right_steps_wrong, the number of incorrect rows with a correct answer and a wrong step.
    Raises DstoolsError for a bad row, and for a code answer if bubblewrap is missing.
    """
    source = inputs.samples / "records.jsonl"
    counts = map_rows(source, work, ("records.jsonl",), _rows_of, settings, source, what="verify")
    reasons = {name: words for name in VERDICTS if (words := _counts_of(f"{name}: ", counts))}
    match [(verdict, word) for verdict, words in reasons.items() for word in words]:
        case [("incorrect" | "unverifiable" as verdict, word)]:
            in_tags = tag_hint(counts) if word == "think-block" else ""
            hint = in_tags or HINTS.get(word, "see verdict_reason in its records.jsonl")
            log.warning(
                "verify: all %d samples are %s: %s; %s", counts["rows"], verdict, word, hint
            )
    return {
        "in": counts["rows"],
        "out": counts["rows"],
        "dropped": {},
        "verdicts": {verdict: sum(words.values()) for verdict, words in reasons.items()},
        "reasons": reasons,
        "checkers": _counts_of(CHECKED_BY, counts),
        "steps_checked": counts["steps"],
        "answers_right_steps_wrong": counts["incorrect: wrong-step"],
    }


def _counts_of(prefix: str, counts: Counter[str]) -> dict[str, int]:
    return {
        name.removeprefix(prefix): count
        for name, count in sorted(counts.items())
        if name.startswith(prefix)
    }


def _rows_of(settings: Verify, source: Path) -> Callable[[Rows], Chunk]:
    """Return the function by which a worker processes rows."""
    judge = Judge(settings)

    def process(rows: Rows) -> Chunk:
        lines, counts = [], Counter[str]()
        for record in each_record(source, rows):
            judgement = judge.judge(record)
            word = judgement["verdict_reason"].partition(":")[0]
            steps_found = judgement["steps"]
            counts["rows"] += 1
            counts[f"{judgement['verdict']}: {word}"] += 1
            counts["steps"] += bool(steps_found and any(steps_found.values()))
            if word == "think-block" and (tag := other_tag(record["raw"])):
                counts[IN_TAGS + tag] += 1
            if judgement["checkers"]:
                counts[CHECKED_BY + " + ".join(judgement["checkers"])] += 1
            lines.append(dump(record | judgement))
        return Chunk({"records.jsonl": b"".join(lines)}, counts)

    return process


class Judge:
    """A judge of single samples; `close` ends the process that it may have started.

    Otherwise the process ends when the judge is garbage-collected, or with this process.
    Raises DstoolsError for a language that it cannot recognize.
    """

    def __init__(self, settings: Verify) -> None:
        if settings.language:
            require_language(settings.language, "verify.language")
        self._settings = settings
        self._referee = Referee(settings.timeout_seconds)

    def close(self) -> None:
        """End the process, if it was started; a later question starts another."""
        self._referee.close()

    def judge(self, record: Record) -> dict[str, Any]:
        """Return the fields that `verify` adds to a sample.

        Reads gold, answer_type, task, raw, prefilled_think, finish_reason, and messages for the
        options of a choice. Returns
        verdict: "correct", "incorrect" or "unverifiable";
        verdict_reason: a stable word, or "word: detail";
        checkers: names of those that compared the answers, e.g. ["math-verify"];
        steps: null, or {"right": number of correct ones, "fault": null or "word: detail"};
        language: null, or the share of words in the language of the settings;
        repetition: the share of words in repeated runs of 20.

        Raises DstoolsError for a code answer if bubblewrap is missing.
        """
        settings, raw = self._settings, record["raw"]
        parts = split(raw, record["prefilled_think"])
        language = language_share(raw, settings.language) if settings.language else None
        repeated = repetition(raw)
        checked: Steps | None = None
        is_reasoned = (parts.reasoning or "").strip()
        is_broken = parts.reasoning is None and (OPEN in raw or CLOSE in raw)
        is_formed = not is_broken and (is_reasoned or not settings.reasoning)
        ended = how_ended(record["finish_reason"], after_thought(raw, record["prefilled_think"]))
        if ended != "stop":
            verdict = "incorrect" if ended in UNFINISHED else "unverifiable"
            ruling = Ruling(verdict, f"unfinished: {ended}")
        elif not is_formed:
            ruling = Ruling("incorrect", "think-block")
        else:
            ruling = self.rule(record, parts.answer)
            task = record["task"] or {"name": ""}
            if settings.steps and parts.reasoning is not None and task["name"] in SUMS:
                expression = task["entry"]["metadata"]["expression"]
                final = final_answer(parts.answer).text or parts.answer
                checked = steps.check(expression, parts.reasoning, final)
        if ruling.verdict == "incorrect" and checked and (checked.fault or "").startswith("answer"):
            ruling = ruling._replace(reason=f"miscopied: {checked.fault}")
        if ruling.verdict == "correct" and (fault := _fault(checked, language, repeated, settings)):
            ruling = ruling._replace(verdict="incorrect", reason=fault)
        return {
            "verdict": ruling.verdict,
            "verdict_reason": ruling.reason,
            "checkers": list(ruling.checkers),
            "steps": checked._asdict() if checked else None,
            "language": language if language is None else round(language, PLACES),
            "repetition": round(repeated, PLACES),
        }

    def rule(self, record: Record, answer: str) -> Ruling:
        """Rule on an answer alone, by its task or its type, whatever comes before it."""
        gold, kind, task = record["gold"], record["answer_type"], record["task"]
        if task is not None:
            return _score(answer, task, self._referee)
        if kind == "code" and gold is not None:
            return _run_code(answer, gold, self._settings)
        ruling = compare(answer, gold, kind, self._referee)
        question = record["messages"][-1]["content"] if "messages" in record else ""
        if ruling.verdict == "correct" and names_another_option(answer, gold or "", question):
            return Ruling("unverifiable", "other-words")
        return ruling


def _fault(checked: Steps | None, language: float | None, repeated: float, settings: Verify) -> str:
    """Return why a correct answer is refused for the text before it, or ""."""
    if checked and checked.fault:
        return f"wrong-step: {checked.fault}"
    if language is not None and language < settings.min_language:
        return f"language: {language:.2f} {settings.language}"
    return f"repetition: {repeated:.2f}" if repeated > settings.max_repetition else ""


def _score(answer: str, task: dict[str, Any], referee: Referee) -> Ruling:
    """Rule by reasoning-gym's scorer, unless the answer is the task's own."""
    oracle: str | None = task["entry"]["answer"]  # None for some tasks with many correct answers
    answer = answer.strip()
    final = final_answer(answer)
    if oracle in (answer, final.text or answer):
        return EQUAL
    if final.problem not in ("", "no-answer"):
        verdict = "incorrect" if final.problem == "several-answers" else "unverifiable"
        return Ruling(verdict, final.problem)
    answer = final.text or answer
    if (ruling := integers(answer, oracle or "")) and (
        ruling.reason.startswith("not-canonical") or task["name"] in SUMS
    ):
        return ruling
    score = referee.score(task["name"], answer, task["entry"])
    if isinstance(score, str):
        return Ruling("unverifiable", score, SCORER)
    if score >= RIGHT_SCORE:
        return Ruling("correct", "scored", SCORER)
    return Ruling("incorrect", f"scored: {score:.2f}", SCORER)


def _run_code(answer: str, gold: str, settings: Verify) -> Ruling:
    """Rule by running the program of an answer on all cases.

    Unverifiable are programs in another language, or with a library that the sandbox lacks, and
    outputs that differ in form alone.
    """
    cases, (text, problem) = program.read_cases(gold), program.find(answer)
    if cases is None:
        return Ruling("unverifiable", "gold-not-read")
    if problem:
        return Ruling("incorrect" if problem == "no-code" else "unverifiable", problem)
    problem = sandbox.judge(text, cases, settings.code_timeout_seconds, settings.code_memory_mib)
    if problem:
        is_known = not problem.startswith(("code-no-module", "code-form"))
        return Ruling("incorrect" if is_known else "unverifiable", problem, ("sandbox",))
    return Ruling("correct", f"passed: {len(cases)} cases", ("sandbox",))
