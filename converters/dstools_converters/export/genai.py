"""genai_config.json: how onnxruntime-genai's Engine runs an exported folder.

Its keys are those of onnxruntime-genai 0.18, tried on its stock wheel, which refuses unknown ones.
What their names do not say:

- num_hidden_layers counts pairs of ours, since each has a key and a value cache.
- The Engine takes no page back from a row that runs, so the pool holds all rows at their longest.
  With an MTP layer, num_blocks are bytes that its cache has a share of: P / (P + 1) of them are
  left as pages at P pairs of layers. Twice the pages are enough for any P.
- prefix_caching does not go with speculation.
- `mtp.inputs` has ids, hidden states and caches only; the rest is implied.
- chunk_size limits what a step reads of one prompt; of all prompts, max_scheduled_tokens, 2048.
- top_k is 50 where it is left out. At 0 its nucleus is not that of top_p, and sampled rows get no
  drafts: all tokens are named instead.
- top_p 0 means 1.
- bos_token_id and pad_token_id may be left out; null is refused. eos_token_id may be [], and has
  no id outside of the vocabulary.
- logits_indices is INT32. A graph that has it runs in the Engine, with an MTP layer and without.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dstools_converters.errors import DstoolsError, install_hint, printable
from dstools_converters.export.folder import CHUNK, DRAFT_GRAPH, GRAPH, ROWS, Pool, pairs_of
from dstools_converters.families.shapes import MLA, Model
from dstools_converters.runtime.sampling import Sampling

PACKED = (
    "input_ids",
    "block_table",
    "cumulative_sequence_lengths",
    "past_sequence_lengths",
    "attention_metadata",
)
PAST = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
PRESENT = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
DRAFTS = 1  # an MTP layer trained for one
SESSION_TABLES = {"session_options", "run_options", "provider_options"}
# What pybind11 makes of the exceptions of onnxruntime-genai
ERRORS = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)


def find_genai() -> ModuleType | None:
    """Return the package onnxruntime_genai, None where it is not installed.

    Its wheels report their use to Microsoft unless told not to; here they do not.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read as it is loaded
    try:
        genai = import_module("onnxruntime_genai")
    except ImportError:
        return None
    genai.disable_telemetry_events()
    return genai


def require_genai(what: str) -> ModuleType:
    """Return the package onnxruntime_genai; raises DstoolsError that `what` needs it."""
    genai = find_genai()
    if genai is None:
        raise DstoolsError(f"{what} needs onnxruntime-genai", install_hint("export"))
    return genai


def settings_of_sessions(config: object, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the keys, dotted, by which a genai_config.json sets up ONNX Runtime.

    Some make genai load a library, which is code of whoever wrote the file. dstools and genai's
    builder write none but the name of a log, which is left out here.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            yield from settings_of_sessions(value, (*place, key))
    elif isinstance(config, list):
        for value in config:
            yield from settings_of_sessions(value, place)
    elif SESSION_TABLES.intersection(place) and place[-1] != "log_id":
        yield ".".join(place)


def require_no_code(path: Path, config: dict[str, Any]) -> None:
    """Raise DstoolsError where a genai_config.json sets up ONNX Runtime, and so may load code."""
    for key in settings_of_sessions(config):
        raise DstoolsError(
            f"{path}: {printable(key)} is not of dstools, and may load code of another",
            "export the model again",
        )


def is_drawn(sampling: Sampling) -> bool:
    """Return whether tokens are drawn; at top_p 0 only the most probable one is left."""
    return sampling.temperature > 0 and sampling.top_p > 0


class Tokens(NamedTuple):
    """The special tokens of a model."""

    bos: int | None
    ends: list[int]
    pad: int | None


def pool_of(model: Model, dtype_bytes: int, context: int, rows: int, page: int, mtp: bool) -> Pool:
    """Return the pool of pages in which `rows` of `context` tokens run at a time."""
    assert isinstance(model.attention, MLA)
    caches = 2 * pairs_of(model.num_hidden_layers) + 2 * mtp
    blocks = (1 + mtp) * rows * -(-context // page)
    return Pool(context, rows, page, blocks, caches * model.attention.latent_width * dtype_bytes)


def genai_config(
    model: Model, pool: Pool, tokens: Tokens, sampling: Sampling, *, mtp: bool, picks_rows: bool
) -> dict[str, Any]:
    """Return the content of genai_config.json."""
    known = {"bos_token_id": tokens.bos, "pad_token_id": tokens.pad}
    described = {
        "type": "llama",  # of those that the Engine batches; it decides nothing else
        **{name: token for name, token in known.items() if token is not None},
        "eos_token_id": [end for end in tokens.ends if end < model.vocab_size],
        "vocab_size": model.vocab_size,
        "context_length": pool.context_length,
        "decoder": _decoder(model, picks_rows),
    }
    search = {
        "max_length": pool.context_length,
        "do_sample": is_drawn(sampling),
        "temperature": sampling.temperature or 1.0,
        "top_p": sampling.top_p or 1.0,
        "top_k": model.vocab_size,
        "num_beams": 1,
        "chunk_size": CHUNK,
        "past_present_share_buffer": True,
    }
    batching = {
        "block_size": pool.page_size,
        "num_blocks": pool.num_blocks,
        "max_batch_size": pool.max_batch_size,
        "prefix_caching": not mtp,
    }
    engine = {"dynamic_batching": batching}
    config: dict[str, Any] = {"model": described, "search": search, "engine": engine}
    if mtp:
        described["mtp"] = _draft(model)
        config["speculative"] = {"max_draft_tokens": DRAFTS}
    return config


def _decoder(model: Model, picks_rows: bool) -> dict[str, Any]:
    assert isinstance(model.attention, MLA)
    layers = pairs_of(model.num_hidden_layers)
    inputs = {name: name for name in PACKED} | ({ROWS: ROWS} if picks_rows else {})
    return {
        "session_options": {"log_id": "dstools", "provider_options": []},
        "filename": GRAPH,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.attention.num_heads,
        "num_hidden_layers": layers,
        **_cache(model.attention),
        "inputs": inputs | PAST,
        "outputs": {"logits": "logits", "hidden_states": "hidden_states"} | PRESENT,
        "state_groups": [{"kind": "paged_kv", "layer_ids": list(range(layers))}],
    }


def _draft(model: Model) -> dict[str, Any]:
    assert isinstance(model.attention, MLA)
    return {
        "enabled": True,
        "filename": DRAFT_GRAPH,
        "main_hidden_states": "hidden_states",
        "num_hidden_layers": 1,
        **_cache(model.attention),
        "inputs": {"input_ids": "input_ids", "hidden_states": "hidden_states"} | PAST,
        "outputs": {"logits": "logits", "hidden_states": "hidden_states_out"} | PRESENT,
    }


def _cache(attention: MLA) -> dict[str, int]:
    """Return one key of the size of a latent with its rotated part."""
    return {"num_key_value_heads": 1, "head_size": attention.latent_width}
