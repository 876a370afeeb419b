"""Teachers: what they are asked for, what they yield, and the one that is a local model.

A teacher gets all samples that are wanted, in order, and the log of those that are done; it yields
the missing ones as they come, in any order.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dstools_converters.model.reasoning import opens_think
from dstools_distill.recipe.settings import Generate
from dstools_distill.records import Record
from dstools_distill.store.samplelog import SampleLog

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
    end_token: str = ""  # cut off the end of the text


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


def accepting(lost: int, total: int) -> str:
    """Return how a user accepts that so many samples are lost."""
    share = -(-100 * lost // total) / 100  # up to the next hundredth
    return f"accept the loss with generate.max_failed = {share:g}"
