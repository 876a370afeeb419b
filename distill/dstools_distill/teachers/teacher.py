"""What answers prompts: a model in this process, or samples that somebody else has made.

A teacher gets all samples that are wanted, in order, and what is there already; it yields what is missing,
in any order, as it comes. `endpoint.py` and `batchfile.py` have two more.
"""

from collections.abc import Callable, Generator, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog

WINDOW_BATCHES = 16  # prompts are sorted by length among so many batches


class Ask(NamedTuple):
    """One sample that is wanted."""

    number: int  # its place among all: prompt after prompt, sample after sample
    sample: int  # of its prompt, from 0
    prompt: Record


class Answer(NamedTuple):
    """One sample."""

    raw: str  # verbatim, without a prefilled opener
    finish_reason: str
    prefilled_think: bool  # the opener stands in the prompt
    usage: dict[str, int] | None  # prompt_tokens and completion_tokens, where known


class Failed(NamedTuple):
    """A sample that cannot be had: asking again would not help."""

    reason: str  # the same for the same trouble: it is counted
    detail: str = ""  # what a person reads once


class Missed(NamedTuple):
    """A sample that did not come, though another time it may."""

    reason: str  # as of Failed
    detail: str = ""


Outcome = Answer | Failed | Missed
Outcomes = Generator[tuple[int, Outcome], None, None]  # to be closed: it may hold connections
Teacher = Callable[[Iterator[Ask], SampleLog], Outcomes]


def in_process(settings: Generate, model: Path) -> Teacher:
    """Return a teacher that samples from the model in a folder; see `sampling.py`.

    Batches are made from all samples, done or not, so a run that was killed draws what it would have drawn.
    """
    from dstools_distill.teachers.sampling import Sampler
    from dstools_distill.tokens.templates import (
        load_tokenizer,
        opens_think,
        prompt_ids,
        prompt_text,
    )

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        tokenizer = load_tokenizer(model)
        sampler: Sampler | None = None
        while window := list(islice(asks, WINDOW_BATCHES * settings.batch_size)):
            if all(ask.number in done for ask in window):
                continue
            sampler = sampler or Sampler(
                model, tokenizer, precision=settings.precision, device=settings.device
            )
            asked = [ask.prompt["messages"] for ask in window]
            prompts = [
                prompt_ids(tokenizer, messages, settings.prefill_think) for messages in asked
            ]
            prefilled = settings.prefill_think or opens_think(prompt_text(tokenizer, asked[0]))
            first = window[0].number
            for batch in sampler.batches(
                prompts, temperature=settings.temperature, top_p=settings.top_p,
                max_tokens=settings.max_tokens, seed=settings.seed, batch_size=settings.batch_size,
                first=first, done=done,
            ):  # fmt: skip
                for number, sampled in batch.items():
                    if sampled.ids:
                        usage = {
                            "prompt_tokens": len(prompts[number - first]),
                            "completion_tokens": len(sampled.ids),
                        }
                        text, reason = sampled.text, sampled.finish_reason
                        yield number, Answer(text, reason, prefilled, usage)
                    else:
                        yield number, Failed("the prompt fills the model's context")

    return answers


def references() -> Teacher:
    """Return a teacher that says the answers that came with the prompts; each has one at most."""

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        for ask in asks:
            if ask.number not in done:
                raw = ask.prompt["reference"] if ask.sample == 0 else None
                if raw is None:
                    yield ask.number, Failed("no reference")
                else:
                    yield ask.number, Answer(raw, "stop", False, None)

    return answers


def replay(path: Path) -> Teacher:
    """Return a teacher that reads its samples from a JSONL file.

    A line names its prompt, {"id"} of the prompts stage or {"prompt"}, the text of the last message, and
    has the answer as {"raw"}, {"reasoning", "answer"} or {"reasoning_content", "content"}; {"finish_reason",
    "prefilled_think", "usage"} may stand beside it. So records of an earlier `generate` will do. Lines of
    one prompt are its samples, in their order. Raises DstoolsError, with the line, where one has neither.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        places = _places(path)
        with path.open("rb") as file:
            for ask in asks:
                if ask.number in done:
                    continue
                text = ask.prompt["messages"][-1]["content"]
                found = places.get(_key("id", ask.prompt["id"])) or places.get(_key("prompt", text))
                if found is None or ask.sample >= len(found):
                    yield ask.number, Failed("not in the file")
                    continue
                number, offset = found[ask.sample]
                file.seek(offset)
                yield (
                    ask.number,
                    _replayed(records.parse(file.readline(), path, number), path, number),
                )

    return answers


def _places(path: Path) -> dict[bytes, list[tuple[int, int]]]:
    """Return line number and offset of each sample in a file, by what names its prompt."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                row = records.parse(line, path, number)
                kind = "id" if "id" in row else "prompt"
                if not isinstance(row.get(kind), str):
                    raise DstoolsError(
                        f"{path}: line {number}: names no prompt", 'give "id" or "prompt", a text'
                    )
                _replayed(row, path, number)  # whatever is wrong is told before anything is written
                places.setdefault(_key(kind, row[kind]), []).append((number, offset))
            offset += len(line)
    return places


def _key(kind: str, text: str) -> bytes:
    return sha256(f"{kind} {' '.join(text.split())}".encode()).digest()[:16]


def _replayed(row: dict[str, Any], path: Path, number: int) -> Answer:
    prefilled = row.get("prefilled_think", False) is True
    for reasoning, answer in (("reasoning", "answer"), ("reasoning_content", "content")):
        if isinstance(row.get("raw"), str):
            raw = row["raw"]
            break
        if isinstance(row.get(answer), str):
            raw = records.thought(row.get(reasoning), row[answer], prefilled)
            break
    else:
        raise DstoolsError(
            f"{path}: line {number}: has no answer",
            'give "raw", or "reasoning" and "answer", or "reasoning_content" and "content"',
        )
    return Answer(raw, str(row.get("finish_reason", "stop")), prefilled, tokens(row.get("usage")))


def tokens(usage: Any) -> dict[str, int] | None:
    """Return the two counts of a usage object; what is cached hangs on the order of requests."""
    if not isinstance(usage, dict):
        return None
    names = ("prompt_tokens", "completion_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int)} or None
