"""scripts/engines/sample_answers.py: wrong answers are found; by rounding they may differ."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dstools_converters.runtime import products, serving
from dstools_kernels.ops import dispatch
from dstools_kernels.ops.fp8_gemm import fp8_gemm
from dstools_kernels.ops.mla_prefill import mla_prefill

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
OPS = {"gemm", "latent_pages", "mla_decode", "mla_prefill", "moe_gemm", "router", "permute"}
FP8_OPS = {"act_quant", "fp8_gemm", "swiglu_quant"}


@pytest.fixture
def script(load_script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "engines")  # as when it is run
    return load_script("sample_answers")


@pytest.fixture
def notes(script: Any) -> Iterator[list[str]]:
    """Return what ops log from now on, those that ran before, too."""
    dispatch._log_once.cache_clear()
    lines: list[str] = []
    script.worker.listen(lines.append)
    yield lines
    dispatch.log.removeHandler(dispatch.log.handlers[-1])


def answers(script: Any, first: int, device: torch.device, *sizes: int) -> list[dict[str, Any]]:
    """Return the lines about answers, from form number `first` on."""
    lines = list(script.work(first, device, *sizes))
    assert lines[0] == {"job": first, "name": script.FORMS[first]}
    return [line for line in lines if line.get("part") == "answers"]


@pytest.mark.parametrize("drafts", [0, 1])
def test_the_padded_model_answers_as_the_sample_model(
    script: Any, load_script: Any, tmp_path: Path, drafts: int
) -> None:
    load_script("pad_sample_model").pad(script.SAMPLE, tmp_path / "padded", copies_heads=True)
    prompts = [[5, 6, 7] * 30, [8, 9], [20, 21, 22, 23]]
    wanted, given = (
        script.greedy(
            script.load(folder, torch.float32, CPU), prompts, frozenset(), 24, drafts=count
        )
        for folder, count in ((script.SAMPLE, 0), (tmp_path / "padded", drafts))
    )
    assert given.ids == wanted.ids
    assert drafts * 10 <= given.drafted  # of 3 x 24 tokens


def test_definitions_in_bf16_and_fp8_are_right(script: Any, notes: list[str]) -> None:
    found = answers(script, 0, CPU, 2, 8)
    assert [answer["name"] for answer in found] == [*script.FORMS]
    assert all(answer["is_right"] for answer in found)  # rounding may decide a token
    assert found[0]["how"].endswith("drafts kept")
    ran = {line.partition(" runs as its torch definition: ")[0] for line in notes}
    assert ran >= OPS | FP8_OPS


@pytest.mark.skipif(not dispatch.is_interpreted(), reason="run by scripts/ladder.sh")
def test_interpreted_twins_answer_as_the_definitions(
    script: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTOOLS_KERNELS", "triton")
    with np.errstate(all="ignore"):  # a GPU does not warn of overflow
        (answer,) = answers(script, 1, script.prepare(), *script.INTERPRETED)
    assert answer["is_right"]
    ran = {line.partition(" runs as its Triton twin: ")[0] for line in notes}
    assert ran >= OPS | FP8_OPS


def test_hopper_check_knows_the_forms_by_name(script: Any, load_script: Any) -> None:
    assert load_script("hopper_check").FORMS == script.FORMS


def test_halved_fp8_products_are_wrong(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(*arguments: Any) -> torch.Tensor:
        return fp8_gemm(*arguments) / (1 if dispatch.kernels() == "reference" else 2)

    monkeypatch.setattr(products, "fp8_gemm", halved)
    (answer,) = answers(script, 1, CPU, 2, 4)
    assert not answer["is_right"]
    assert answer["how"].startswith("0 of 2 (0 differs from token ")


def test_attention_with_one_head_of_sixteen_off_is_wrong(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_last(*arguments: Any) -> torch.Tensor:
        out = mla_prefill(*arguments)
        out[:, -1] *= 1 if dispatch.kernels() == "reference" else -10
        return out

    monkeypatch.setattr(serving, "mla_prefill", wrong_last)
    monkeypatch.setattr(script, "FORMS", script.FORMS[:1])
    (answer,) = answers(script, 0, CPU, 2, 4)
    assert not answer["is_right"]


def test_drafts_that_change_an_answer_are_wrong(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = script.greedy

    def changed(*arguments: Any, drafts: int = 0) -> Any:
        found = greedy(*arguments, drafts=drafts)
        if drafts:
            found.ids[1][2] = 5
        return found

    monkeypatch.setattr(script, "greedy", changed)
    monkeypatch.setattr(script, "FORMS", script.FORMS[:1])
    (answer,) = answers(script, 0, CPU, 2, 4)
    (other,) = answer["differences_by_drafts"]
    assert (other["prompt"], other["token"]) == (1, 2)
    assert answer["differences"] == []
    assert not answer["is_right"]


@pytest.mark.parametrize(("gap", "is_right"), [(2.0, True), (2.1, False), (math.inf, False)])
def test_answers_are_wrong_where_rounding_does_not_explain_the_gap(
    script: Any, monkeypatch: pytest.MonkeyPatch, gap: float, is_right: bool
) -> None:
    found = iter([[{"prompt": 1, "token": 7, "gap": gap}], []])
    monkeypatch.setattr(script, "differences", lambda *arguments: next(found))
    monkeypatch.setattr(script, "greedy", lambda *arguments, drafts: script.Greedy([], 3, 2))
    sample = script.SAMPLE
    assert script.compare(sample, sample, CPU, 2, 4) == {
        "is_right": is_right,
        "how": f"1 of 2 (1 differs from token 7 on, a gap of {gap:.3g}) as on the CPU, "
        "2 of 2 as without drafts; 2 of 3 drafts kept",
        "differences": [{"prompt": 1, "token": 7, "gap": gap}],
        "differences_by_drafts": [],
    }


def test_the_gap_is_that_of_the_definitions_logits_where_two_answers_part(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    logits = torch.zeros(320)
    logits[4], logits[5] = 1.0, 2.5

    def logits_after(serving: Any, ids: list[int]) -> torch.Tensor:
        read.append(ids)
        return logits

    monkeypatch.setattr(script, "logits_after", logits_after)
    given, wanted = [[3, 5], [3, 4, 6], [3], [3, 5]], [[3, 5], [3, 5, 6], [3, 5], [3]]
    assert script.differences(given, wanted, [[7]] * 4, None) == [
        {"prompt": 1, "token": 1, "gap": 1.5},
        {"prompt": 2, "token": 1, "gap": math.inf},  # it ended early, by logits that are not finite
        {"prompt": 3, "token": 1, "gap": math.inf},
    ]
    assert read == [[7, 3]]


def test_the_logits_after_an_answer_choose_its_next_token(script: Any) -> None:
    model = script.load(script.SAMPLE, torch.float32, CPU)
    prompt = [5, 6, 7] * 30  # two pages
    (ids,) = script.greedy(model, [prompt], frozenset(), 3, drafts=0).ids
    for at, token in enumerate(ids):
        assert int(script.logits_after(model, prompt + ids[:at]).argmax()) == token
