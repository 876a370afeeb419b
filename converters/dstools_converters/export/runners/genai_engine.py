"""Answers of onnxruntime-genai's Engine to prompts of ids, from an exported folder.

    engine = GenaiEngine(folder, pool, Sampling(), ends, rows=8, drafts=1)
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
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dstools_converters.errors import DstoolsError, counted, printable
from dstools_converters.export.folder import DATA, DRAFT_GRAPH, GENAI_CONFIG, GRAPH, require_export
from dstools_converters.export.genai import ERRORS, is_drawn, require_genai, require_no_code
from dstools_converters.export.runners.files import require_same
from dstools_converters.export.runners.session import require_runnable
from dstools_converters.files import real
from dstools_converters.runtime.decode import Counts, Piece, Reason, Request, length_limit
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.tables import json_table

BLOCKED_STEPS = 4  # in a row; nothing that runs here could end a block
EVENTS = 16  # of a row in a step, at most: a token each, and its end
SEED_BITS = 63


class GenaiEngine:
    """An exported folder, loaded; its pool of pages, and how answers are drawn and end.

    ends: the ids that end an answer; rows: how many run at a time at most; drafts: how many tokens
    the MTP layer drafts at a time. Raises DstoolsError where onnxruntime-genai is missing or cannot
    run the folder as asked.
    """

    def __init__(
        self,
        folder: Path,
        pool: Pool,
        sampling: Sampling,
        ends: frozenset[int],
        *,
        rows: int,
        drafts: int = 0,
    ) -> None:
        self.folder, self.sampling, self.rows, self.drafts = folder, sampling, rows, drafts
        export = require_export(folder)
        require_runnable(folder, export, mtp=drafts > 0)
        require_same(folder, export, GENAI_CONFIG)
        config = _read_config(folder)
        self.vocab_size: int = config["model"]["vocab_size"]
        self._ends = sorted(end for end in ends if end < self.vocab_size)  # it refuses others
        config["model"]["eos_token_id"] = self._ends
        config["speculative"] = {"max_draft_tokens": max(drafts, 1)}
        blocks = pool.count * (2 if drafts else 1)  # see genai.py
        config["engine"]["dynamic_batching"] |= {"num_blocks": blocks, "max_batch_size": rows}
        if not drafts:
            config["model"].pop("mtp", None)
        self._genai = require_genai("--engine genai")
        self._engine = self._open(config)
        self.positions: int = self._engine.get_capabilities().max_request_length
        most = self._engine.max_draft_tokens_per_proposal()
        if drafts > most:
            raise DstoolsError(
                f"cannot draft {drafts} tokens at a time", f"genai drafts {most} at most"
            )
        self._events = self._engine.create_event_buffer(EVENTS * rows)
        self._lengths = [0] * EVENTS  # steps of a row, by how many drafts were right
        self.counts = Counts(drafted=[0] * drafts, kept=[0] * drafts)

    def _open(self, config: dict[str, Any]) -> Any:
        """Return genai's Engine of the folder, with a config of its own."""
        with TemporaryDirectory() as name:
            place = Path(name)
            (place / GENAI_CONFIG).write_text(json.dumps(config))
            for file in (GRAPH, DRAFT_GRAPH, DATA):
                (place / file).symlink_to(real(self.folder / file))
            try:
                return self._genai.Engine(self._genai.Model(name))
            except ERRORS as error:
                raise self._error(error) from error

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
                f"{name} has {counted(len(request.prompt), 'token')}; {self.folder} is made for "
                f"{self.positions}, with the answer",
                "shorten it",
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
                answer.append(self._ends[0])
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
        if not self.drafts:
            return
        lengths = self._engine.get_speculative_stats()["acceptance_length_histogram"]
        new = [now - before for now, before in zip(lengths, self._lengths, strict=False)]
        self._lengths = lengths
        for position in range(self.drafts):
            self.counts.drafted[position] += sum(new[position:])
            self.counts.kept[position] += sum(new[position + 1 :])

    def _full(self, rows: int) -> DstoolsError:
        return DstoolsError(
            f"{self.folder}: the pool has no page left for any of the {rows} rows that run",
            "make it larger, or run fewer",
        )

    def _error(self, error: Exception) -> DstoolsError:
        reason = printable(" ".join(str(error).split()))
        return DstoolsError(f"{self.folder}: onnxruntime-genai failed: {reason}")


def _read_config(folder: Path) -> dict[str, Any]:
    """Return genai_config.json.

    Raises DstoolsError where it is missing or damaged, or may load code.
    """
    path = folder / GENAI_CONFIG
    config = json_table(path) or {}
    model = config.get("model")
    if not isinstance(model, dict) or type(model.get("vocab_size")) is not int:
        raise DstoolsError(f"{path}: is missing or damaged", "export the model again")
    require_no_code(path, config)
    return config
