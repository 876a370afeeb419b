"""Sampling from a model in this process: ids of prompts in, texts out, reproducible.

The loop is that of dstools_converters.runtime: each answer has its own random numbers, so it
depends only on its seed and place and, in the last bits of a logit, on what runs beside it. So
places are answered in windows: one of which any is missing runs as a whole, in the same order, and
gives what it gave before.
"""

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from dstools_converters.errors import DstoolsError, UnsupportedError
from dstools_converters.model.tokenizer import end_ids, end_token_id
from dstools_converters.runtime.decode import Loop, Reason, Request
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.session import Session, pool_for
from dstools_converters.runtime.weights import load, takes_codes
from dstools_distill.loading import keep_freed_memory
from dstools_distill.machine import lack_of_device
from dstools_distill.teachers.teacher import windows


class Sampled(NamedTuple):
    """One answer."""

    ids: list[int]  # every token drawn; the last one is an end token if finish_reason is "stop"
    text: str  # with special tokens, without the end token
    finish_reason: Reason  # "error": the logits of the next token were not finite


class Sampler:
    """A causal model that answers prompts.

    model: a checkpoint of a family that dstools_converters.model.decoder implements, FP8 blocks
    too; its weights are widened or rounded to `precision`, but for FP8 that Triton multiplies as it
    is. An answer ends with an end token of the model's configs, or with the one that the
    tokenizer's template writes after an answer. Raises DstoolsError for any other folder.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Any,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        if fault := lack_of_device(device):
            raise DstoolsError(*fault)
        if device == "cpu":
            keep_freed_memory()
        try:
            dtype, place = getattr(torch, precision), torch.device(device)
            is_fp8 = takes_codes(dtype, place)
            self.serving = load(model, dtype, place, mtp=False, keeps_codes=is_fp8)
        except DstoolsError as error:
            advice = error.hint
            if isinstance(error, UnsupportedError):
                advice += "; any other model can be sampled from an endpoint that serves it"
            raise DstoolsError(f"{model}: cannot be loaded: {error}", advice) from error
        self.tokenizer = tokenizer
        self.end_ids = end_ids(model, tokenizer)
        if not self.end_ids and tokenizer.chat_template:
            end_token_id(tokenizer)  # raises, as answers would never end

    def answers(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        *,
        max_tokens: int,
        batch_size: int,
        first: int = 0,
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        """Yield answers with the places of their prompts as they end, those that are not `done`.

        An answer also ends, with "length", when the model runs out of positions. Places count from
        `first`, and are answered in windows.
        """
        for begin, window in windows(prompts, batch_size, done, first):
            yield from self.window(
                begin, window, sampling, max_tokens=max_tokens, batch_size=batch_size, done=done
            )

    def window(
        self,
        first: int,
        prompts: list[list[int]],
        sampling: Sampling,
        *,
        max_tokens: int,
        batch_size: int,
        done: Container[int],
    ) -> Iterator[tuple[int, Sampled]]:
        """Answer a window as a whole, and yield what is not `done`, as `answers` does.

        The shortest prompts enter first, `batch_size` at a time.
        """
        room = self.serving.positions
        requests = [
            Request(first + row, prompt, min(max_tokens, room - len(prompt)))
            for row, prompt in sorted(enumerate(prompts), key=lambda numbered: len(numbered[1]))
        ]
        for place, answer in self._run(requests, sampling, batch_size):
            if place not in done:
                yield place, answer

    def _run(
        self, requests: list[Request], sampling: Sampling, batch_size: int
    ) -> Iterator[tuple[int, Sampled]]:
        """Yield the answers to all requests; those without room for a token are empty."""
        for request in requests:
            if request.max_tokens < 1:
                yield request.prompt_index, Sampled([], "", "length")
        requests = [request for request in requests if request.max_tokens > 0]
        lengths = [len(request.prompt) + request.max_tokens for request in requests]
        pool = pool_for(self.serving, lengths, batch_size)
        loop = Loop(Session(self.serving, pool), pool, sampling, self.end_ids, rows=batch_size)
        drawn: dict[int, list[int]] = {}
        for place, ids, reason in loop.run(requests):
            drawn.setdefault(place, []).extend(ids)
            if reason is not None:
                yield place, self._sampled(drawn.pop(place), reason)

    def _sampled(self, ids: list[int], reason: Reason) -> Sampled:
        text = self.tokenizer.decode(
            ids[:-1] if reason == "stop" else ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return Sampled(ids, text, reason)
