"""A teacher behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, DeepSeek's API and others.

The openai client tries again by itself, with growing pauses or as Retry-After says, after time-outs, broken
connections and the statuses 408, 409, 429 and 5xx. What is left is told apart here: a prompt that is
refused fails; a sample that did not come, though the teacher answers others, is missed, and another run asks
for it again; a teacher that is down ends the run, which can go on.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, Timeout

from dstools_converters.errors import RESUME_HINT, DstoolsError, printable
from dstools_distill.recipe.settings import Generate
from dstools_distill.records import CLOSE, OPEN, thought
from dstools_distill.store.samplelog import SampleLog
from dstools_distill.teachers.teacher import (
    Answer,
    Ask,
    Failed,
    Missed,
    Outcome,
    Outcomes,
    Teacher,
    tokens,
)

PROMPT_REFUSED = (400, 413, 422)  # it is the prompt that is too long, or not to the server's taste
PASSING = (408, 409, 429)  # and 5xx: they may be gone later
REFUSALS = 32  # so many before the first answer: it is not the prompts
CONNECT_SECONDS = 10.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0  # as the client's own


def endpoint(settings: Generate) -> Teacher:
    """Return a teacher that asks settings.base_url, settings.concurrency requests at once.

    The key is the value of the variable that settings.api_key_env names, and is never shown. Raises
    DstoolsError naming the URL where the teacher is down, refuses the key, or refuses all that is asked.
    """
    if not settings.base_url:
        raise DstoolsError("generate.base_url is missing", 'such as "http://127.0.0.1:8000/v1"')

    def answers(asks: Iterator[Ask], done: SampleLog) -> Outcomes:
        missing = (ask for ask in asks if ask.number not in done)
        outcomes = _as_they_come(settings, missing)
        return _unless_all_are_refused(outcomes, settings, is_first=len(done) == 0)

    return answers


def request(settings: Generate, ask: Ask) -> dict[str, Any]:
    """Return the body of a chat completion: samples of a prompt differ in their seed.

    A prefilled <think> is the beginning of an assistant's message, to be continued. vLLM and SGLang want
    continue_final_message, vLLM and llama.cpp no generation prompt beside it, and DeepSeek's API, at its
    /beta address, wants prefix; each ignores the others' words. Sources: vLLM, OpenAI-compatible server;
    SGLang, protocol.py; llama.cpp, tools/server/README.md; api-docs.deepseek.com, Chat Prefix Completion.
    """
    messages: list[dict[str, Any]] = list(ask.prompt["messages"])
    body = {
        "model": settings.model,
        "messages": messages,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed + ask.sample,
    }
    if settings.prefill_think:
        messages.append({"role": "assistant", "content": f"{OPEN}\n", "prefix": True})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def answer(body: Any, settings: Generate) -> Answer:
    """Return what a chat completion says. Raises ValueError where it is none.

    A trace that the server took out of the text, `reasoning_content` or `reasoning`, is put back. llama.cpp
    repeats a prefilled opener, the others do not. A text that closes a trace it never opened continues an
    opener that the server's template wrote.
    """
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content = message["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise ValueError("the answer is no chat completion") from None
    prefilled = settings.prefill_think
    if prefilled:
        content = content.removeprefix(f"{OPEN}\n")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    raw = thought(reasoning, content, prefilled)
    prefilled = prefilled or (OPEN not in raw and raw.count(CLOSE) == 1)
    return Answer(
        raw, choice.get("finish_reason") or "unknown", prefilled, tokens(body.get("usage"))
    )


def _as_they_come(settings: Generate, asks: Iterator[Ask]) -> Outcomes:
    """Yield outcomes as requests end. The event loop stands still while the caller has one in hand."""
    running: set[asyncio.Task[tuple[int, Outcome]]] = set()
    with asyncio.Runner() as runner:
        client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=_key(settings) or "none",
            max_retries=settings.retries,
            timeout=Timeout(
                settings.timeout_seconds, connect=min(CONNECT_SECONDS, settings.timeout_seconds)
            ),
        )
        try:
            while True:
                for ask in islice(asks, settings.concurrency - len(running)):
                    running.add(runner.get_loop().create_task(_ask(client, settings, ask)))
                if not running:
                    return
                ended, running = runner.run(_first(running))
                for task in ended:
                    if task.exception() is None:
                        yield task.result()
                for task in ended:
                    task.result()  # raises, now that nothing is lost by it
        finally:
            runner.run(_close(client, running))


async def _first(
    tasks: set[asyncio.Task[tuple[int, Outcome]]],
) -> tuple[set[asyncio.Task[tuple[int, Outcome]]], set[asyncio.Task[tuple[int, Outcome]]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _close(client: AsyncOpenAI, tasks: set[asyncio.Task[tuple[int, Outcome]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


async def _ask(client: AsyncOpenAI, settings: Generate, ask: Ask) -> tuple[int, Outcome]:
    """Return one sample; where its retries are used up, tell whether it is the teacher that is down.

    If that answers a trivial question meanwhile, the sample gets one more chance, and is then missed.
    """
    outcome = await _attempt(client, settings, ask)
    if isinstance(outcome, Exception):
        await _see_it_alive(client, settings)
        outcome = await _attempt(client, settings, ask)
    if isinstance(outcome, Exception):
        outcome = Missed(*_failed(outcome, settings))
    return ask.number, outcome


TROUBLE = (APIStatusError, APIConnectionError, ValueError)  # the last one: no JSON, or none we know


async def _attempt(client: AsyncOpenAI, settings: Generate, ask: Ask) -> Outcome | Exception:
    """Return a sample, or the trouble that may pass. Raises DstoolsError for one that concerns all."""
    try:
        return await _completion(client, settings, request(settings, ask))
    except TROUBLE as error:
        status = error.status_code if isinstance(error, APIStatusError) else 500
        if status in PROMPT_REFUSED:
            return _failed(error, settings)
        if status < 500 and status not in PASSING:
            said = _failed(error, settings)
            raise DstoolsError(
                f"{_shown(settings.base_url)}: refuses: {said.reason}: {said.detail}",
                f"are generate.base_url, generate.model and the key in ${settings.api_key_env} right?",
            ) from None
        return error


async def _see_it_alive(client: AsyncOpenAI, settings: Generate) -> None:
    """Raise DstoolsError unless the teacher answers something, if only that it does not like it."""
    hello = {"model": settings.model, "messages": [{"role": "user", "content": "1"}]}
    try:
        await _completion(client, settings, hello | {"max_tokens": 1})
    except TROUBLE as error:
        if not (isinstance(error, APIStatusError) and error.status_code in PROMPT_REFUSED):
            raise DstoolsError(
                f"{_shown(settings.base_url)}: the teacher does not answer: "
                f"{_failed(error, settings).reason}",
                f"what has come is kept; when it is back, {RESUME_HINT}",
            ) from None


async def _completion(client: AsyncOpenAI, settings: Generate, body: dict[str, Any]) -> Answer:
    """Return what the teacher says; a body that is cut short, which the client takes as it is, is asked for again.

    The JSON is taken as it came, with the fields that OpenAI does not know.
    """
    for tried in range(settings.retries + 1):
        try:
            said = await client.post("/chat/completions", body=body, cast_to=object)
            return answer(said, settings)
        except ValueError:
            if tried == settings.retries:
                raise
            await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2**tried, LONGEST_PAUSE_SECONDS))
    raise AssertionError("retries are none or more")


def _failed(error: Exception, settings: Generate) -> Failed:
    """Return a reason that is the same for the same trouble, and what the server says to it."""
    if isinstance(error, APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        kind = body.get("type") or body.get("code") or ""
        detail = str(body.get("message") or error.message)
        key = _key(settings)
        detail = detail.replace(key, "...") if key else detail
        return Failed(printable(f"{error.status_code} {kind}".strip()), printable(detail))
    if isinstance(error, APITimeoutError):
        return Failed("time-out", f"none within {settings.timeout_seconds:g} s")
    if isinstance(error, APIConnectionError):
        return Failed("no connection", printable(str(error.__cause__ or error)))
    return Failed("no chat completion", printable(str(error)))


def _unless_all_are_refused(outcomes: Outcomes, settings: Generate, *, is_first: bool) -> Outcomes:
    """Yield outcomes; raise DstoolsError where the first REFUSALS all failed: then it is not the prompts.

    A run that goes on may have nothing left but samples that were missed, and is_first is False: those that
    are missed again do not count.
    """
    held: list[tuple[int, Outcome]] = []
    with closing(outcomes):  # a client left open would keep the process from ending
        for number, outcome in outcomes:
            if isinstance(outcome, Missed) and not is_first:
                yield number, outcome
                continue
            held.append((number, outcome))
            if isinstance(outcome, Answer):
                break
            if len(held) == REFUSALS:
                raise DstoolsError(
                    f"{_shown(settings.base_url)}: none of the first {REFUSALS} samples came: "
                    f"{outcome.reason}: {outcome.detail}",
                    "does it take generate's max_tokens, temperature, top_p and prefill_think, and "
                    "answer within timeout_seconds?",
                )
        yield from held
        yield from outcomes


def _key(settings: Generate) -> str:
    return os.environ.get(settings.api_key_env, "")


def _shown(url: str) -> str:
    """Return a URL without what may be a password in it."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
