"""Whole exported models in ONNX Runtime say what transformers says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from dstools_converters.export.deepseek import Options
from dstools_converters.model.tokenizer import load_tokenizer, prompt_ids
from dstools_converters.runtime.pages import Batch
from dstools_converters.runtime.weights import load

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"
HELDOUT = SAMPLE.with_name("sample-v3-heldout.jsonl")
KINDS = [
    "sample-v3",  # trained, with MTP, 4 layers
    "tiny",  # ragged, with MTP, 3 layers
    pytest.param("tiny-aligned", marks=pytest.mark.slow),
    "tiny-v2",
    pytest.param("tiny-v2-lite", marks=pytest.mark.slow),
]
BOUND = 1e-4  # of a logit, up to 22 of sample-v3
LENGTHS = (70, 1, 130, 64, 63)  # of prompts; a page has 64 tokens
PAGES = 24
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder_of(checkpoint: Callable[..., Path]) -> Callable[..., Path]:
    return lambda kind, **how: SAMPLE if kind == "sample-v3" else checkpoint(kind, **how)


def options_for(folder: Path, **changes: Any) -> Options:
    config = json.loads((folder / "config.json").read_text())
    return Options(context=512, mtp=bool(config.get("num_nextn_predict_layers")), **changes)


def some_prompts(folder: Path) -> list[list[int]]:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def sums(count: int) -> list[list[int]]:
    tokenizer = load_tokenizer(SAMPLE)
    lines = HELDOUT.read_text().splitlines()[:count]
    return [prompt_ids(tokenizer, json.loads(line)["messages"][:-1]) for line in lines]


def tables(lengths: list[int]) -> list[list[int]]:
    """Return pages in any order, enough for `lengths`."""
    order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).tolist()
    return [[order.pop() for _ in range(-(-length // 64))] for length in lengths]


def in_parts(runner: Any, rows: list[list[int]], news: list[int]) -> list[np.ndarray]:
    """Return the logits of each row, whose tokens come in parts: all but sum(news), then `news`."""
    table, past = tables([len(row) for row in rows]), [0] * len(rows)
    logits: list[list[np.ndarray]] = [[] for _ in rows]
    for new in [None, *news]:
        count = [len(row) - sum(news) if new is None else new for row in rows]
        ids = [t for row, p, n in zip(rows, past, count, strict=True) for t in row[p : p + n]]
        said = runner.step(ids, table, count, past)["logits"]
        for at, part in enumerate(np.split(said, np.cumsum(count)[:-1])):
            logits[at].append(part)
        past = [p + n for p, n in zip(past, count, strict=True)]
    return [np.concatenate(parts) for parts in logits]


def wanted_logits(model: Any, row: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([row])).logits[0].float().numpy()


@pytest.mark.parametrize("optimized", [True, False], ids=["optimised", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_tokens_of_a_ragged_batch_give_the_logits_of_transformers(
    kind: str, optimized: bool, folder_of: Any, theirs: Any, exported: Any, onnx_runner: Any
) -> None:
    folder = folder_of(kind)
    out = exported(folder, options_for(folder))
    runner = onnx_runner(out, pages=PAGES, optimized=optimized)
    rows = [[*row, 5, 6, 7, 8] for row in some_prompts(folder)]
    for row, logits in zip(rows, in_parts(runner, rows, [1, 2, 1]), strict=True):
        assert np.abs(logits - wanted_logits(theirs(folder), row)).max() <= BOUND


@pytest.mark.parametrize(
    ("kind", "is_coded"), [("tiny", False), ("tiny", True), ("tiny-v2", False)]
)
def test_the_optimiser_changes_logits_by_less_than_1e_5(
    kind: str, is_coded: bool, folder_of: Any, exported: Any, onnx_runner: Any
) -> None:
    """Of logits of 1.5. A fusion that takes our rotation for its own would be off by far more."""
    folder = folder_of(kind, fp8="float32") if is_coded else folder_of(kind)
    out = exported(folder, options_for(folder))
    rows = [[*row, 5, 6, 7, 8] for row in some_prompts(folder)]
    runners = [onnx_runner(out, pages=PAGES, optimized=optimized) for optimized in (True, False)]
    for one, other in zip(*(in_parts(r, rows, [1, 2, 1]) for r in runners), strict=True):
        assert np.abs(one - other).max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_64_greedy_tokens_are_those_of_transformers(
    kind: str, folder_of: Any, theirs: Any, exported: Any, onnx_runner: Any
) -> None:
    folder = folder_of(kind)
    runner = onnx_runner(exported(folder, options_for(folder)), pages=PAGES)
    prompts = sums(4) if kind == "sample-v3" else [row[:40] for row in some_prompts(folder)]
    found = greedy(runner, prompts)
    for prompt, ids in zip(prompts, found, strict=True):
        ids_BS = torch.tensor([prompt])
        mask = torch.ones_like(ids_BS)  # else the prompt's own tokens of id 0 are masked
        options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": 10**6}
        wanted = theirs(folder).generate(ids_BS, attention_mask=mask, pad_token_id=0, **options)
        assert ids == wanted[0, len(prompt) :].tolist()


def greedy(runner: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Return 64 tokens after each prompt."""
    table = tables([len(prompt) + 64 for prompt in prompts])
    counts, past, rows = [len(prompt) for prompt in prompts], [0] * len(prompts), prompts
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(64):
        logits = runner.step([t for row in rows for t in row], table, counts, past)["logits"]
        past = [p + n for p, n in zip(past, counts, strict=True)]
        following = logits[np.cumsum(counts) - 1].argmax(-1).tolist()
        rows, counts = [[token] for token in following], [1] * len(prompts)
        for ids, token in zip(found, following, strict=True):
            ids.append(token)
    return found


