"""A whole model on its Triton twins: a token's logits are the same bits whatever runs beside it.

Run by TRITON_INTERPRET=1 pytest tests/converters/runtime/test_serving_triton.py.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dstools_converters.families.shapes import read_model
from dstools_converters.runtime.pages import Batch
from dstools_converters.runtime.serving import Serving
from dstools_converters.runtime.weights import load
from dstools_kernels.ops import dispatch

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run with TRITON_INTERPRET=1"
)

SHAPE = {  # of the kernels: latents of 512 + 64, heads of 128
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "vocab_size": 128,
    "num_hidden_layers": 2, "num_nextn_predict_layers": 0, "first_k_dense_replace": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 128,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
}  # fmt: skip
PAGE, PAGES = 64, 6  # tokens; of a row
PAST = [270, 5, 64, 127]  # tokens of rows; mla_decode makes two splits of the first
OPS = {"gemm", "latent_pages", "mla_prefill", "mla_decode", "router", "permute", "moe_gemm"}
OPS |= {"combine", "token_slots"}
FP8_OPS = OPS | {"act_quant", "fp8_gemm", "swiglu_quant"}


@pytest.fixture(autouse=True)
def twins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mend the interpreter, and let the ops run their twins."""
    from dstools_kernels.proof import interpreter

    interpreter.mend()
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with np.errstate(all="ignore"):  # a GPU does not warn of NaN and overflow
        yield


@pytest.fixture(scope="module")
def folder(
    load_script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random model in BF16, its activations of about the same size in all layers."""
    out = tmp_path_factory.mktemp("model")
    config = load_script("checkpoint_configs").V3 | SHAPE
    generator = torch.Generator().manual_seed(0)
    model, tensors = read_model(config), {}
    for name, shape in model.weights():
        drawn = torch.randn(shape, generator=generator)
        is_vector = len(shape) == 1
        weight = 1 + drawn / 8 if is_vector else drawn / shape[1] ** 0.5
        if name.role == "e_score_correction_bias":
            tensors[model.spell(name)] = drawn / 8
        else:
            tensors[model.spell(name)] = weight.bfloat16()
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    return out


class Begun(NamedTuple):
    """A model, and the caches of rows that have PAST tokens."""

    serving: Serving
    caches: list[Tensor]
    table: Tensor  # [4, PAGES] int32
    ops: set[str]  # that it runs
    near: float  # norm of the difference that both forms may have, of that of the logits

    def step(self, rows: list[int], ids: list[list[int]]) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of new tokens `ids` of some rows, and the caches after them."""
        return stepped(self.serving, self.caches, self.table[rows], ids, [PAST[r] for r in rows])


def stepped(
    serving: Serving, caches: list[Tensor], table: Tensor, ids: list[list[int]], past: list[int]
) -> tuple[Tensor, list[Tensor]]:
    caches = [cache.clone() for cache in caches]
    flat = torch.tensor([token for row in ids for token in row])
    cumulative = torch.tensor([0, *map(len, ids)]).cumsum(0).int()
    batch = Batch(flat, table, cumulative, torch.tensor(past).int())
    logits, _ = serving(batch, torch.arange(len(flat)), caches)
    return logits, caches


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(128, (count,), generator=generator).tolist() for count in PAST]


@pytest.fixture(scope="module", params=["bfloat16", "fp8"])
def begun(request: pytest.FixtureRequest, folder: Path, quantized: Any) -> Begun:
    """The caches are filled by the torch definitions, which are faster here."""
    is_fp8 = request.param == "fp8"
    source = quantized(folder) if is_fp8 else folder
    serving = load(source, torch.bfloat16, torch.device("cpu"), keeps_codes=is_fp8)
    table = torch.randperm(len(PAST) * PAGES, generator=torch.Generator().manual_seed(2)).int()
    table = table.view(len(PAST), PAGES)
    empty = [cache.fill_(torch.nan) for cache in serving.new_caches(table.numel(), PAGE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.VARIABLE, "reference")
        _, caches = stepped(serving, empty, table, prompts(), [0] * len(PAST))
    # Some 15 results of a layer are rounded to BF16, each by up to 2^-9 of itself, 0.11 % of the
    # norm; over two layers of two forms that is sqrt(60) x 0.11 % = 0.9 %, and norms and softmax
    # make it more: 1.2 % in November 2026. Of codes, of which the smallest step is 2^-4, few are
    # moved by it: 8 %. A wrong operand gives a norm of the difference like that of the logits.
    return Begun(serving, caches, table, *((FP8_OPS, 0.2) if is_fp8 else (OPS, 0.03)))


def test_all_ops_run_their_twins_and_come_near_the_definitions(
    begun: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[tuple[str, str]] = set()
    monkeypatch.setattr(dispatch, "_log_once", lambda op, form: ran.add((op, form.name)))
    steps = [([1], [[5, 6, 7]]), ([0, 1, 2, 3], [[5], [6], [7], [8]])]
    ours = [begun.step(*step)[0] for step in steps]
    assert ran == {(op, "triton") for op in begun.ops}
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    for logits, step in zip(ours, steps, strict=True):
        wanted, _ = begun.step(*step)
        assert (logits - wanted).float().norm() <= begun.near * wanted.float().norm()


def test_a_token_has_the_same_bits_alone_among_others_and_before_a_draft(begun: Begun) -> None:
    among, caches = begun.step([0, 1, 2, 3], [[5], [6], [7], [8]])
    drafted, _ = begun.step([2, 0], [[7, 9], [5, 9]])
    assert torch.equal(drafted[::2], among[[2, 0]])
    alone, own = begun.step([0], [[5]])
    assert torch.equal(alone[0], among[0])
    pages = begun.table[0, : PAST[0] // PAGE + 1].long()
    for a, b in zip(own, caches, strict=True):
        assert torch.equal(a[pages].view(torch.int16), b[pages].view(torch.int16))


def test_a_prompt_has_the_same_bits_alone_and_among_others(begun: Begun) -> None:
    both, _ = begun.step([3, 1], [[*range(40)], [5, 6, 7]])
    alone, _ = begun.step([1], [[5, 6, 7]])
    assert torch.equal(alone, both[40:])
