"""Answers of genai's Generator are those of the model, drawn as every other loop draws them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.errors import DstoolsError
from dstools_converters.export.folder import require_export
from dstools_converters.export.runners import dense_loop
from dstools_converters.export.runners.dense_loop import (
    DenseLoop,
    Steps,
    open_model,
    read_sizes,
    require_whole,
)
from dstools_converters.model.tokenizer import load_tokenizer
from dstools_converters.runtime.answer import answer_prompt
from dstools_converters.runtime.decode import Piece, Request
from dstools_converters.runtime.draw import Noise, pick
from dstools_converters.runtime.sampling import Sampling

NO_ENDS: frozenset[int] = frozenset()
PROMPT = [5, 900, 33, 2]


@pytest.fixture
def llama(dense_folder: Callable[..., Path]) -> Path:
    return dense_folder("tiny-llama")


def ids_of(pieces: list[Piece], index: int = 0) -> list[int]:
    return [token for piece in pieces if piece.prompt_index == index for token in piece.ids]


def run(folder: Path, *requests: Request, ends: frozenset[int] = NO_ENDS, **s: Any) -> list[Piece]:
    return list(DenseLoop(folder, Sampling(**s), ends).run(requests))


def test_sizes_are_those_of_the_model(llama: Path) -> None:
    """3 layers of keys and values, 2 heads of 64 float32 numbers each."""
    assert read_sizes(llama) == (1024, 4096, 3 * 2 * 2 * 64 * 4)


def test_an_answer_ends_at_its_limit_and_at_an_end_token(llama: Path) -> None:
    pieces = run(llama, Request(0, PROMPT, 6))
    assert [piece.reason for piece in pieces] == [None] * 5 + ["length"]
    end = ids_of(pieces)[2]
    stopped = run(llama, Request(0, PROMPT, 6), ends=frozenset({end}))
    first = ids_of(pieces).index(end)
    assert ids_of(stopped) == ids_of(pieces)[: first + 1]
    assert stopped[-1].reason == "stop"


def test_several_prompts_are_answered_as_each_alone(llama: Path) -> None:
    requests = [Request(3, PROMPT, 5), Request(1, [7], 3)]
    pieces = run(llama, *requests, temperature=1.0, seed=4)
    for request in requests:
        alone = run(llama, request, temperature=1.0, seed=4)
        assert ids_of(pieces, request.prompt_index) == ids_of(alone, request.prompt_index)


def test_drawn_tokens_depend_on_seed_index_and_step_alone(llama: Path) -> None:
    """Rewritten: the logits of one token after the other, and the numbers of draw.py."""
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=7)
    wanted, tokens = [], PROMPT
    steps, noise = Steps(open_model(llama), 64, 1024), Noise(7, 2)
    for step in range(24):
        [token] = pick(steps.add(tokens), sampling, [noise.number(step)])
        wanted.append(token)
        tokens = [token]
    pieces = run(llama, Request(2, PROMPT, 24), temperature=1.5, top_p=0.9, seed=7)
    assert ids_of(pieces, 2) == wanted
    assert ids_of(run(llama, Request(2, PROMPT, 24), temperature=1.5, seed=8), 2) != wanted


def test_a_prompt_in_chunks_has_the_logits_of_one_in_one_piece(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk's products may be cut into other blocks, so the last bits may differ."""
    prompt = torch.randint(0, 1024, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = Steps(open_model(llama), 64, 1024).add(prompt)
    monkeypatch.setattr(dense_loop, "CHUNK", 16)
    torch.testing.assert_close(
        Steps(open_model(llama), 64, 1024).add(prompt), whole, atol=1e-6, rtol=0
    )


def test_search_settings_of_the_release_change_no_token(llama: Path, tmp_path: Path) -> None:
    """Beams and penalties are for genai's own search; 4 beams would even be another shape."""
    folder = shutil.copytree(llama, tmp_path / "out")
    config = json.loads((folder / "genai_config.json").read_text())
    config["search"] |= {"num_beams": 4, "repetition_penalty": 3.0, "do_sample": True, "top_k": 1}
    config["search"] |= {"min_length": 50, "num_return_sequences": 2}
    (folder / "genai_config.json").write_text(json.dumps(config))
    wanted = run(llama, Request(0, PROMPT, 12))
    assert run(folder, Request(0, PROMPT, 12)) == wanted


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 4, "is empty"),
        ([1024], 4, "has the token 1024; the model has 1024"),
        ([-1], 4, "has the token -1"),
        ([1] * 4096, 4, "has 4,096 tokens; the model has 4,096 positions"),
        ([1], 0, "max_tokens must be at least 1"),
    ],
)
def test_a_prompt_that_the_model_cannot_take_is_refused(
    prompt: list[int], tokens: int, message: str, llama: Path
) -> None:
    with pytest.raises(DstoolsError, match=message):
        run(llama, Request(0, [1], 2), Request(1, prompt, tokens))