@pytest.mark.parametrize("kind", ["sample-v3", "tiny"])
def test_drafts_and_their_states_are_those_of_the_runtime(
    kind: str, folder_of: Any, exported: Any, onnx_runner: Any
) -> None:
    """A further draft, too, which takes the state of the one before, not yet normed."""
    folder = folder_of(kind)
    out = exported(folder, options_for(folder))
    main, draft = (onnx_runner(out, name, pages=PAGES) for name in ("model.onnx", "mtp.onnx"))
    serving = load(folder, torch.float32, torch.device("cpu"))
    ids = some_prompts(folder)[0]
    table, count = tables([len(ids)]), len(ids) - 1
    states = main.step(ids, table, [len(ids)], [0])["hidden_states"][:-1]
    caches = serving.new_caches(PAGES, 64)
    for cache in caches:
        cache.fill_(torch.nan)
    ours = draft.step(ids[1:], table, [count], [0], states)
    rows, hidden = torch.tensor([count - 1]), torch.from_numpy(states)
    logits, state = serving.draft(batch_of(ids[1:], table, [count], [0]), hidden, rows, caches)
    assert np.abs(ours["logits"][-1] - logits[0].numpy()).max() <= BOUND
    assert np.abs(ours["hidden_states_out"][-1] - state[0].numpy()).max() <= BOUND
    token = int(logits.argmax())
    further = draft.step([token], table, [1], [count], ours["hidden_states_out"][-1:])
    batch = batch_of([token], table, [1], [count])
    logits, _ = serving.draft(batch, state, torch.tensor([0]), caches)
    assert np.abs(further["logits"] - logits.numpy()).max() <= BOUND


def batch_of(ids: list[int], table: list[list[int]], new: list[int], past: list[int]) -> Batch:
    ends = torch.tensor([0, *new]).cumsum(0).int()
    return Batch(torch.tensor(ids), torch.tensor(table).int(), ends, torch.tensor(past).int())


def test_logits_indices_pick_rows_of_all_logits(folder_of: Any, exported: Any) -> None:
    folder = folder_of("tiny")
    session = onnxruntime.InferenceSession(
        exported(folder, options_for(folder, picks_rows=True)) / "model.onnx"
    )
    feed = {
        "input_ids": np.arange(3, 12),
        "block_table": np.array([[1], [0]], np.int32),
        "cumulative_sequence_lengths": np.array([0, 4, 9], np.int32),
        "past_sequence_lengths": np.zeros(2, np.int32),
        "attention_metadata": np.zeros(3, np.int32),
    }
    for port in session.get_inputs():
        if port.name.startswith("past_key"):
            feed[port.name] = np.full((2, *port.shape[1:]), np.nan, np.float32)
    (whole,) = session.run(["logits"], feed | {"logits_indices": np.arange(9, dtype=np.int32)})
    (some,) = session.run(["logits"], feed | {"logits_indices": np.array([8, 3], np.int32)})
    assert np.abs(some - whole[[8, 3]]).max() <= BOUND


# --------------------------------------------------------------------------------- other precisions


@pytest.mark.parametrize("kind", ["tiny", "tiny-aligned", "sample-v3"])
def test_an_fp8_folder_says_what_code_times_scale_says(
    kind: str, folder_of: Any, quantized: Any, decoder_of: Any, exported: Any, onnx_runner: Any
) -> None:
    source = quantized(SAMPLE) if kind == "sample-v3" else folder_of(kind, fp8="float32")
    out = exported(source, options_for(source))
    runner, decoder = onnx_runner(out, pages=PAGES), decoder_of(source)
    rows = [[*row, 5, 6, 7, 8] for row in some_prompts(source)]
    for row, logits in zip(rows, in_parts(runner, rows, [1, 2, 1]), strict=True):
        with torch.inference_mode():
            wanted = decoder(torch.tensor([row]))[0].numpy()
        assert np.abs(logits - wanted).max() <= BOUND


@pytest.mark.parametrize("optimized", [True, False], ids=["optimised", "plain"])
@pytest.mark.parametrize("kind", ["sample-v3", "tiny"])
def test_float16_weights_cost_what_their_rounding_costs(
    kind: str, optimized: bool, folder_of: Any, theirs: Any, exported: Any, onnx_runner: Any
) -> None:
    """BF16 weights of these sizes are float16 numbers, so only activations are rounded.

    ONNX Runtime computes chains of float16 in float32, and rounds between them: relative to the
    largest state of a row, 2^-11 each time. About ten roundings a layer add up as a random walk
    over the layers, and the head sums D of them with weights of std 0.02 or, trained, ten times
    that. Torch in float16 on the CPU, which rounds more often, bounds it from above.
    """
    folder = folder_of(kind)
    out = exported(folder, options_for(folder, dtype="float16"))
    runner = onnx_runner(out, pages=PAGES, optimized=optimized)
    half = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    rows = some_prompts(folder)
    for row, logits in zip(rows, in_parts(runner, rows, []), strict=True):
        wanted = wanted_logits(theirs(folder), row)
        torchs = np.abs(wanted_logits(half, row) - wanted).max()
        ours = np.abs(logits - wanted).max()
        assert ours <= 2 * torchs
