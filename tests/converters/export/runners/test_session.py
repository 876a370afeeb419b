"""An exported folder on the loop: answers of transformers, memory, one error for a bad folder."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dstools_converters.errors import DstoolsError
from dstools_converters.export.deepseek import Options
from dstools_converters.export.folder import Export, require_export
from dstools_converters.export.runners.session import OnnxSession, require_runnable
from dstools_converters.model.tokenizer import load_tokenizer, prompt_ids
from dstools_converters.runtime.decode import Counts, Loop, Model, Request
from dstools_converters.runtime.pages import Batch, Pool
from dstools_converters.runtime.sampling import Sampling
from dstools_converters.runtime.session import Session
from dstools_converters.runtime.weights import load

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"
CASES = Path(__file__).parents[3] / "cases" / "runtime"
SHORT = Options(context=512)
PICKS = replace(SHORT, picks_rows=True)
ALL_AT_ONCE = Pool(64)
pytestmark = pytest.mark.usefixtures("one_thread")
Exported = Callable[..., Path]


def opened(folder: Path, pool: Pool, *, mtp: bool) -> OnnxSession:
    limits = require_runnable(folder, require_export(folder), mtp=mtp)
    return OnnxSession(folder, limits, pool.count, mtp=mtp)


def answers(
    model: Model, pool: Pool, requests: list[Request], **options: Any
) -> tuple[list[list[int]], Counts]:
    """Return the answers of a loop of three rows, in chunks of 64 tokens, unless options differ."""
    sampling, ends = options.pop("sampling", Sampling()), options.pop("ends", frozenset())
    loop = Loop(model, pool, sampling, ends, **{"rows": 3, "chunk": 64} | options)
    found: list[list[int]] = [[] for _ in requests]
    for piece in loop.run(requests):
        found[piece.prompt_index] += piece.ids
        assert piece.reason != "error"
    return found, loop.counts


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """One token, questions of the sample's kind, and some that take more than one page."""
    tokenizer = load_tokenizer(SAMPLE)
    texts = [f"{a} + {b} =" for a, b in ((13, 27), (480, 37), (9, 1008))]
    asked = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    torch.manual_seed(1)
    long = [torch.randint(3, 320, (count,)).tolist() for count in (1, 70, 130, 64)]
    return [*asked, *long]


@pytest.fixture(scope="module")
def sums() -> list[Request]:
    tokenizer = load_tokenizer(SAMPLE)
    start = "State the final answer to the following arithmetic problem:"
    texts = [f"{start} {11 * n + 2} + {97 - 7 * n} =" for n in range(12)]
    asked = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    return [Request(i, ids, 64) for i, ids in enumerate(asked)]