def test_an_answer_may_reach_the_last_position(llama: Path) -> None:
    pieces = run(llama, Request(0, [1] * 4094, 100))
    assert [piece.reason for piece in pieces] == [None, "length"]


def test_logits_that_are_not_finite_end_an_answer(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = Steps.add, []

    def spoil(self: Steps, tokens: list[int]) -> torch.Tensor:
        calls.append(tokens)
        return add(self, tokens) if len(calls) < 3 else torch.full((1, 1024), float("nan"))

    monkeypatch.setattr(Steps, "add", spoil)
    pieces = run(llama, Request(0, PROMPT, 9))
    assert [len(piece.ids) for piece in pieces] == [1, 1, 0]
    assert pieces[-1].reason == "error"


def test_its_answers_are_timed_and_decoded_as_those_of_the_other_loop(llama: Path) -> None:
    loop, text = DenseLoop(llama, Sampling(), NO_ENDS), []
    answer = answer_prompt(loop, Request(0, PROMPT, 8), "", load_tokenizer(llama), text.append)
    assert answer.ids == ids_of(run(llama, Request(0, PROMPT, 8)))
    assert "".join(text) == answer.text
    assert (answer.reason, answer.tokens, answer.speed.tokens_per_step) == ("length", 8, 1.0)
    assert (answer.speed.drafted, loop.counts.steps, loop.counts.tokens) == ([], 8, 8)


def test_a_folder_as_a_hub_cache_holds_it_runs(llama: Path, tmp_path: Path) -> None:
    """Links from snapshots/X to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(llama.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert run(snapshot, Request(0, PROMPT, 4)) == run(llama, Request(0, PROMPT, 4))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.onnx", flip, "is not the file that was exported"),
        ("genai_config.json", flip, "is not the file that was exported"),
        ("model.onnx.data", lambda path: os.truncate(path, 100), r"has 100 bytes; [0-9,]+ were"),
        ("model.onnx.data", lambda path: os.truncate(path, 1 << 30), "has 1,073,741,824 bytes"),
        ("model.onnx.data", Path.unlink, "there is no such file"),
        ("genai_config.json", Path.unlink, "there is no such file"),
    ],
)
def test_files_that_were_not_exported_are_refused_before_genai_opens_them(
    name: str, damage: Callable[[Path], object], message: str, llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "out"))
    assert require_whole(folder, require_export(folder)) == read_sizes(folder)
    damage(folder / name)
    with pytest.raises(DstoolsError, match=f"{name}: {message}") as caught:
        require_whole(folder, require_export(folder))
    assert f"dstools verify {folder}" in caught.value.hint


def test_a_folder_that_does_not_open_is_one_line(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "out")
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(DstoolsError, match="onnxruntime-genai cannot open it") as caught:
        run(folder, Request(0, PROMPT, 4))
    assert "\n" not in str(caught.value)
    code = {"session_options": {"custom_ops_library": "evil.so"}}
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": code}}))
    with pytest.raises(DstoolsError, match="custom_ops_library is not of dstools, and may load"):
        run(folder, Request(0, PROMPT, 4))
    (folder / "genai_config.json").write_text('{"model": {}}')
    with pytest.raises(DstoolsError, match=r"genai_config\.json: lacks a size"):
        read_sizes(folder)
    (folder / "genai_config.json").unlink()
    with pytest.raises(DstoolsError, match="is missing"):
        read_sizes(folder)
