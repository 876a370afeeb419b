"""Answers of a dense model that onnxruntime-genai's builder wrote, by its Generator.

Its caches are not paged on a CPU, so the loop over pages cannot run it, and prompts are answered
one after the other. Tokens are drawn as there: the Generator computes, draw.py picks.
Caches take the length of prompt and answer, not of all positions, and a prompt is read in chunks,
since the graph returns the logits of every token it is given.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.export.folder import DENSE_DATA, GENAI_CONFIG, GRAPH, Export
from dstools_converters.export.genai import require_genai, require_no_code
from dstools_converters.export.runners.files import require_beside, require_same, require_size
from dstools_converters.runtime.decode import Counts, Piece, Reason, Request, length_limit
from dstools_converters.runtime.draw import NOT_FINITE, Noise, pick
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.tables import json_table

CHUNK = 256  # tokens of a prompt in a step
# No report of an error, which is raised as well; and no padding: a pad token at the end of a prompt
# is taken for such, though it may be a token of the text (microsoft/onnxruntime-genai#1682).
SETTINGS = {
    "model": {"pad_token_id": -1, "decoder": {"session_options": {"log_severity_level": 4}}}
}
AGAIN = "export the model again"


class Sizes(NamedTuple):
    """The sizes of a model, as the genai_config.json of its folder says them."""

    vocab_size: int
    positions: int
    cache_bytes: int  # of keys and values of one token, in all layers


def read_sizes(folder: Path) -> Sizes:
    """Return the sizes of a dense model.

    Raises DstoolsError where genai_config.json lacks one, or may load code.
    """
    path = folder / GENAI_CONFIG
    config = json_table(path, AGAIN)
    if config is None:
        raise DstoolsError(f"{path}: is missing", AGAIN)
    require_no_code(path, config)
    try:
        model = config["model"]
        decoder = model["decoder"]
        heads = decoder["num_key_value_heads"] * decoder["head_size"]
        return Sizes(
            int(model["vocab_size"]),
            int(model["context_length"]),
            2 * 4 * int(decoder["num_hidden_layers"] * heads),  # float32
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DstoolsError(f"{path}: lacks a size of the model: {error}", AGAIN) from error


def require_whole(folder: Path, export: Export) -> Sizes:
    """Return the sizes of a dense model, if its files are those that were exported.

    Compares graph, genai_config.json and the size of the weights, and does not read these. Raises
    DstoolsError for files that are missing or damaged, or where ONNX Runtime does not read them.
    """
    require_same(folder, export, GRAPH, GENAI_CONFIG)
    graph, data = folder / GRAPH, folder / DENSE_DATA
    require_size(data, _data_bytes(graph))
    require_beside(data, graph)
    return read_sizes(folder)


def _data_bytes(graph: Path) -> int:
    """Return how many bytes of the file of weights a graph reads, which are all."""
    import onnx

    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in each.external_data} for each in tensors]
    return max(int(place["offset"]) + int(place["length"]) for place in places if place)


def open_model(folder: Path) -> Any:
    """Return the onnxruntime_genai.Model in a folder, to be run on the CPU.

    Raises DstoolsError where onnxruntime-genai is missing or cannot open it.
    """
    genai = require_genai("an exported dense model")
    try:
        config = genai.Config(str(folder))
        config.overlay(json.dumps(SETTINGS))
        return genai.Model(config)
    except RuntimeError as error:  # what its C++ throws
        raise DstoolsError(
            f"{folder}: onnxruntime-genai cannot open it: {_first_line(error)}", AGAIN
        ) from error


class Steps:
    """One sequence in the caches of a model, at most `length` tokens long."""

    def __init__(self, model: Any, length: int, vocab_size: int) -> None:
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(model)
        # the rest of its search settings applies to the tokens that it picks, and it picks none
        parameters.set_search_options(
            max_length=length,
            chunk_size=CHUNK,
            num_beams=1,
            num_return_sequences=1,
            # ONNX Runtime 1.32 multiplies the unwritten part of a shared buffer by 0, NaN too
            past_present_share_buffer=False,
        )
        self.vocab_size = vocab_size
        self._generator = onnxruntime_genai.Generator(model, parameters)

    def add(self, tokens: list[int]) -> Tensor:
        """Add tokens to the cache; return the logits [1, V] float32 after the last one.

        Raises DstoolsError where ONNX Runtime does not run the graph.
        """
        try:
            self._generator.append_tokens(torch.tensor([tokens], dtype=torch.int32).numpy())
            logits = torch.from_numpy(self._generator.get_logits())
        except RuntimeError as error:
            raise DstoolsError(
                f"ONNX Runtime cannot run the model: {_first_line(error)}", AGAIN
            ) from error
        return logits.reshape(-1, self.vocab_size)[-1:]


class DenseLoop:
    """Answers prompts as `runtime.decode.Loop` does, one at a time and without drafts.

    ends: the ids that end an answer.
    """

    def __init__(self, folder: Path, sampling: Sampling, ends: frozenset[int]) -> None:
        self.sizes = read_sizes(folder)
        self.sampling, self.ends = sampling, ends
        self.counts = Counts()
        self._model = open_model(folder)

    def run(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yield the tokens of the answers as they come, in the order of `requests`.

        Raises DstoolsError before the first token for a prompt that is empty, has an id outside of
        the vocabulary, which genai would answer from another row, or does not fit the positions.
        """
        vocab_size, positions, _ = self.sizes
        pool = Pool(1, positions)
        alone = len(requests) == 1
        limits = [
            length_limit(
                request,
                "the prompt" if alone else f"prompt {request.prompt_index}",
                pool,
                vocab_size,
                positions,
            )
            for request in requests
        ]
        for request, limit in zip(requests, limits, strict=True):
            yield from self._answer(request, limit)

    def _answer(self, request: Request, limit: int) -> Iterator[Piece]:
        steps = Steps(self._model, limit, self.sizes.vocab_size)
        noise = Noise(self.sampling.seed, request.prompt_index)
        new = request.prompt
        for drawn in range(limit - len(request.prompt)):
            logits = steps.add(new)
            self.counts.steps += 1
            uniform = [noise.number(drawn)] if self.sampling.temperature else []
            token = pick(logits, self.sampling, uniform)[0]
            if token == NOT_FINITE:
                yield Piece(request.prompt_index, [], "error")
                return
            self.counts.tokens += 1
            reason: Reason | None = None
            if token in self.ends:
                reason = "stop"
            elif len(request.prompt) + drawn + 1 == limit:
                reason = "length"
            yield Piece(request.prompt_index, [token], reason)
            if reason:
                return
            new = [token]


def _first_line(error: RuntimeError) -> str:
    return printable(str(error).strip().split("\n")[0])