@pytest.fixture(scope="module")
def greedy(prompts: list[list[int]]) -> list[list[int]]:
    """The next 64 tokens of transformers."""
    theirs = AutoModelForCausalLM.from_pretrained(SAMPLE, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    found = []
    for ids in prompts:
        with torch.inference_mode():
            whole = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
        found.append(whole[0, len(ids) :].tolist())
    return found


# ----------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("options", [SHORT, PICKS], ids=["all logits", "picked"])
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_greedy_answers_are_those_of_transformers(
    options: Options,
    drafts: int,
    exported: Exported,
    prompts: list[list[int]],
    greedy: list[list[int]],
) -> None:
    """Seven prompts in three rows, of 1 to 130 tokens: rows enter and leave, chunks are ragged."""
    pool = Pool(24)
    session = opened(exported(SAMPLE, options), pool, mtp=drafts > 0)
    requests = [Request(i, ids, 64) for i, ids in enumerate(prompts)]
    found, counts = answers(session, pool, requests, drafts=drafts)
    assert found == greedy
    assert counts.tokens == 7 * 64
    assert not drafts or counts.kept[0] > 0


def test_drafts_are_kept_and_change_no_answer(exported: Exported, sums: list[Request]) -> None:
    ends = frozenset({1})
    plain, _ = answers(opened(exported(), ALL_AT_ONCE, mtp=False), Pool(64), sums, ends=ends)
    session = opened(exported(), ALL_AT_ONCE, mtp=True)
    fast, counts = answers(session, Pool(64), sums, ends=ends, drafts=1)
    assert fast == plain
    assert counts.kept[0] >= 0.97 * counts.drafted[0] > 150
    assert all(answer[-1] == 1 for answer in fast)


def test_drafts_change_no_answer_that_is_drawn(exported: Exported, sums: list[Request]) -> None:
    options = {"sampling": Sampling(3.0, 0.999, 5), "ends": frozenset({1})}
    session = opened(exported(), ALL_AT_ONCE, mtp=True)
    plain, _ = answers(session, Pool(64), sums, **options)
    fast, counts = answers(session, Pool(64), sums, drafts=1, **options)
    assert fast == plain
    assert counts.kept[0] < counts.drafted[0]  # some were wrong
    greedy, _ = answers(session, Pool(64), sums, ends=frozenset({1}))
    assert plain != greedy


@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_steps_and_drafts_have_the_numbers_of_the_serving_form(
    kind: str, exported: Exported, quantized: Callable[[Path], Path]
) -> None:
    """Two chunks, then drafts, of rows on pages in any order; cached latents decide the second.

    Both sum in float32, in other orders: 2e-5 at logits of 22, as for transformers, and the
    states are of the size of the logits.
    """
    source = SAMPLE if kind == "plain" else quantized(SAMPLE)
    pool = Pool(9)
    ours = Session(load(source, torch.float32, torch.device("cpu")), pool)
    session = opened(exported(source), pool, mtp=True)
    torch.manual_seed(2)
    table = torch.tensor([[7, 1, 4], [2, 0, 0]], dtype=torch.int32)
    past = torch.zeros(2, dtype=torch.int32)
    for news in ((70, 5), (1, 1), (60, 3)):
        cumulative = torch.tensor([0, news[0], sum(news)], dtype=torch.int32)
        batch = Batch(torch.randint(3, 320, (sum(news),)), table, cumulative, past)
        rows = torch.tensor([news[0] - 1, sum(news) - 1])
        wanted, hidden = ours.step(batch, rows)
        logits, states = session.step(batch, rows)
        assert (logits.shape, states.shape) == (wanted.shape, hidden.shape)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(states, hidden, rtol=0, atol=1e-4)
        for at in (rows, rows[1:], rows[:0]):
            wanted, state = ours.draft(batch, hidden, at)
            drafted, onward = session.draft(batch, states, at)
            assert onward.shape == state.shape
            torch.testing.assert_close(drafted, wanted, rtol=0, atol=1e-4)
            torch.testing.assert_close(onward, state, rtol=0, atol=1e-4)
        past = past + torch.tensor(news, dtype=torch.int32)


def test_an_fp8_folder_answers_as_its_checkpoint(
    exported: Exported, quantized: Callable[[Path], Path], sums: list[Request]
) -> None:
    source, ends = quantized(SAMPLE), frozenset({1})
    assert require_export(exported(source)).has_codes
    ours = Session(load(source, torch.float32, torch.device("cpu")), ALL_AT_ONCE)
    wanted, _ = answers(ours, Pool(64), sums, ends=ends)
    session = opened(exported(source), ALL_AT_ONCE, mtp=True)
    found, counts = answers(session, Pool(64), sums, ends=ends, drafts=1)
    assert found == wanted
    assert counts.kept[0] >= 0.97 * counts.drafted[0] > 150


def test_an_id_outside_of_the_vocabulary_is_refused(exported: Exported) -> None:
    session = opened(exported(), ALL_AT_ONCE, mtp=False)
    assert (session.vocab_size, session.positions) == (320, 512)
    with pytest.raises(DstoolsError, match="has the token 320; the model has 320"):
        answers(session, Pool(64), [Request(0, [5, 320], 4)])


def test_a_step_that_onnx_runtime_cannot_run_is_one_error(exported: Exported) -> None:
    session = opened(exported(), Pool(2), mtp=False)
    ends, past = torch.tensor([[0, 1], [0, 0]], dtype=torch.int32)
    batch = Batch(torch.tensor([5]), torch.tensor([[7]], dtype=torch.int32), ends, past[:1])
    with pytest.raises(DstoolsError, match=r"model.onnx: onnxruntime cannot run a step: ") as error:
        session.step(batch, torch.tensor([0]))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ memory


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_pool_takes_memory_only_where_it_is_written(exported: Exported) -> None:
    """Of 40,000 pages, caches of 9.8 GB, a step writes three: it copies none, and clears none."""
    session = opened(exported(), Pool(200), mtp=True)
    before = rss_bytes()
    pool = Pool(40_000)
    session = opened(exported(), pool, mtp=True)
    table = torch.tensor([[39_999, 7, 12_345]], dtype=torch.int32)
    cumulative, past = torch.tensor([[0, 130], [0, 0]], dtype=torch.int32)
    batch = Batch(torch.arange(130) + 3, table, cumulative, past[:1])
    _, states = session.step(batch, torch.tensor([129]))
    session.draft(batch, states, torch.tensor([129]))
    # graphs and their activations; the smallest cache alone has 1.97 GB
    assert rss_bytes() - before < 200e6


def test_weights_are_mapped(exported: Exported) -> None:
    session = opened(exported(), Pool(1), mtp=True)
    assert str(exported() / "model.data") in Path("/proc/self/maps").read_text()
    del session


# ------------------------------------------------------------------------------------------ folders


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported(), tmp_path / "copy"))


