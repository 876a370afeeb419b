"""Sampling from a model in this process: ids of prompts in, texts out, fast on a CPU, reproducible.

A loop of our own in place of transformers' `generate`: rows that have ended leave the batch, the
cache grows by half instead of being copied for every token, and each row has its own random
numbers, so that an answer depends only on its seed and place (and, in the last bits of a logit, on
the rest of its batch). docs/log.md has what that gains.
"""

import random
from collections.abc import Container, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging

from dstools_converters.errors import DstoolsError
from dstools_converters.model.tokenizer import end_token_id
from dstools_distill.loading import keep_freed_memory, load_model
from dstools_distill.teachers import latent

logging.disable_progress_bar()  # type: ignore[no-untyped-call] # work.bar shows the progress
FIRST_TOKENS = 1024  # nucleus sampling looks at this many before it sorts the whole vocabulary
NOISE_STEPS = 64  # this many random numbers of a row are drawn at a time
CROWD = 0.875  # ended rows leave once this share of the batch or less is live


class Sampled(NamedTuple):
    """One answer."""

    ids: list[int]  # every token drawn; the last one is an end token if finish_reason is "stop"
    text: str  # with special tokens, without the end token
    finish_reason: Literal["stop", "length"]


class Sampler:
    """A causal model that answers prompts.

    model: a folder that transformers can load, or one with FP8 blocks; its weights are widened or
    rounded to `precision`. An answer ends with an end token of the model's generation config, or
    with the one that the tokenizer's template writes after an answer. Raises DstoolsError if the
    folder does not hold a complete causal language model.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Any,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        if device == "cpu":
            keep_freed_memory()
        elif not torch.cuda.is_available():
            raise DstoolsError("device cuda: this machine has none", 'set device = "cpu"')
        loaded = load_model(model, getattr(torch, precision), device_map=device)
        if device == "cpu":
            loaded.set_experts_implementation("eager")  # does nothing without experts
        latent.absorb(loaded)
        self.model = loaded.eval()
        self.tokenizer = tokenizer
        ends = loaded.generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self.end_ids = torch.tensor(sorted({*listed, end_token_id(tokenizer)}), device=device)
        self.positions: int | None = getattr(
            loaded.config.get_text_config(), "max_position_embeddings", None
        )

    def batches(
        self,
        prompts: list[list[int]],
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
        batch_size: int,
        first: int = 0,
        done: Container[int] = (),
    ) -> Iterator[dict[int, Sampled]]:
        """Yield answers by the places of their prompts, a batch at a time, shortest prompts first.

        temperature 0 is greedy. An answer also ends, with "length", when the model runs out of
        positions. Places count from `first`. A batch whose places are all `done` is skipped; the
        others are the same as without `done`.
        """
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(prompts), batch_size):
            rows = by_length[start : start + batch_size]
            places = [first + row for row in rows]
            if not all(place in done for place in places):
                drawn = self._decode(
                    [prompts[row] for row in rows], places, temperature, top_p, max_tokens, seed
                )
                yield {place: self._sampled(ids) for place, ids in zip(places, drawn, strict=True)}

    def _sampled(self, ids: list[int]) -> Sampled:
        ended = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(
            ids[:-1] if ended else ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return Sampled(ids, text, "stop" if ended else "length")

    @torch.inference_mode()
    def _decode(
        self,
        prompts: list[list[int]],
        places: list[int],
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> list[list[int]]:
        """Return the tokens drawn after each prompt. `places` decide the random numbers of rows."""
        answers: list[list[int]] = [[] for _ in prompts]
        limits = [
            max_tokens if self.positions is None else min(max_tokens, self.positions - len(prompt))
            for prompt in prompts
        ]
        rows = [row for row, limit in enumerate(limits) if limit > 0]  # the prompt of each line
        if not rows:
            return answers
        ids, mask = _padded_left([prompts[row] for row in rows], self.end_ids.device)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        cache = _roomy_cache(self.model.config)
        live = [True] * len(rows)
        noise: list[list[float]] = []
        for step in count():
            logits = self._logits(ids, mask, position, cache)
            if temperature == 0:
                drawn = logits.argmax(-1)
            else:
                if step % NOISE_STEPS == 0:
                    noise = [_noise(seed, places[row], step) for row in rows]
                uniform = torch.tensor(
                    [numbers[step % NOISE_STEPS] for numbers in noise], dtype=torch.float64
                ).to(logits.device)
                drawn = draw(logits / temperature, top_p, uniform)
            ended = torch.isin(drawn, self.end_ids).tolist()
            for line, (row, token) in enumerate(zip(rows, drawn.tolist(), strict=True)):
                if live[line]:
                    answers[row].append(token)
                    live[line] = not ended[line] and len(answers[row]) < limits[row]
            kept = [line for line, is_live in enumerate(live) if is_live]
            if not kept:
                return answers
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            ids, position = drawn[:, None], position[:, -1:] + 1
            if len(kept) <= CROWD * len(rows):
                rows = [rows[line] for line in kept]
                noise = [noise[line] for line in kept] if noise else noise
                live = [True] * len(kept)
                lines = torch.tensor(kept, device=ids.device)
                cache.batch_select_indices(lines)
                ids, mask, position = ids[lines], mask[lines], position[lines]
        raise AssertionError("count() ended")

    def _logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits after the last token of each row: [rows, vocabulary] float32."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def draw(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """Return a token for each row [rows], int64: the one whose probability interval has `uniform`.

    logits: [rows, vocabulary] float32, with the temperature applied; uniform: [rows] float64 in
    [0, 1). Only the nucleus counts: the fewest most probable tokens that together reach `top_p`.
    Source: Holtzman et al., arXiv 1904.09751.
    """
    shares = torch.softmax(logits, -1)
    tokens = None
    if top_p < 1:
        first, tokens = shares.topk(min(FIRST_TOKENS, shares.shape[1]))
        if bool((first.sum(-1) < top_p).any()):
            first, tokens = shares.sort(stable=True, dim=-1, descending=True)
        before = first.cumsum(-1, dtype=torch.float64) - first
        shares = first.masked_fill(before >= top_p, 0)
        shares[:, 0] = first[:, 0]
    reached = shares.cumsum(-1, dtype=torch.float64)  # float64: uniform < 1 stays below the sum
    rank = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    return (rank if tokens is None else tokens.gather(1, rank))[:, 0]


def _noise(seed: int, place: int, step: int) -> list[float]:
    """Return the next NOISE_STEPS random numbers in [0, 1) of a row."""
    source = random.Random(f"{seed} {place} {step}")
    return [source.random() for _ in range(NOISE_STEPS)]


def _padded_left(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask [rows, tokens], int64; masked ids are 0, but could be any."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """Keys and values of a layer in buffers that grow; DynamicLayer copies all for each token."""

    room: list[Tensor] | None = None  # the buffers that keys and values are the beginning of

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, heads, tokens, size]; return all of both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < length:
            self.room = [
                _with_room(old, length) for old in (self.keys, self.values) if old is not None
            ]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., before:length, :] = new
        keys, values = (room[..., :length, :] for room in self.room)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        super().batch_select_indices(indices)
        self.room = None


def _with_room(old: Tensor, length: int) -> Tensor:
    """Return a copy of `old` in a buffer for `length` tokens and more."""
    room = old.new_empty(*old.shape[:-2], max(length + NOISE_STEPS, length * 3 // 2), old.shape[-1])
    room[..., : old.shape[-2], :] = old
    return room


def _roomy_cache(config: Any) -> DynamicCache:
    """Return an empty cache whose plain layers grow by half; others are unchanged."""
    cache = DynamicCache(config=config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]
        for layer in cache.layers
    ]
    return cache
