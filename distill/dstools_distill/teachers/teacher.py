"""Teachers: a local model, imported samples and references.

A teacher gets all samples that are wanted, in order, and the log of those that are done; it yields
the missing ones as they come, in any order.
"""

import json
import logging
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dstools_converters.errors import DstoolsError, counted, printable
from dstools_converters.model.reasoning import CLOSE, OPEN, opens_think, thought
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dstools_distill.teachers.sampling import Sampled

T = TypeVar("T")
WINDOW_BATCHES = 16  # this many batches are sorted by length, and drawn again as a whole


class Ask(NamedTuple):
    """One sample that is wanted."""

    number: int  # among all samples, by prompt and then by sample
    sample: int  # among those of its prompt, from 0
    prompt: Record


class Answer(NamedTuple):
    """One sample."""

    raw: str  # verbatim, without a prefilled opener
    finish_reason: str
    prefilled_think: bool  # the opener is in the prompt
    usage: dict[str, int] | None  # prompt_tokens and completion_tokens, where known
    teacher: Record | None = None  # its name and revision, where a file tells them


class Failed(NamedTuple):
    """A sample that failed for good: asking again would not help."""

    reason: str  # the same for every failure of a kind: it is counted
    detail: str = ""  # logged once for each reason
    body: str = ""  # JSON of a reply that was paid for, but could not be read


class Missed(NamedTuple):
    """A sample that was not received; another run asks again."""

    reason: str  # as in Failed
    detail: str = ""  # the server's words for the first of each reason are shown


NO_REFERENCE = "no reference"  # the prompt came with fewer answers than samples
REFUSED = "request refused: "  # begins the reason where a server takes others


Outcome = Answer | Failed | Missed
Outcomes = Generator[tuple[int, Outcome], None, None]  # must be closed: it may hold connections
Teacher = Callable[[Iterator[Ask], SampleLog], Outcomes]


def windows(
    items: Iterable[T], batch_size: int, done: Container[int], first: int = 0
) -> Iterator[tuple[int, list[T]]]:
    """Yield each window of items of which any is not `done`, after the place of its first one.

    Places count from `first`. A window is drawn as a whole, so that a resumed run draws the same
    samples as one that was never stopped.
    """
    rest = iter(items)
    while window := list(islice(rest, WINDOW_BATCHES * batch_size)):
        if not all(first + at in done for at in range(len(window))):
            yield first, window
        first += len(window)


def in_process(settings: Generate, model: Path) -> Teacher:
    """Return a teacher that samples from the model in a folder; see `sampling.py`."""
    from dstools_converters.model.tokenizer import prompt_ids, prompt_text
    from dstools_converters.runtime.sampling import Sampling
    from dstools_distill.teachers.sampling import Sampler
    from dstools_distill.tokens.templates import load_tokenizer

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        tokenizer = load_tokenizer(model)
        sampler: Sampler | None = None
        for first, window in windows(asks, settings.batch_size, done):
            sampler = sampler or Sampler(
                model, tokenizer, precision=settings.precision, device=settings.device
            )
            chats = [ask.prompt["messages"] for ask in window]
            prompts = [prompt_ids(tokenizer, chat, settings.prefill_think) for chat in chats]
            prefilled = settings.prefill_think or opens_think(prompt_text(tokenizer, chats[0]))
            for number, sampled in sampler.window(
                first,
                prompts,
                Sampling(settings.temperature, settings.top_p, settings.seed),
                max_tokens=settings.max_tokens,
                batch_size=settings.batch_size,
                done=done,
            ):
                yield number, _outcome(sampled, len(prompts[number - first]), prefilled)

    return answers


def _outcome(sampled: "Sampled", prompt_tokens: int, prefilled: bool) -> Outcome:
    """Return what a drawn answer is to a teacher."""
    ids, text, reason = sampled
    if reason == "error":
        return Failed("the model's logits are not finite", f"after {len(ids)} tokens of an answer")
    if not ids:
        return Failed("the prompt fills the model's context")
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(ids)}
    return Answer(text, reason, prefilled, usage)


