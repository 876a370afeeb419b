"""Evaluation of models: answers sampled in this process, judged and counted.

answers-MODEL.jsonl   every answer with its verdict, problem by problem
scores.json           right and judged answers, by model and problem; differences come from these

Special tokens stay in the judged text: decoded without them, a student whose <think> is a special
token scores 0. While the stage runs, answers are in answers-MODEL.log in the order they come.
"""

import json
import re
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_converters.files import replacing
from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think, split
from dstools_converters.model.tokenizer import end_token_id, prompt_ids, prompt_text
from dstools_converters.runtime.sampling import Sampling
from dstools_distill import records
from dstools_distill.evaluation.tally import Scores, as_json, difference, tally
from dstools_distill.judge.extract import final_answer, last_boxed
from dstools_distill.judge.verify import NOT_FINITE, Judge
from dstools_distill.recipe.settings import Eval, Verify
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.store.stage import Report, Work
from dstools_distill.teachers.sampling import Sampled, Sampler
from dstools_distill.tokens.templates import load_tokenizer

SCORES = "scores.json"


def evaluate(settings: Eval, inputs: Inputs, work: Work) -> Report:
    """Answer every problem with each model, judge the answers, and return figures with intervals.

    Answers are judged by `inputs.judge` without its checks of steps, language and repetition, which
    choose training data. Problems that cannot be judged are dropped and counted. With two models,
    the difference of the second to the first is over the same problems.

    Raises DstoolsError where no problem can be judged, for a k above `samples`, for several greedy
    samples, for a tokenizer without template or end token, and for a folder that is not a model or
    has another vocabulary.
    """
    _check(settings)
    problems, dropped, sources = _problems(inputs.problems / "records.jsonl")
    tokenizer = load_tokenizer(inputs.tokenizer, inputs.template)
    try:
        opened = [opens_think(prompt_text(tokenizer, problem["messages"])) for problem in problems]
        asked = [prompt_ids(tokenizer, problem["messages"]) for problem in problems]
        end_token_id(tokenizer)  # raises where answers would not end
    except DstoolsError as error:
        raise DstoolsError(f"{inputs.tokenizer}: {error}", error.hint) from error
    judged_by = replace(
        inputs.judge, reasoning=settings.reasoning, steps=False, language="", max_repetition=1.0
    )
    exam = _Exam(settings, problems, asked, opened, tokenizer, judged_by)
    figures: dict[str, dict[str, Any]] = {}
    scores: dict[str, Scores] = {}
    for name, folder in inputs.models.items():
        answers = work.folder / f"answers-{name}.jsonl"
        if not answers.exists():
            _answer(exam, name, folder, answers, work)
        answers.with_suffix(".log").unlink(missing_ok=True)
        figures[name], scores[name] = tally(answers, settings.k)
        figures[name]["context"] = _context(folder)
    (work.folder / SCORES).write_text(json.dumps(scores) + "\n")
    return {
        "in": len(problems) + sum(dropped.values()),
        "out": len(problems),
        "dropped": dict(sorted(dropped.items())),
        "sources": dict(sorted(sources.items())),
        "models": figures,
        "difference": _difference(scores),
    }


def _check(settings: Eval) -> None:
    if max(settings.k) > settings.samples or min(settings.k) < 1:
        raise DstoolsError(
            f"eval.k: cannot draw {max(settings.k)} answers from {settings.samples}",
            "set eval.samples to the largest k or more",
        )
    if settings.samples > 1 and settings.temperature == 0:
        raise DstoolsError(
            f"eval.samples: {settings.samples} greedy answers are all the same",
            "set eval.temperature above 0, or eval.samples = 1",
        )


def _context(model: Path) -> int | None:
    """Return the number of positions of a model, where an answer ends at the latest."""
    config = json.loads((model / "config.json").read_bytes())
    positions: int | None = config.get("text_config", config).get("max_position_embeddings")
    return positions


def _problems(path: Path) -> tuple[list[Record], Counter[str], Counter[str]]:
    """Return the problems that can be judged, the numbers of others, and those of each source."""
    problems, dropped, sources = [], Counter[str](), Counter[str]()
    for record in records.read(path):
        if record["gold"] is None and record["task"] is None:
            dropped["no-gold"] += 1
        else:
            problems.append(record)
            sources[record["source"]] += 1
    if not problems:
        raise DstoolsError(
            f"{path}: none of {dropped.total()} problems has an answer to compare with",
            "give eval.source problems with a gold answer, or a task such as rg:chain_sum",
        )
    return problems, dropped, sources


