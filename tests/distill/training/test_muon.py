"""Muon's update against the decomposition it approximates, AdamW against torch's, and its state."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from dstools_distill.training.muon import Muon, orthogonal


class Small(nn.Module):
    """An embedding, a matrix inside, a norm's weight, a head."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 6, dtype=dtype)
        self.inside = nn.Linear(6, 4, dtype=dtype)
        self.head = nn.Linear(4, 7, bias=False, dtype=dtype)

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def get_output_embeddings(self) -> Any:
        return self.head

    def loss(self, seed: int) -> Any:
        torch.manual_seed(seed)
        ids, wanted = torch.randint(7, (2, 5))
        return nn.functional.cross_entropy(
            self.head(self.inside(self.embedding(ids))).float(), wanted
        )


def train(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    for step in steps:
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step()
    return [weight.detach().clone() for weight in model.parameters()]


HOW: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_an_orthogonal_update_has_the_gradient_s_directions_and_even_singular_values(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.logspace(0, -1, min(shape))
    found = orthogonal(left @ values.diag() @ right.T)
    inner = left.T @ found @ right  # diagonal where the directions are kept
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1
    assert inner.diagonal().min() > 0.3
    assert inner.diagonal().max() < 1.3


def test_all_but_the_matrices_inside_are_trained_as_torch_s_adamw_does() -> None:
    ours, theirs = Small(), Small()
    adamw = torch.optim.AdamW(theirs.parameters(), **HOW)
    muon = Muon(ours, **HOW)
    for model, optimizer in ((ours, muon), (theirs, adamw)):
        model.inside.weight.requires_grad_(requires_grad=False)
        train(model, optimizer, range(20))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            mine, other, rtol=1e-4, atol=1e-6
        )  # float32, other order of sums


def test_a_first_step_of_a_matrix_is_the_one_worked_by_hand() -> None:
    """momentum lerps 0 to 0.05 g, then g to 0.05 g + 0.95 (0.05 g - g) < g: the same direction as g."""
    model = Small()
    before = model.inside.weight.detach().clone()
    muon = Muon(model, **HOW)
    model.loss(3).backward()
    assert model.inside.weight.grad is not None
    direction = orthogonal(model.inside.weight.grad)
    muon.step()
    wanted = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * math.sqrt(6) * direction
    torch.testing.assert_close(model.inside.weight.detach(), wanted, rtol=0, atol=2e-4)


def test_a_second_step_remembers_the_first_gradient_as_worked_by_hand() -> None:
    """The mean is 0.05 a, then 0.95 * 0.05 a + 0.05 b; the update 0.05 b + 0.95 of it: 0.045125 a + 0.0975 b."""
    model = Small()
    weight = model.inside.weight
    muon = Muon(model, lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    torch.manual_seed(1)
    first, second = torch.randn(2, *weight.shape)
    weight.grad = first
    muon.step()
    before = weight.detach().clone()
    weight.grad = second
    muon.step()
    direction = orthogonal(0.045125 * first + 0.0975 * second)
    wanted = before - 0.01 * 0.2 * math.sqrt(6) * direction
    # bfloat16 keeps 8 bits of singular values up to 1.3: 0.01 of an update of 0.005
    torch.testing.assert_close(weight.detach(), wanted, rtol=0, atol=5e-5)


def test_bfloat16_weights_do_not_lose_updates_smaller_than_their_step() -> None:
    """200 updates of 1e-4 on a weight near 1, whose step in bfloat16 is 2^-8, each below half of it."""
    model = Small(torch.bfloat16)
    optimizer = Muon(model, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    for _ in range(200):
        model.head.weight.grad = torch.ones_like(model.head.weight)
        optimizer.step()
    assert model.head.weight.float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_gone_on_with_from_its_state_ends_in_the_same_bits(dtype: torch.dtype) -> None:
    whole = Small(dtype)
    wanted = train(whole, Muon(whole, **HOW), range(10))
    first = Small(dtype)
    optimizer = Muon(first, **HOW)
    train(first, optimizer, range(6))
    second = Small(dtype)
    second.load_state_dict(first.state_dict())
    resumed = Muon(second, **HOW)
    resumed.load_state_dict(optimizer.state_dict())
    found = train(second, resumed, range(6, 10))
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
