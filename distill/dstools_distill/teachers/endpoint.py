"""A teacher behind an OpenAI-compatible endpoint, such as vLLM, SGLang or DeepSeek's API.

The openai client itself retries time-outs, broken connections and the statuses 408, 409, 429 and
5xx, with growing pauses or as Retry-After says. What still fails is sorted here: a sample that is
refused or did not come, though the teacher answers others, is missed, and the next run asks for it
again; a teacher that is down stops the run, which can be resumed.
"""

import asyncio
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import urljoin, urlsplit

from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncAPIResponse,
    AsyncOpenAI,
    Timeout,
)

from dstools_converters.errors import RESUME_HINT, DstoolsError, printable
from dstools_distill.recipe.settings import Generate
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.inflight import Gate
from dstools_distill.teachers.kept import reread
from dstools_distill.teachers.reply import (
    NoCompletionError,
    UnreadError,
    answer,
    completion,
    server_words,
    unread,
)
from dstools_distill.teachers.request import request
from dstools_distill.teachers.teacher import (
    REFUSED,
    Answer,
    Ask,
    Failed,
    Missed,
    Outcome,
    Outcomes,
    Teacher,
)

PROMPT_REFUSED = (400, 413, 422)  # the prompt is too long, or refused for another reason
UNPAID, MOVED = 402, (301, 302, 303, 307, 308)
PASSING = (408, 409, 429)  # with 5xx: these may pass
REFUSALS = 32  # this many before the first answer: the prompts are not to blame
CONNECT_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0  # as in the client


TROUBLE = (APIStatusError, APIConnectionError, NoCompletionError)


def endpoint(settings: Generate) -> Teacher:
    """Return a teacher that sends settings.concurrency requests at a time to settings.base_url.

    The key is the value of the environment variable that settings.api_key_env names; it is never
    shown. The teacher raises DstoolsError with the URL if the server is down, refuses the key,
    refuses every request, or answers each in a form that cannot be read.
    """

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        _require_readable(settings, done)
        missing = (ask for ask in asks if ask.number not in done)
        return _as_they_come(settings, missing, done)

    return answers


def check_endpoint(settings: Generate) -> None:
    """Raise DstoolsError for an address, a time or a key with which no request can be sent."""
    if not settings.base_url:
        raise DstoolsError("generate.base_url: is missing", ADDRESS)
    try:
        parts = urlsplit(settings.base_url)
        is_web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is not a number
        is_web = False
    if not is_web:
        problem = f"generate.base_url: {printable(settings.base_url)!r} is not a web address"
        raise DstoolsError(problem, ADDRESS)
    if not settings.timeout_seconds:
        raise DstoolsError("generate.timeout_seconds: is 0", "give a request time to be answered")
    if fault := _fault(_key(settings)):
        problem = f"${settings.api_key_env}: the key holds {fault}"
        raise DstoolsError(problem, "set the variable again, to the key alone")


def _fault(key: str) -> str:
    """Return what a header of a request cannot hold of a key; "" if it can hold all of it."""
    if not key.isascii():
        return "a character outside ASCII"
    if "\r" in key or "\n" in key:
        return "a line break"
    return "" if key.isprintable() and " " not in key else "a blank or control character"


ADDRESS = 'write one such as "http://127.0.0.1:8000/v1"'


def _as_they_come(settings: Generate, asks: Iterator[Ask], done: SampleLog) -> Outcomes:
    """Yield outcomes as requests end. The event loop is paused while the caller handles one.

    After an error, or Ctrl-C, it yields what is still in flight, and then raises.
    """
    watch = _Watch(settings, done)
    with asyncio.Runner() as runner:
        gate = Gate(runner.get_loop(), settings.timeout_seconds)
        client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=_key(settings) or "none",
            timeout=Timeout(settings.timeout_seconds, connect=_connect_seconds(settings)),
            http_client=gate,
        )
        with gate.interruptible():
            try:
                while True:
                    if not gate.is_stopped():
                        for ask in islice(asks, settings.concurrency - len(gate.tasks)):
                            gate.tasks.add(gate.loop.create_task(_ask(client, settings, ask)))
                    if not gate.tasks:
                        break
                    ended, _ = runner.run(
                        asyncio.wait(gate.tasks, return_when=asyncio.FIRST_COMPLETED)
                    )
                    gate.tasks -= ended
                    for task in ended:
                        if task.cancelled():
                            continue
                        try:
                            yield task.result()  # at once: it may hold a reply that was paid for
                            watch.note(task.result()[1])
                        except DstoolsError as error:
                            gate.stop(error)
            finally:
                runner.run(_close(client, gate.tasks))
        if gate.reason is not None:
            raise gate.reason