def _difference(scores: dict[str, Scores]) -> dict[str, Any] | None:
    """Return the difference of the last model's pass@1 to the first's; None with one model.

    None as well if no problem has judged answers of both.
    """
    if len(scores) < 2:
        return None
    first, *_, last = scores
    gain = difference(scores[first], scores[last])
    return None if gain is None else {"from": first, "to": last} | as_json(gain)


# ---------------------------------------------------------------------------- answers of a model


class _Exam(NamedTuple):
    """The problems that every model gets, and how its answers are judged."""

    settings: Eval
    problems: list[Record]
    asked: list[list[int]]  # token ids of their prompts
    opened: list[bool]  # whether the prompt opens the think block
    tokenizer: Any
    judged_by: Verify


def _answer(exam: _Exam, name: str, model: Path, answers: Path, work: Work) -> None:
    """Write a model's judged answers; answers logged by an earlier try are kept."""
    total = len(exam.problems) * exam.settings.samples
    with closing(SampleLog(answers.with_suffix(".log"), total)) as log:
        if len(log) < total:
            _fill(log, exam, name, model, work)
        with replacing(answers) as out:
            for place in range(total):
                out.write(records.dump(log.read(place)["record"]))


def _fill(log: SampleLog, exam: _Exam, name: str, model: Path, work: Work) -> None:
    """Draw and judge the answers missing in the log; windows of them are drawn as a whole."""
    settings = exam.settings
    sampler = _load(model, exam.tokenizer, settings, exam.asked)
    answers = sampler.answers(
        [ids for ids in exam.asked for _ in range(settings.samples)],
        Sampling(settings.temperature, settings.top_p, settings.seed),
        max_tokens=settings.max_tokens,
        batch_size=settings.batch_size,
        done=log,
    )
    with (
        closing(Judge(exam.judged_by)) as judge,
        work.bar(log.total, f"evaluate {name}") as progress,
    ):
        progress(len(log))
        for place, sampled in answers:
            number, sample = divmod(place, settings.samples)
            record = _record(exam.problems[number], sample, sampled, exam.opened[number], judge)
            record["usage"]["prompt_tokens"] = len(exam.asked[number])
            log.add(place, {"record": record})
            progress(1)


def _load(model: Path, tokenizer: Any, settings: Eval, asked: list[list[int]]) -> Sampler:
    """Load a model, and check that its vocabulary covers the prompts."""
    if not (model / "config.json").is_file():
        raise DstoolsError(f"{model}: has no config.json", "name the folder of a model")
    sampler = Sampler(model, tokenizer, precision=settings.precision, device=settings.device)
    size = sampler.serving.model.vocab_size
    highest = max(map(max, asked))
    if highest >= size:
        raise DstoolsError(
            f"{model}: has {size} tokens, but the prompts contain token {highest}",
            "student.tokenizer is of another model",
        )
    return sampler


def _record(
    problem: Record, sample: int, sampled: Sampled, prefilled: bool, judge: Judge
) -> Record:
    """Return a problem with an answer, its verdict and its vote."""
    parts = split(sampled.text, prefilled)
    record = problem | {
        "sample": sample,
        "raw": sampled.text,
        "reasoning": parts.reasoning,
        "answer": parts.answer,
        "finish_reason": NOT_FINITE if sampled.finish_reason == "error" else sampled.finish_reason,
        "prefilled_think": prefilled,
        "usage": {"completion_tokens": len(sampled.ids)},
    }
    record |= judge.judge(record)
    record["lenient"] = record["verdict"] == "correct" or _is_leniently_right(record, judge)
    record["vote"] = _vote(record)
    return record


def _is_leniently_right(record: Record, judge: Judge) -> bool:
    """Return whether the last answer in a text, finished or not, is right; False for code."""
    answer = last_answer(record["raw"])
    if record["answer_type"] == "code" or not answer or OPEN in answer or CLOSE in answer:
        return False
    return judge.rule(record, answer).verdict == "correct"


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def last_answer(text: str) -> str:
    r"""Return the content of the last \boxed{} or \fbox{}, else the last number or line."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    numbers = NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else text.strip().rpartition("\n")[2]


def _vote(record: Record) -> str | None:
    """Return the answer that a sample votes for; None for one that is unfinished or out of form."""
    if record["verdict_reason"].startswith(("unfinished", "think-block")):
        return None
    final = " ".join(final_answer(record["answer"]).text.split())
    return final or " ".join(record["answer"].split()) or None
