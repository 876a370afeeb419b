"""Answers of onnxruntime-genai's Engine to prompts of ids, from an exported folder.

    engine = GenaiEngine(folder, Sampling(), drafts=1)
    for piece in engine.run([Request(0, prompt, 128)]):    # tokens as they come
        ...

It takes the place of `decode.Loop`: the same requests, pieces and counts. Greedy answers are equal
to the Loop's. Sampled ones are genai's own: `temperature` and `top_p` mean the same, the random
numbers are not those of draw.py. genai's tokenizer is never used, as its ids may be others than
those of tokenizer.json. What 0.18 does, and what is made of it here:

- It embeds ids outside of the vocabulary as other tokens: they are refused before.
- It keeps the page of a request that has ended until the request is closed.
- Where no row can have the page it needs, steps say so forever, of no request in particular.
- It leaves the end token out, and does not say which of several it was: the first one is taken.
- It does not look whether logits are finite, so no answer ends with "error".
"""

import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.export.folder import GENAI_CONFIG, Export, require_export
from dstools_converters.export.genai import ERRORS, find_genai, is_drawn
from dstools_converters.runtime.decode import Counts, Piece, Reason, Request, length_limit
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.tables import json_table

BLOCKED_STEPS = 4  # in a row; nothing that runs here could end a block
EVENTS = 16  # of a row in a step, at most: a token each, and its end
SEED_BITS = 63


class GenaiEngine:
    """An exported folder, loaded; how its answers are drawn.

    drafts: how many tokens the MTP layer drafts at a time, 0 for none. Raises DstoolsError where
    onnxruntime-genai is missing or cannot run the folder as asked.
    """

    def __init__(self, folder: Path, sampling: Sampling, drafts: int = 0) -> None:
        self.folder, self.sampling, self.drafts = folder, sampling, drafts
        export = require_export(folder)
        _require_runnable(folder, export, drafts)
        self.vocab_size, self._end = _read_config(folder)
        genai = find_genai()
        if genai is None:
            raise DstoolsError(
                "--engine genai needs onnxruntime-genai", 'pip install "dstools-llm[export]"'
            )
        self._genai = genai
        speculation: dict[str, Any] = {"speculative": {"max_draft_tokens": drafts}}
        if not drafts:
            speculation = {"model": {"mtp": {"enabled": False}}} if export.has_mtp else {}
        try:
            config = genai.Config(str(folder))
            config.overlay(json.dumps(speculation))
            self._engine = genai.Engine(genai.Model(config))
        except ERRORS as error:
            raise self._error(error) from error
        capabilities = self._engine.get_capabilities()
        self.rows: int = capabilities.configured_max_batch_size
        self.positions: int = capabilities.max_request_length
        most = self._engine.max_draft_tokens_per_proposal()
        if drafts > most:
            raise DstoolsError(
                f"cannot draft {drafts} tokens at a time", f"genai drafts {most} at most"
            )
        self._events = self._engine.create_event_buffer(EVENTS * self.rows)
        self.counts = Counts(drafted=[0] * drafts, kept=[0] * drafts)

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yield the tokens of all answers as they come; rows enter in the order of `requests`.

        Raises DstoolsError before the first token for a prompt that is empty, has an id outside of
        the vocabulary, or does not fit the context of the folder; later where the pool of pages is
        too small for the rows that run, and where ONNX Runtime fails.
        """
        alone = len(requests) == 1
        waiting = deque(
            (request, self._limit(request, "the prompt" if alone else f"prompt {index}"))
            for request in requests
            for index in [request.prompt_index]
        )
        live: dict[Any, int] = {}  # genai's request -> prompt_index
        blocked = 0
        try:
            while waiting or live:
                while waiting and len(live) < self.rows:
                    request, limit = waiting.popleft()
                    live[self._begin(request, limit)] = request.prompt_index
                pieces, is_blocked = self._step(live)
                blocked = blocked + 1 if is_blocked else 0
                if blocked == BLOCKED_STEPS:
                    raise self._full(len(live))
                yield from pieces
        finally:
            for handle in live:
                handle.close()

    def _limit(self, request: Request, name: str) -> int:
        """Return how many tokens a prompt and its answer have at most."""
        if len(request.prompt) >= self.positions:
            raise DstoolsError(
                f"{name} has {len(request.prompt)} tokens; {self.folder} is made for "
                f"{self.positions}, with the answer",
                "shorten it, or export the model with a larger --context",
            )
        return length_limit(request, name, Pool(self.positions, 1), self.vocab_size, self.positions)

    def _begin(self, request: Request, limit: int) -> Any:
        """Return a request of genai's that has begun."""
        index, prompt, _ = request
        options = self._genai.RequestOptions()
        options.set_max_session_tokens(limit)
        try:
            handle = self._engine.create_request(options=options)
            turn = self._genai.TurnOptions(handle)
            turn.set_max_generated_tokens(limit - len(prompt))
            turn.set_do_sample(is_drawn(self.sampling))
            if is_drawn(self.sampling):
                turn.set_temperature(self.sampling.temperature)
                turn.set_top_p(self.sampling.top_p)
                turn.set_top_k(self.vocab_size)  # see genai.py
                turn.set_seed(random.Random(f"{self.sampling.seed} {index}").getrandbits(SEED_BITS))
            handle.begin_turn(np.array(prompt, np.int32), turn)
        except ERRORS as error:
            raise self._error(error) from error
        return handle

    def _step(self, live: dict[Any, int]) -> tuple[list[Piece], bool]:
        """Run a step; return its pieces, and whether no row could have the page it needs.

        Requests that ended are closed and taken out of `live`.
        """
        try:
            events = list(self._engine.run(self._events))
        except ERRORS as error:
            raise self._error(error) from error
        self.counts.steps += 1
        ids: dict[Any, list[int]] = {}
        reasons: dict[Any, Reason] = {}
        for event in events:
            if event.request is None:
                continue
            answer = ids.setdefault(event.request, [])
            if event.token is not None:
                answer.append(event.token)
            reason = self._reason(event)
            if reason:
                reasons[event.request] = reason
            if reason == "stop":
                answer.append(self._end)
        self._count(sum(map(len, ids.values())))
        pieces = [Piece(live[key], answer, reasons.get(key)) for key, answer in ids.items()]
        for handle in reasons:
            handle.close()
            del live[handle]
        return pieces, bool(events) and not ids

    def _reason(self, event: Any) -> Reason | None:
        """Return why a request has ended, None where it has not."""
        reasons = self._genai.FinishReason
        if event.finish_reason == reasons.NONE:
            return None
        if event.finish_reason == reasons.EOS:
            return "stop"
        if event.finish_reason in (reasons.MAX_GENERATED_TOKENS, reasons.MAX_SESSION_TOKENS):
            return "length"
        try:
            self._engine.create_request()  # an Engine that failed says why, of whatever is asked
        except ERRORS as error:
            raise self._error(error) from error
        raise DstoolsError(f"{self.folder}: onnxruntime-genai failed: {event.error_code.name}")

    def _count(self, tokens: int) -> None:
        """Count the tokens of a step, and the drafts so far.

        genai counts how many drafts of a step were right before the first wrong one, which is the
        last one that is looked at. Where few tokens are left to draw, it drafts fewer than that.
        """
        self.counts.tokens += tokens
        if self.drafts:
            steps = self._engine.get_speculative_stats()["acceptance_length_histogram"]
            at_least = [sum(steps[length:]) for length in range(self.drafts + 1)]
            self.counts.drafted, self.counts.kept = at_least[:-1], at_least[1:]

    def _full(self, rows: int) -> DstoolsError:
        return DstoolsError(
            f"{self.folder}: the pool has no page left for any of the {rows} rows that run; "
            f"num_blocks in {GENAI_CONFIG} is too small",
            f"export the model again with --context {self.positions} --max-batch {self.rows}, "
            "which makes the pool large enough",
        )

    def _error(self, error: Exception) -> DstoolsError:
        reason = printable(" ".join(str(error).split()))
        return DstoolsError(f"{self.folder}: onnxruntime-genai failed: {reason}")


