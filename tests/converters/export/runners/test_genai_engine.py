"""The stock Engine on exported folders: answers are those of transformers, whatever is drafted.

An answer is greedy where each token is the argmax of transformers' logits after all those before,
so that one pass over prompt and answer checks it.
"""

import json
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dstools_converters.errors import DstoolsError
from dstools_converters.export import genai
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import (
    EXPORT,
    GENAI_CONFIG,
    ROWS,
    Export,
    content_sha256,
    require_export,
)
from dstools_converters.export.runners.genai_engine import GenaiEngine
from dstools_converters.runtime.decode import Piece, Request
from dstools_converters.runtime.pages import Pool
from dstools_converters.runtime.sampling import Sampling

pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai, of the extra export")
pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
SHORT = Options(context=512)
CASES = Path(__file__).parents[3] / "cases" / "runtime"
HELDOUT = SAMPLE.parent / "sample-v3-heldout.jsonl"
GREEDY = Sampling()
END, NEVER = 1, 319  # sample-v3's end token; one that it draws once in a thousand tokens
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE)
    conversations = [json.loads(line)["messages"] for line in HELDOUT.read_text().splitlines()[:12]]
    return [
        tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for messages in conversations
    ]


@pytest.fixture(scope="module")
def codes(
    quantized: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return sample-v3 in block FP8, and in float32 with code x scale for each weight."""
    folder, wide = quantized(SAMPLE), tmp_path_factory.mktemp("wide")
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight = tensors[name.removesuffix("_scale_inv")].float()
        scale = tensors.pop(name).repeat_interleave(128, 0).repeat_interleave(128, 1)
        tensors[name.removesuffix("_scale_inv")] = weight * scale[: len(weight), : weight.shape[1]]
    save_file(tensors, wide / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (wide / "config.json").write_text(json.dumps(config))
    return folder, wide


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """changed(folder, change): a copy that lists a genai_config.json with a change"""

    def make(folder: Path, change: Change) -> Path:
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        copy.mkdir()
        for file in folder.iterdir():
            if file.name != GENAI_CONFIG:
                os.link(file, copy / file.name)
        config = json.loads((folder / GENAI_CONFIG).read_text())
        change(config)
        content = json.dumps(config).encode()
        (copy / GENAI_CONFIG).write_bytes(content)
        export = require_export(folder)
        files = export.files | {GENAI_CONFIG: content_sha256(content)}
        (copy / EXPORT).unlink()
        (copy / EXPORT).write_bytes(replace(export, files=files).to_bytes())
        return copy

    return make


@pytest.fixture(scope="module")
def sample(exported: Callable[..., Path]) -> Path:
    return exported()


def engine_of(
    folder: Path,
    sampling: Sampling = GREEDY,
    drafts: int = 0,
    *,
    rows: int = 4,
    pages: int = 32,
    end: int = END,
) -> GenaiEngine:
    ends = frozenset([end, 320])  # genai itself refuses one that is no token
    return GenaiEngine(folder, Pool(pages), sampling, ends, rows=rows, drafts=drafts)


def sized(context: int) -> Change:
    """Return the change to a folder made for `context` tokens."""

    def change(config: dict[str, Any]) -> None:
        config["model"]["context_length"] = config["search"]["max_length"] = context

    return change


def answers(engine: GenaiEngine, prompts: list[list[int]], tokens: int = 64) -> list[list[int]]:
    requests = [Request(index, prompt, tokens) for index, prompt in enumerate(prompts)]
    return joined(list(engine.run(requests)), len(prompts))


def joined(pieces: list[Piece], count: int) -> list[list[int]]:
    """Return the ids of all answers, each of which has ended once, as its last id says."""
    found: list[list[int]] = [[] for _ in range(count)]
    reasons: list[list[str]] = [[] for _ in range(count)]
    for index, ids, reason in pieces:
        assert not reasons[index]
        found[index] += ids
        reasons[index] += [reason] if reason else []
    assert all(len(reason) == 1 for reason in reasons)
    return found


def assert_greedy(model: Any, prompts: list[list[int]], found: list[list[int]]) -> None:
    for prompt, answer in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == answer


# ------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_answers_are_those_of_transformers(
    sample: Path, prompts: list[list[int]], theirs: Callable[[Path], Any], drafts: int
) -> None:
    engine = engine_of(sample, GREEDY, drafts)
    pieces = list(engine.run([Request(index, ids, 64) for index, ids in enumerate(prompts)]))
    found = joined(pieces, len(prompts))
    assert_greedy(theirs(SAMPLE), prompts, found)
    for index, _, reason in [piece for piece in pieces if piece.reason]:
        assert reason == ("stop" if found[index][-1] == END else "length")
        assert len(found[index]) == 64 or reason == "stop"
    assert all(END not in answer[:-1] for answer in found)
    assert engine.counts.tokens == sum(map(len, found))
    assert len(engine.counts.kept) == len(engine.counts.drafted) == drafts


def test_drafts_are_counted_as_our_loop_counts_them(sample: Path, prompts: list[list[int]]) -> None:
    engine = engine_of(sample, GREEDY, 3)
    answers(engine, prompts)
    counts, stats = engine.counts, engine._engine.get_speculative_stats()
    ends = 12  # the last drafts of an answer may be fewer
    assert 0 <= sum(counts.drafted) - stats["draft_tokens_evaluated"] <= ends
    assert sum(counts.kept) == stats["draft_tokens_accepted"]
    assert counts.drafted[1:] == counts.kept[:-1]  # looked at where those before were right


def test_of_100_drafts_97_are_kept(sample: Path, prompts: list[list[int]]) -> None:
    engine = engine_of(sample, GREEDY, 1)
    plain = engine_of(sample, GREEDY)
    assert answers(engine, prompts) == answers(plain, prompts)
    assert engine.counts.drafted[0] > engine.counts.kept[0] >= 0.97 * engine.counts.drafted[0]
    assert engine.counts.steps < 0.6 * plain.counts.steps


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_native_fp8_answers_as_code_times_scale_in_transformers(
    codes: tuple[Path, Path],
    exported: Callable[..., Path],
    prompts: list[list[int]],
    theirs: Callable[[Path], Any],
    drafts: int,
) -> None:
    folder, wide = codes
    engine = engine_of(exported(folder), GREEDY, drafts)
    assert_greedy(theirs(wide), prompts, answers(engine, prompts))


def test_float16_weights_give_the_same_answers(
    exported: Callable[..., Path], prompts: list[list[int]], theirs: Callable[[Path], Any]
) -> None:
    engine = engine_of(exported(SAMPLE, replace(SHORT, dtype="float16")), GREEDY, 1)
    assert_greedy(theirs(SAMPLE), prompts, answers(engine, prompts))


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_an_odd_number_of_layers_and_picked_logits_run(
    tiny: Path, exported: Callable[..., Path], theirs: Callable[[Path], Any], drafts: int
) -> None:
    folder = exported(tiny, replace(SHORT, picks_rows=True))
    graphs = require_export(folder).graphs
    kinds = [port.dtype for graph in graphs for port in graph.inputs if port.name == ROWS]
    assert kinds == ["INT32", "INT32"]  # what the Engine feeds
    some = [[5, 6, 7], [9], list(range(3, 100)), [4] * 70, [11, 12]]
    engine = engine_of(folder, GREEDY, drafts)
    assert_greedy(theirs(tiny), some, answers(engine, some, 40))
    assert sum(engine.counts.kept) < sum(engine.counts.drafted) or not drafts  # some are wrong


def test_a_prompt_longer_than_a_chunk_is_read_whole(
    sample: Path,
    changed: Callable[[Path, Change], Path],
    prompts: list[list[int]],
    theirs: Callable[[Path], Any],
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["search"]["chunk_size"] = 32

    long = [(prompts[0] * 20)[:300], prompts[1], (prompts[2] * 20)[:33]]
    engine = engine_of(changed(sample, change), GREEDY, 1)
    assert_greedy(theirs(SAMPLE), long, answers(engine, long, 30))
    assert engine.counts.steps > 300 // 32


# --------------------------------------------------------------------------------------------- pool


def test_the_case_of_the_pool_passes(sample: Path) -> None:
    run = subprocess.run(
        [sys.executable, CASES / "genai_pool.py", sample],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PASS num_blocks 64, needed 64" in run.stdout


@pytest.mark.parametrize("drafts", [0, 1])
@pytest.mark.parametrize(("context", "rows"), [(65, 3), (100, 1), (127, 8), (129, 4), (64, 3)])
def test_all_rows_reach_the_end_of_the_context(
    sample: Path, changed: Callable[[Path, Change], Path], context: int, rows: int, drafts: int
) -> None:
    pages = rows * -(-context // 64)
    folder = changed(sample, sized(context))
    engine = engine_of(folder, GREEDY, drafts, rows=rows, pages=pages, end=NEVER)
    assert engine.positions == context
    some = [[0, 3 + row, 9, 10] for row in range(2 * rows)]
    found = answers(engine, some, 10_000)
    assert [len(answer) + 4 for answer in found] == [context] * len(found)


@pytest.mark.parametrize("drafts", [0, 1])
def test_a_pool_that_is_too_small_ends_in_one_line(
    sample: Path, changed: Callable[[Path, Change], Path], drafts: int
) -> None:
    folder = changed(sample, sized(128))
    engine = engine_of(folder, GREEDY, drafts, rows=3, pages=2, end=NEVER)
    some = [[0, 3, 9, 10], [0, 4, 9, 10], [0, 5, 9, 10]]
    with pytest.raises(DstoolsError, match=r"has no page left for any of the [23] rows") as error:
        answers(engine, some, 120)
    assert error.value.hint == "make it larger, or run fewer"  # its context cannot be at fault
    assert len(answers(engine, some[:1], 120)[0]) == 120  # alone, it has pages enough


# ----------------------------------------------------------------------------------------- sampling


def test_at_top_p_0_the_most_probable_token_is_taken(
    sample: Path, prompts: list[list[int]]
) -> None:
    greedy = answers(engine_of(sample, GREEDY), prompts[:4])
    assert answers(engine_of(sample, Sampling(1.0, 0.0)), prompts[:4]) == greedy


def test_a_seed_decides_answers_and_prompts_are_drawn_apart(sample: Path) -> None:
    def drawn(seed: int) -> list[list[int]]:
        engine = engine_of(sample, Sampling(1.5, 1.0, seed), 1)
        return answers(engine, [[0, 3, 9, 10]] * 3, 20)

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({tuple(answer) for answer in drawn(0)}) == 3


@pytest.mark.parametrize("drafts", [0, 1])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_as_often_as_their_share_says(
    sample: Path, theirs: Callable[[Path], Any], top_p: float, drafts: int
) -> None:
    prompt, count, temperature = [0, 3, 9, 10], 300, 5.0
    with torch.inference_mode():
        shares = (theirs(SAMPLE)(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    largest, order = shares.sort(descending=True)
    nucleus = int(((largest.cumsum(0) - largest) < top_p).sum())
    kept = dict(zip(order[:nucleus].tolist(), largest[:nucleus].tolist(), strict=True))
    engine = engine_of(sample, Sampling(temperature, top_p), drafts)
    drawn = Counter(answer[0] for answer in answers(engine, [prompt] * count, 2))
    assert drawn.keys() <= kept.keys()
    assert top_p < 1 or any(token not in order[:50] for token in drawn)  # genai's own top_k
    chance = sum(kept.values())
    for token, share in list(kept.items())[:3]:
        expected = count * share / chance
        assert abs(drawn[token] - expected) <= 4 * expected**0.5  # 4 standard deviations


def test_sampled_rows_have_drafts(sample: Path, prompts: list[list[int]]) -> None:
    engine = engine_of(sample, Sampling(0.5, 0.9), 1)
    answers(engine, prompts)
    assert engine.counts.kept[0] > 0.8 * engine.counts.drafted[0] > 0


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 4, "the prompt is empty"),
        ([5, 320], 4, "the prompt has the token 320; the model has 320"),
        ([5, -1], 4, "the prompt has the token -1"),
        ([5] * 512, 4, "the prompt has 512 tokens; .* is made for 512, with the answer"),
        ([5], 0, "max_tokens must be at least 1"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(
    sample: Path, prompt: list[int], tokens: int, message: str
) -> None:
    engine = engine_of(sample, GREEDY)
    with pytest.raises(DstoolsError, match=message) as error:
        answers(engine, [prompt], tokens)
    assert "--context" not in error.value.hint  # which the folder may have all of


def test_of_several_prompts_the_wrong_one_is_named(sample: Path) -> None:
    with pytest.raises(DstoolsError, match="prompt 1 has the token 400"):
        answers(engine_of(sample, GREEDY), [[5], [400]])


def test_an_answer_ends_where_the_context_does(sample: Path) -> None:
    (answer,) = answers(engine_of(sample, GREEDY, 1, end=NEVER), [[5] * 500], 100)
    assert len(answer) == 12
    assert NEVER not in answer


@pytest.mark.parametrize(
    ("change", "drafts", "hint"),
    [
        ({"dtype": "bfloat16"}, 0, "--dtype float32"),
        ({"ep": 2}, 0, "without --tp and --ep"),
        ({"expert_inputs": True}, 0, "--expert-weights baked"),
        ({"has_mtp": False}, 1, "leave --mtp out"),
    ],
)
def test_a_folder_that_the_engine_does_not_run_is_refused(
    tmp_path: Path, change: dict[str, Any], drafts: int, hint: str
) -> None:
    export = replace(Export("dstools 0", "onnx", "deepseek_v3", "float32", has_mtp=True), **change)
    (tmp_path / EXPORT).write_bytes(export.to_bytes())
    with pytest.raises(DstoolsError) as error:
        engine_of(tmp_path, GREEDY, drafts)
    assert hint in error.value.hint


def test_a_missing_package_is_named(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genai, "find_genai", lambda: None)
    with pytest.raises(DstoolsError, match="needs onnxruntime-genai") as error:
        engine_of(sample, GREEDY)
    assert "[export]" in error.value.hint


@pytest.mark.parametrize("content", ["{}", '{"model": 3}', '{"model": {"vocab_size": "3"}}'])
def test_a_damaged_config_is_named(
    sample: Path, changed: Callable[[Path, Change], Path], content: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config.clear()
        config.update(json.loads(content))

    with pytest.raises(DstoolsError, match=r"genai_config\.json: is missing or damaged"):
        engine_of(changed(sample, change))


def test_a_config_is_the_one_that_was_exported_and_loads_no_code(
    sample: Path, changed: Callable[[Path, Change], Path]
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"

    folder = changed(sample, change)
    with pytest.raises(DstoolsError, match="custom_ops_library is not of dstools, and may load"):
        engine_of(folder)
    (folder / GENAI_CONFIG).write_bytes((sample / GENAI_CONFIG).read_bytes())
    with pytest.raises(DstoolsError, match="is not the file that was exported"):
        engine_of(folder)


def test_what_genai_refuses_is_one_line(
    sample: Path, changed: Callable[[Path, Change], Path]
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["search"]["unknown"] = 3

    with pytest.raises(DstoolsError, match=r'onnxruntime-genai failed: .*"unknown"') as error:
        engine_of(changed(sample, change), GREEDY)
    assert "\n" not in str(error.value)
    with pytest.raises(DstoolsError, match="cannot draft 9 tokens") as error:
        engine_of(sample, GREEDY, 9)
    assert error.value.hint == "genai drafts 7 at most"


def test_a_step_that_fails_says_why(sample: Path, changed: Callable[[Path, Change], Path]) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["decoder"]["inputs"]["past_sequence_lengths"] = "block_table"

    with pytest.raises(DstoolsError, match=r"onnxruntime-genai failed: .*block_table"):
        answers(engine_of(changed(sample, change), GREEDY), [[5, 6]])


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_every_request_is_closed_and_the_engine_answers_again(
    sample: Path, prompts: list[list[int]], is_interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []  # holding one keeps it open, unless it is closed
    begin = GenaiEngine._begin

    def held(self: GenaiEngine, request: Request, limit: int) -> Any:
        begun.append(begin(self, request, limit))
        return begun[-1]

    monkeypatch.setattr(GenaiEngine, "_begin", held)
    engine = engine_of(sample, GREEDY, 1)
    pieces = engine.run([Request(index, prompt, 64) for index, prompt in enumerate(prompts)])
    if is_interrupted:
        next(pieces)
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    else:
        deque(pieces, maxlen=0)
    for request in begun:
        with pytest.raises(RuntimeError, match="closed request"):
            request.rewind_to_start_of_turn(1)
    fresh = engine_of(sample, GREEDY)
    assert answers(engine, prompts) == answers(fresh, prompts)