def references(samples: int) -> Teacher:
    """Return a teacher that repeats the answers that came with a prompt, if any did.

    Those beyond the `samples` that are asked of each prompt are counted in a warning.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        unused, longest = 0, 0
        for ask in asks:
            given = records.replies(ask.prompt)
            if ask.sample == 0:
                unused += max(len(given) - samples, 0)
                longest = max(longest, len(given))
            if ask.number not in done and ask.sample >= len(given):
                yield ask.number, Failed(NO_REFERENCE)
            elif ask.number not in done:
                raw, reason = given[ask.sample]
                yield ask.number, received({"content": raw}, reason, None, prefilled=False)
        if unused:
            logger.warning(
                "%s of the prompts' own not used: one has %d, and generate.samples is %d",
                counted(unused, "answer"), longest, samples,
            )  # fmt: skip

    return answers


def replay(path: Path) -> Teacher:
    """Return a teacher that reads its samples from a JSONL file.

    A line names its prompt by {"id"} of the prompts stage or by {"prompt"}, the text of its last
    message; of both, by either. It has the answer as {"raw"}, or as {"answer"} or {"content"} with
    a trace beside it (records.TRACES), read as an endpoint's (`received`), and may have
    {"finish_reason", "prefilled_think", "usage"} and the name of the model that answered (TELLERS);
    so records of an earlier `generate` can be replayed. Lines of one prompt are its samples, in
    order; lines that no prompt takes are counted in a warning. The teacher raises DstoolsError with
    the line if a prompt or an answer is missing, where one answer has several traces, or where
    `raw` has an answer or a trace beside it that is not in it.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        places = _places(path)
        taken: set[int] = set()
        with path.open("rb") as file:
            for ask in asks:
                text = ask.prompt["messages"][-1]["content"]
                samples = places.get(_key("id", ask.prompt["id"]))
                samples = samples or places.get(_key("prompt", text)) or []
                if ask.sample >= len(samples):
                    if ask.number not in done:
                        detail = f"{path} has {len(samples)} for ...{printable(text[-60:])!r}"
                        yield ask.number, Failed("not in the file", detail)
                    continue
                number, offset = samples[ask.sample]
                taken.add(number)
                if ask.number in done:
                    continue
                file.seek(offset)
                row = records.parse(file.readline(), path, number)
                yield ask.number, replayed(row, path, number)
        if left := sorted({number for lines in places.values() for number, _ in lines} - taken):
            logger.warning(
                "%s: %s not used, in line %d first: no prompt of this run asks for it, or "
                "generate.samples is too small",
                path, counted(len(left), "answer"), left[0],
            )  # fmt: skip

    return answers