async def _close(client: AsyncOpenAI, tasks: set[asyncio.Task[tuple[int, Outcome]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def _ask(client: AsyncOpenAI, settings: Generate, ask: Ask) -> tuple[int, Outcome]:
    """Return one sample, for at most 1 + settings.retries requests.

    The last of them waits until the teacher answers a trivial question; DstoolsError if it is down.
    """
    outcome = await _attempt(client, settings, ask, max(settings.retries - 1, 0))
    if isinstance(outcome, Exception):
        await _require_answering(client, settings)
        if settings.retries:
            outcome = await _attempt(client, settings, ask, 0)
    if isinstance(outcome, Exception):
        failed = _failed(outcome, settings)
        outcome = Missed(failed.reason, failed.detail)
    return ask.number, outcome


async def _attempt(
    client: AsyncOpenAI, settings: Generate, ask: Ask, retries: int
) -> Outcome | Exception:
    """Return a sample, or an error that may pass. DstoolsError: no request can succeed."""
    try:
        return await _completion(client, settings, request(settings, ask), retries)
    except TROUBLE as error:
        status = error.status_code if isinstance(error, APIStatusError) else 500
        if status in PROMPT_REFUSED:
            failed = _failed(error, settings)
            return Missed(REFUSED + failed.reason, failed.detail)
        if status < 500 and status not in PASSING:
            refusal = _failed(error, settings)
            hint = f"check generate.base_url, generate.model and the key in ${settings.api_key_env}"
            if status == UNPAID:
                hint = f"top up the balance of the key's account; then {RESUME_HINT}"
            raise DstoolsError(
                f"{_shown(settings.base_url)}: refuses: {refusal.reason}: {refusal.detail}", hint
            ) from None
        return error


async def _require_answering(client: AsyncOpenAI, settings: Generate) -> None:
    """Raise DstoolsError unless the teacher answers a request, even by refusing the prompt."""
    hello = {"model": settings.model, "messages": [{"role": "user", "content": "1"}]}
    try:
        await _completion(client, settings, hello | {"max_tokens": 1}, settings.retries)
    except TROUBLE as error:
        if not (isinstance(error, APIStatusError) and error.status_code in PROMPT_REFUSED):
            raise DstoolsError(
                f"{_shown(settings.base_url)}: the teacher does not answer: "
                f"{_failed(error, settings).reason}",
                f"finished samples are kept; when it is back, {RESUME_HINT}",
            ) from None


async def _completion(
    client: AsyncOpenAI, settings: Generate, body: dict[str, Any], retries: int
) -> Answer | Failed:
    """Return the answer to a request; retry one that is no completion, which the client does not.

    The JSON is read as it came, including fields that OpenAI's API does not have.
    """
    left, pause = retries, FIRST_PAUSE_SECONDS
    while True:
        response = await client.post(
            "/chat/completions",
            body=body,
            cast_to=AsyncAPIResponse[str],
            options={"max_retries": left},
        )
        left -= response.retries_taken
        raw = await response.read()
        reply: Any = raw.decode("utf-8-sig", "surrogateescape")
        try:
            reply = completion(reply)
            return answer(reply, settings)
        except UnreadError as error:
            return unread(error, reply)
        except NoCompletionError:
            if left == 0:
                raise
        await asyncio.sleep(pause)
        left, pause = left - 1, min(2 * pause, LONGEST_PAUSE_SECONDS)


def _failed(error: Exception, settings: Generate) -> Failed:
    """Return a reason, which is the same for every error of a kind, and the server's own words."""
    match error:
        case APIStatusError():
            kind, words = server_words(
                error.body if isinstance(error.body, dict) else error.message
            )
            if error.status_code in MOVED:
                target = urljoin(str(error.request.url), error.response.headers.get("location"))
                words = f"redirects to {_shown(target)}"
            reason = f"{error.status_code} {kind}".strip()
        case APITimeoutError() if type(error.__cause__).__name__ == "ConnectTimeout":
            reason, words = "no connection", f"none within {_connect_seconds(settings):g} s"
        case APITimeoutError():
            reason, words = "time-out", f"nothing came for {settings.timeout_seconds:g} s"
        case APIConnectionError():
            reason, words = "no connection", str(error.__cause__ or error)
        case NoCompletionError():
            reason, words = error.reason, str(error)
        case _:
            raise error
    if key := _key(settings):
        words = words.replace(key, "...")
    return Failed(printable(reason), printable(words))


class _Watch:
    """Raises DstoolsError after the first REFUSALS outcomes if all of those failed.

    Then the prompts are not to blame. A resumed run, with answers in the log, may have only samples
    left that were missed before, so samples that are missed again do not count.
    """

    def __init__(self, settings: Generate, done: SampleLog) -> None:
        self.settings, self.done = settings, done
        self.is_first = len(done) == len(done.failed)
        self.is_answered = False
        self.lost = 0

    def note(self, outcome: Outcome) -> None:
        """Count an outcome that is in the log."""
        if isinstance(outcome, Answer):
            self.is_answered = True
            return
        self.lost += self.is_first or isinstance(outcome, Failed)
        if self.is_answered or self.lost != REFUSALS:
            return
        _require_readable(self.settings, self.done)
        is_kept = bool(self.done.failed)
        kept = f"; what the server said is kept in {self.done.path}" if is_kept else ""
        raise DstoolsError(
            f"{_shown(self.settings.base_url)}: none of the first {REFUSALS} samples came: "
            f"{outcome.reason}{outcome.detail and ': '}{outcome.detail}{kept}",
            "check that the server accepts max_tokens, temperature, top_p and "
            "prefill_think of generate, and answers within timeout_seconds",
        )


def _require_readable(settings: Generate, done: SampleLog) -> None:
    """Raise DstoolsError if REFUSALS replies are in the log, and not one of them can be read.

    More of them would be paid for in vain.
    """
    if len(done) == len(done.failed) >= REFUSALS:
        lines = [reread(done.read(number), settings) for number in sorted(done.failed)]
        if all("failed" in line for line in lines):
            raise DstoolsError(
                f"{_shown(settings.base_url)}: none of the {len(lines)} samples that came can be "
                f"read: {lines[0]['failed']}; what the server said is kept in {done.path}",
                "a later version may read it; or let the server answer in another form, delete "
                'the lines with "body" in that file, and run it again to ask once more',
            )


def _connect_seconds(settings: Generate) -> float:
    return min(CONNECT_SECONDS, settings.timeout_seconds)


def _key(settings: Generate) -> str:
    return os.environ.get(settings.api_key_env, "")


def _shown(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