def _require_runnable(folder: Path, export: Export, drafts: int) -> None:
    """Raise DstoolsError for a folder that the Engine does not run on a CPU."""
    if export.kind != "onnx":
        raise DstoolsError(
            f"{folder}: the Engine of onnxruntime-genai does not run folders of kind {export.kind}"
        )
    if export.tp * export.ep > 1 or export.expert_inputs:
        raise DstoolsError(
            f"{folder}: onnxruntime-genai runs whole models alone",
            "export it without --tp, --ep and --expert-weights",
        )
    if export.dtype == "bfloat16":
        raise DstoolsError(
            f"{folder}: ONNX Runtime does not compute bfloat16 on a CPU",
            "export the model with --dtype float32",
        )
    if drafts and not export.has_mtp:
        raise DstoolsError(f"{folder}: has no MTP layer", "it changes the speed alone")


def _read_config(folder: Path) -> tuple[int, int]:
    """Return the size of the vocabulary and the first end token of genai_config.json."""
    path = folder / GENAI_CONFIG
    model = (json_table(path) or {}).get("model")
    if not isinstance(model, dict) or not {"vocab_size", "eos_token_id"} <= model.keys():
        raise DstoolsError(f"{path}: is missing or damaged", "export the model again")
    ends = model["eos_token_id"]
    return model["vocab_size"], (ends[0] if ends else -1) if isinstance(ends, list) else ends
