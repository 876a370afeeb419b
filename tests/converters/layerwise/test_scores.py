"""`score` and its scores, slab by slab, against whole logits in float64."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.families.names import TensorName
from dstools_converters.layerwise import scores as module
from dstools_converters.layerwise.runner import Runner
from dstools_converters.layerwise.scores import Scores, head, score
from dstools_converters.model.architecture import read_architecture


def test_scores_carried_from_slab_to_slab_are_those_of_whole_logits() -> None:
    """300 logits in slabs of 70: likeliest and next tokens are in every slab, at its edges too.

    Sums of 300 terms in two orders differ by a factor of 300 times 2^-53, some 1e-13.
    """
    generator = torch.Generator().manual_seed(0)
    logits_TV = 20 * torch.randn(400, 300, generator=generator, dtype=torch.float64)
    next_T = torch.arange(400) % 300
    scores = Scores(next_T)
    for begin in (0, 100, 200, 300):
        for first in range(0, 300, 70):
            scores.add(begin, first, logits_TV[begin : begin + 100, first : first + 70])
    assert torch.equal(scores.top_T, logits_TV.argmax(1))
    assert torch.equal(scores.peak_T, logits_TV.amax(1))
    assert torch.equal(scores.next_logit_T, logits_TV[torch.arange(400), next_T])
    assert torch.allclose(scores.log_sum(), logits_TV.logsumexp(1), rtol=1e-13, atol=1e-13)
    wanted = F.cross_entropy(logits_TV, next_T, reduction="none")
    assert torch.allclose(scores.surprise(), wanted, rtol=1e-12, atol=1e-12)


def weight(folder: Path, name: str) -> Tensor:
    """A BF16 tensor of a checkpoint, in float32."""
    (shard,) = (path for path in folder.glob("*.safetensors") if name in load_file(path))
    return load_file(shard)[name].float()


@pytest.mark.parametrize("slab_rows", [1024, 200])
def test_a_norm_and_the_head_give_the_scores_of_the_last_states(
    slab_rows: int, tiny_aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models with one checkpoint and different states: each has its own scores, and a KL.

    The logits are float32 sums of 256 products; 1e-5 is 256 u with room for the norm.
    """
    monkeypatch.setattr(module, "SLAB_ROWS", slab_rows)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1024, (3, 20), generator=generator)
    states = [torch.randn(60, 256, generator=generator) for _ in range(2)]
    norm, lm_head = (weight(tiny_aligned, f"{n}.weight") for n in ("model.norm", "lm_head"))
    log_probs = [
        F.linear(F.rms_norm(part, (256,), norm, eps=1e-6), lm_head).double().log_softmax(1)
        for part in states
    ]
    reported: list[int] = []
    with open_checkpoint(tiny_aligned) as opened:
        inventory = require_sound(opened)
        architecture = read_architecture(opened.config)
        runners, hidden = [], []
        for part in states:
            runner = Runner(
                inventory, architecture, ids, device="cpu", folder=tmp_path, ram_bytes=1 << 30
            )
            runners.append(runner)
            hidden.append([runner.spill(60)])
            hidden[-1][0].write(0, part)
        hidden[1].append(runners[1].spill(60))  # a second stream, of the states of the first model
        hidden[1][1].write(0, states[0])
        scores, kl = score(runners, hidden, reported.append)
        assert sum(reported) == 2 * inventory.info(head(inventory)).nbytes
    next_T = ids.roll(-1, 1).flatten()
    for one, log_TV in zip(scores, [*log_probs, log_probs[0]], strict=True):
        wanted = -log_TV.gather(1, next_T[:, None])[:, 0]
        assert torch.allclose(one.surprise(), wanted, atol=1e-5, rtol=0)
        assert torch.equal(one.top_T, log_TV.argmax(1))
    wanted = (log_probs[0].exp() * (log_probs[0] - log_probs[1])).sum(1)
    assert wanted.min() > 1e-3
    assert torch.allclose(kl[1], wanted, atol=1e-5, rtol=0)
    assert kl[0].count_nonzero() == 0
    assert kl[2].abs().max() < 1e-12


def test_the_head_of_a_tied_model_is_its_embedding(checkpoint: Callable[..., Path]) -> None:
    for kind, role in (("tiny-qwen2", "embed_tokens"), ("tiny-qwen3", "lm_head")):
        with open_checkpoint(checkpoint(kind)) as opened:
            assert head(require_sound(opened)) == TensorName(role, "weight")


def test_the_first_of_equally_likely_tokens_is_the_top_one() -> None:
    scores = Scores(torch.tensor([0]))
    for first in (0, 2):
        scores.add(0, first, torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert scores.top_T.tolist() == [0]
    assert scores.surprise().tolist() == pytest.approx([math.log(4)], rel=1e-15)