def _places(path: Path) -> dict[bytes, list[tuple[int, int]]]:
    """Return line number and byte offset of each sample in a file, by the key of its prompt."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                row = records.parse(line, path, number)
                kinds = [kind for kind in ("id", "prompt") if kind in row]
                if not kinds or not all(isinstance(row[kind], str) for kind in kinds):
                    raise DstoolsError(f"{path}: line {number}: does not name its prompt", UNNAMED)
                replayed(row, path, number)  # raises before anything is written
                for kind in kinds:  # an id of another recipe's is not in this one
                    places.setdefault(_key(kind, row[kind]), []).append((number, offset))
            offset += len(line)
    return places


UNNAMED = (
    'add "id" or "prompt", a string; if the rows hold questions and answers, name the file in '
    "[[prompts.source]] and no generate.model"
)


def _key(kind: str, text: str) -> bytes:
    return sha256(f"{kind} {' '.join(text.split())}".encode()).digest()[:16]


def replayed(row: dict[str, Any], path: Path, number: int) -> Answer:
    """Return the sample in a line of a file; DstoolsError with the line if it has no answer."""
    contents = [key for key in ("raw", "answer", "content") if key in row]
    content = next((key for key in contents if isinstance(row[key], str | list)), None)
    if content is None and any(isinstance(row.get(key), str) for key in records.TRACES):
        content = next((key for key in contents if row[key] is None), None)  # cut in its trace
    if content is None:
        read = ", ".join(f"{key} {type(row[key]).__name__}" for key in contents)
        names = read or f"among {printable(', '.join(row))}"
        raise DstoolsError(f"{path}: line {number}: has no answer: {names}", _answer_hint(row))
    try:
        traces = {key: records.trace(row, key) for key in records.TRACES}
    except ValueError as error:
        hint = "write a line for each, or keep one"
        raise DstoolsError(f"{path}: line {number}: {error}", hint) from None
    message = {"content": row[content]} | (traces if content != "raw" else {})
    for key in ("answer", "content", *records.TRACES) if content == "raw" else ():
        part = traces.get(key, row.get(key))
        if isinstance(part, str) and part.strip() not in str(row["raw"]):
            problem = f"{path}: line {number}: {key} is not a part of raw"
            raise DstoolsError(problem, "either may be the sample; keep one of them")
    try:
        prefilled = row.get("prefilled_think", False) is True
        told = received(message, row.get("finish_reason"), row.get("usage"), prefilled=prefilled)
        return told._replace(teacher=_told_teacher(row))
    except ValueError as error:
        raise DstoolsError(f"{path}: line {number}: {content} {error}", ANSWER_HINT) from None


def _told_teacher(row: dict[str, Any]) -> Record | None:
    """Return name and revision of the model that a line says it is of; None if it does not say.

    A record of `generate` has both; others have a name alone.
    """
    for key in TELLERS:
        value = row.get(key)
        teacher = value if isinstance(value, dict) else {"name": value}
        name, revision = teacher.get("name"), teacher.get("revision")
        if isinstance(name, str) and name.strip():
            known = revision if isinstance(revision, str) else None
            return {"name": name.strip(), "revision": known}
    return None


TELLERS = ("teacher", "generator", "model")  # columns for the model that answered; the first counts


def _answer_hint(row: dict[str, Any]) -> str:
    """Return what to do about a line without an answer, which may be what a server sent."""
    choices = row.get("choices")
    if "custom_id" in row:
        return 'answers to batch requests are read by generate.backend = "openai-batch"'
    if isinstance(choices, list) and choices and "delta" in choices[0]:
        return f"these are pieces of a stream: join those of each answer; {ANSWER_HINT}"
    if choices:
        return f"this is a server's reply: take choices[0].message of it; {ANSWER_HINT}"
    return ANSWER_HINT


ANSWER_HINT = 'add "raw", or "reasoning" and "answer", or "reasoning_content" and "content"'


def received(message: dict[str, Any], finish_reason: Any, usage: Any, *, prefilled: bool) -> Answer:
    """Return the sample in an assistant's message, of a server or of a file.

    The content may come in parts. A trace in a key of its own (records.TRACES), or in a part, is
    put back before the answer, unless the answer holds it already. A text that closes a trace
    without opening it continues an opener that the server's template wrote. A refusal is an answer
    that ended so. Halves of a character, which JSON can hold and UTF-8 cannot, become U+FFFD where
    the answer was cut. Raises ValueError for them elsewhere, for traces that differ, and for
    another content.
    """
    part, content = records.message_parts(message.get("content"))
    if not content and isinstance(message.get("refusal"), str) and message["refusal"]:
        content, finish_reason = message["refusal"], "refusal"
    traces = {"content": part} | {key: message.get(key) for key in records.TRACES}
    texts = {
        key: text
        for key, text in traces.items()
        if isinstance(text, str) and text and text.strip().lower() not in records.MODES
    }
    if len({text.strip() for text in texts.values()} - {""}) > 1:
        raise ValueError(f"comes with traces that differ, in {' and '.join(texts)}")
    reasoning = next(iter(texts.values()), None)
    if reasoning and CLOSE in content and reasoning.strip() in content:
        reasoning = None
    ended = records.how_ended(finish_reason)
    raw = thought(reasoning, content, prefilled)
    try:  # halves that belong together are one character
        errors = "replace" if ended == "length" else "strict"
        raw = raw.encode("utf-16", "surrogatepass").decode("utf-16", errors)
    except UnicodeDecodeError:
        raise ValueError("holds half of a character") from None
    prefilled = prefilled or (OPEN not in raw and raw.count(CLOSE) == 1)
    return Answer(raw, ended, prefilled, tokens(usage))


def answer(body: Any, settings: Generate) -> Answer:
    """Return the sample in the body of a chat completion, as `received` reads it.

    A prefilled opener that the server repeats, as llama.cpp does, is removed. Raises ValueError if
    the body is not a chat completion, and UnreadError if it was paid for, but cannot be read.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or (body.get("error") and not choices):
        kind = UnreadError if is_paid(body) else ValueError
        raise kind("the answer is not a chat completion")
    try:
        choice = choices[0]
        message = {"content": None, **choice["message"]}
    except (KeyError, IndexError, TypeError):
        lack = "a message" if choices else "a choice"
        raise UnreadError(f"the answer is not a chat completion: without {lack}") from None
    if settings.prefill_think and isinstance(message["content"], str):
        message["content"] = message["content"].removeprefix(f"{OPEN}\n")
    try:
        return received(
            message,
            choice.get("finish_reason"),
            body.get("usage"),
            prefilled=settings.prefill_think,
        )
    except ValueError as error:
        raise UnreadError(f"the content {error}") from None


def is_paid(body: Any) -> bool:
    """Return whether a reply without choices counts tokens, as an answer of another API does."""
    is_reply = isinstance(body, dict) and not body.get("error")
    return is_reply and isinstance(body.get("usage"), dict)


def accepting(lost: int, total: int) -> str:
    """Return how a user accepts that so many samples are lost."""
    share = -(-100 * lost // total) / 100  # up to the next hundredth
    return f"accept the loss with generate.max_failed = {share:g}"


class UnreadError(ValueError):
    """A chat completion came, and was paid for, but its answer cannot be read."""


def unread(error: ValueError, body: Any) -> Failed:
    """Return the outcome that keeps the body, so that it need not be asked for again."""
    return Failed(f"answer not read: {printable(str(error))}", body=json.dumps(body))


def tokens(usage: Any) -> dict[str, int] | None:
    """Return the prompt and completion tokens of a usage object; None if it has neither.

    Other counts, of cached tokens, depend on the order of requests.
    """
    if not isinstance(usage, dict):
        return None
    names = ("prompt_tokens", "completion_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int)} or None
