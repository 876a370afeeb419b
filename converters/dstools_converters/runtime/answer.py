"""The answer to one prompt: its text as it comes, its tokens, why it ended, how fast it was."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dstools_converters.errors import DstoolsError
from dstools_converters.model.reasoning import OPEN, opens_think
from dstools_converters.model.stream import TextStream
from dstools_converters.model.tokenizer import question_text
from dstools_converters.runtime.decode import Counts, Piece, Request
from dstools_converters.runtime.sampling import Sampling


class Loop(Protocol):
    """What answers requests: `decode.Loop`, or that of another runtime."""

    sampling: Sampling
    counts: Counts

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yield the tokens of all answers as they come."""


@dataclass(frozen=True)
class Speed:
    """How fast an answer came."""

    seconds: float  # from the prompt to the end
    first_seconds: float  # from the prompt to the first token
    tokens_per_second: float | None  # after the first one; None if there are none
    tokens_per_step: float | None
    drafted: list[int]  # drafts that were checked, by their position; [] without speculation
    kept: list[int]  # and were right


@dataclass(frozen=True)
class Answer:
    """A prompt and its answer. As JSON, keys stay; more may come."""

    prompt_ids: list[int]
    ids: list[int]  # with the end token, if one was drawn
    text: str  # without it; begins with the <think> that the prompt opened, if it did
    reason: str  # see `answer_prompt`
    prompt_tokens: int
    tokens: int
    sampling: dict[str, float]  # temperature, top_p, seed
    speed: Speed


class Prompt(NamedTuple):
    """A prompt as the model sees it."""

    ids: list[int]
    opening: str  # the <think> at its end and what follows it; "" if there is none


def read_prompt(tokenizer: Any, text: str, chat: bool) -> Prompt:
    """Return the prompt of a text, with one BOS if the tokenizer or the template has one.

    chat: the text is a user message, rendered with the chat template, which writes all special
    tokens itself. Raises DstoolsError, naming its file, where there is none, or it does not render
    the text.
    """
    if chat:
        if not tokenizer.chat_template:
            raise DstoolsError(
                f"{tokenizer.name_or_path}: has no chat template",
                "leave --chat out: the text is then continued as it is",
            )
        try:
            text = question_text(tokenizer, text)
        except DstoolsError as error:
            raise DstoolsError(f"{_template_file(tokenizer)}: {error}", error.hint) from error
        ids = tokenizer.encode(text, add_special_tokens=False)  # the template writes BOS itself
    else:
        has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids = tokenizer(text, add_special_tokens=not has_bos, verbose=False)["input_ids"]
    return Prompt(ids, text[text.rindex(OPEN) :] if opens_think(text) else "")


def _template_file(tokenizer: Any) -> Path:
    """Return the file that transformers takes a chat template from."""
    path = Path(tokenizer.name_or_path) / "chat_template.jinja"
    return path if path.exists() else path.with_name("tokenizer_config.json")


def answer_prompt(
    loop: Loop, request: Request, opening: str, tokenizer: Any, write: Callable[[str], object]
) -> Answer:
    """Return the answer to a prompt, and `write` its text in whole characters as it comes.

    opening: what the text begins with. The answer's reason is "stop" after an end token, "length"
    at a limit, "error" where logits were not finite, and "interrupted" after Ctrl-C, which ends it
    with what there is. Raises DstoolsError where the loop does.
    """
    stream, text, new = TextStream(tokenizer), "", opening
    ids: list[int] = []
    reason = ""
    first, filled, steps = 0.0, 0, 0  # seconds and steps up to the first token; steps to the last
    begin = time.perf_counter()
    try:
        for piece in loop.run([request]):
            if not ids:
                first, filled = time.perf_counter() - begin, loop.counts.steps
            steps = loop.counts.steps - filled
            ids += piece.ids
            new += stream.add(piece.ids[:-1] if piece.reason == "stop" else piece.ids)
            if piece.reason:
                new, reason = new + stream.end(), piece.reason
            text += new
            write(new)
            new = ""
    except KeyboardInterrupt:
        reason, new = "interrupted", stream.end()
        text += new
        write(new)
    seconds, counts = time.perf_counter() - begin, loop.counts
    return Answer(
        prompt_ids=request.prompt,
        ids=ids,
        text=text,
        reason=reason,
        prompt_tokens=len(request.prompt),
        tokens=len(ids),
        sampling=asdict(loop.sampling),
        speed=Speed(
            seconds=seconds,
            first_seconds=first,
            tokens_per_second=(len(ids) - 1) / (seconds - first) if steps else None,
            tokens_per_step=(len(ids) - 1) / steps if steps else None,
            drafted=counts.drafted,
            kept=counts.kept,
        ),
    )