def refused(folder: Path, export: Export | None = None, *, mtp: bool = True) -> tuple[str, str]:
    """Return the error without the folder, and the hint."""
    with pytest.raises(DstoolsError) as error:
        require_runnable(folder, export or require_export(folder), mtp=mtp)
    message, hint = str(error.value), error.value.hint
    assert "\n" not in message + hint
    assert hint
    return message.replace(str(folder), "OUT"), hint.replace(str(folder), "OUT")


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"dtype": "bfloat16"}, "bfloat16", "--dtype float32"),
        ({"tp": 2, "ep": 2}, "divided among 2 GPUs", "without --tp and --ep"),
        ({"ep": 4}, "divided among 4 GPUs", "without --tp and --ep"),
        ({"expert_inputs": True}, "experts are not part", "--expert-weights baked"),
        ({"has_mtp": False}, "has no mtp.onnx", "leave --mtp out"),
        ({"pool": None}, "OUT/export.json: has no pool", "export the checkpoint again"),
    ],
)
def test_what_does_not_run_here_is_named(
    changes: dict[str, Any], message: str, hint: str, exported: Exported
) -> None:
    said, advice = refused(exported(), replace(require_export(exported()), **changes))
    assert message in said
    assert hint in advice


def test_a_missing_file_is_named(copied: Path) -> None:
    for name in ("mtp.onnx", "model.data", "model.onnx", "config.json"):
        (copied / name).rename(copied / "kept")
        said, hint = refused(copied)
        assert said == f"OUT/{name}: there is no such file"
        assert "dstools verify OUT" in hint
        (copied / "kept").rename(copied / name)
    (copied / "mtp.onnx").unlink()
    require_runnable(copied, require_export(copied), mtp=False)  # nothing reads it


@pytest.mark.parametrize("nbytes", [-1, 1])
def test_data_of_another_size_are_refused(nbytes: int, copied: Path) -> None:
    size = (copied / "model.data").stat().st_size
    os.truncate(copied / "model.data", size + nbytes)
    said, hint = refused(copied)
    assert said == f"OUT/model.data: has {size + nbytes:,} bytes; {size:,} were exported"
    assert "dstools verify OUT" in hint


def test_a_graph_that_was_changed_is_refused(copied: Path) -> None:
    content = bytearray((copied / "mtp.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "mtp.onnx").write_bytes(content)
    said, _ = refused(copied)
    assert said == "OUT/mtp.onnx: is not the file that was exported, by its sha256"


def test_what_onnx_runtime_refuses_is_one_error(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"\x08\x0a\x3a\x00")
    export = require_export(copied)
    digest = sha256((copied / "model.onnx").read_bytes()).hexdigest()
    limits = require_runnable(
        copied, replace(export, files=export.files | {"model.onnx": digest}), mtp=False
    )
    with pytest.raises(DstoolsError, match=r"model.onnx: onnxruntime .* refuses it: ") as error:
        OnnxSession(copied, limits, 1, mtp=False)
    assert "\n" not in str(error.value)


def runs(folder: Path) -> bool:
    session = opened(folder, Pool(2), mtp=True)
    found, _ = answers(session, Pool(2), [Request(0, [5, 6], 3)], rows=1, drafts=1)
    return len(found[0]) == 3


def test_the_cache_of_the_hub_and_hard_links_run(exported: Exported, tmp_path: Path) -> None:
    snapshot, blobs, hard = (tmp_path / part for part in ("snapshots/1", "blobs", "hard"))
    for folder in (snapshot, blobs, hard):
        folder.mkdir(parents=True)
    for file in exported().iterdir():
        blob = blobs / sha256(file.name.encode()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        os.link(blob, hard / file.name)
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, hard, tmp_path / "link"):
        assert runs(folder)


def test_data_that_lie_elsewhere_are_named(copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (copied / "model.data").rename(elsewhere / "model.data")
    (copied / "model.data").symlink_to(elsewhere / "model.data")
    said, hint = refused(copied)
    assert said == (
        f"OUT/model.data: is a link to {elsewhere}/model.data, where ONNX Runtime does not read it"
    )
    assert hint == f"copy the file here, or make model.onnx a link to a copy in {elsewhere}"
    for name in ("model.onnx", "mtp.onnx"):  # what the hint says
        (copied / name).rename(elsewhere / name)
        (copied / name).symlink_to(elsewhere / name)
    assert runs(copied)


def test_onnx_runtime_reads_links_as_we_think(exported: Exported) -> None:
    case = [sys.executable, str(CASES / "hub_layout.py"), str(exported())]
    run = subprocess.run(case, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("PASS") == 8
