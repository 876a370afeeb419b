"""Tests of Muon: its update against the decomposition, AdamW for the rest, masters and state."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from dstools_converters.errors import DstoolsError
from dstools_distill.training.muon import Muon


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


class Matrix(nn.Module):
    """One matrix of zeros, without embedding or head."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.inside = nn.Linear(columns, rows, bias=False)
        nn.init.zeros_(self.inside.weight)

    def get_input_embeddings(self) -> None:
        return None

    def get_output_embeddings(self) -> None:
        return None


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Return the first update of a matrix over its scale, 0.2 sqrt(max(rows, columns))."""
    model = Matrix(*gradient.shape)
    muon = Muon(model, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    model.inside.weight.grad = gradient
    muon.step()
    return -model.inside.weight.detach() / (0.2 * math.sqrt(max(gradient.shape)))


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_an_orthogonal_update_has_the_gradient_s_directions_and_even_singular_values(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    values = torch.logspace(0, -1, min(shape))
    update = orthogonal(left @ values.diag() @ right.T)
    inner = left.T @ update @ right  # diagonal where the directions are kept
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1
    assert inner.diagonal().min() > 0.3
    assert inner.diagonal().max() < 1.3


def test_weights_other_than_the_matrices_inside_are_trained_by_adamw() -> None:
    ours, theirs = Small(), Small()
    adamw = torch.optim.AdamW(theirs.parameters(), **HOW)
    muon = Muon(ours, **HOW)
    for model, optimizer in ((ours, muon), (theirs, adamw)):
        model.inside.weight.requires_grad_(requires_grad=False)
        train(model, optimizer, range(20))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_first_step_of_a_matrix_is_the_one_worked_by_hand() -> None:
    """The mean is 0.05 g, the update 0.05 g + 0.95 * 0.05 g: the same direction as g."""
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
    """The mean is 0.05 a, then m = 0.95 * 0.05 a + 0.05 b.

    The update is that of 0.05 b + 0.95 m = 0.045125 a + 0.0975 b.
    """
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
    direction = orthogonal((0.045125 * first + 0.0975 * second) / 0.0975)  # a first g is 0.0975 g
    wanted = before - 0.01 * 0.2 * math.sqrt(6) * direction
    # bfloat16 keeps 8 bits of singular values up to 1.3: 0.01 of an update of 0.005
    torch.testing.assert_close(weight.detach(), wanted, rtol=0, atol=5e-5)


def test_bfloat16_weights_do_not_lose_updates_smaller_than_their_step() -> None:
    """200 updates of 1e-4 on a weight near 1, whose step in bfloat16 is 2^-8."""
    model = Small(torch.bfloat16)
    optimizer = Muon(model, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    for _ in range(200):
        model.head.weight.grad = torch.ones_like(model.head.weight)
        optimizer.step()
    assert model.head.weight.float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_resumed_from_its_state_ends_in_the_same_bits(dtype: torch.dtype) -> None:
    whole = Small(dtype)
    straight = train(whole, Muon(whole, **HOW), range(10))
    first = Small(dtype)
    optimizer = Muon(first, **HOW)
    train(first, optimizer, range(6))
    second = Small(dtype)
    second.load_state_dict(first.state_dict())
    resumed = Muon(second, **HOW)
    resumed.load_state_dict(optimizer.state_dict())
    after = train(second, resumed, range(6, 10))
    assert all(torch.equal(a, b) for a, b in zip(straight, after, strict=True))


def test_a_state_from_before_the_first_step_is_empty_and_loads() -> None:
    """accelerate loads the state of every optimizer that it is given."""
    model = Small(torch.bfloat16)
    muon = Muon(model, **HOW)
    assert (muon.state_dict()["masters"], muon.state_dict()["optimizers"]) == ([], [])
    muon.load_state_dict(muon.state_dict())
    straight = Small(torch.bfloat16)
    expected = train(straight, Muon(straight, **HOW), range(3))
    after = train(model, muon, range(3))
    assert all(torch.equal(a, b) for a, b in zip(expected, after, strict=True))


def test_a_schedule_sets_the_learning_rate_of_both_optimizers() -> None:
    model = Small(torch.bfloat16)
    muon = Muon(model, **HOW)
    train(model, muon, range(2))
    for group in muon.param_groups:
        group["lr"] = 0.0
    before = [weight.detach().clone() for weight in model.parameters()]
    after = train(model, muon, range(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_state_of_an_earlier_version_is_refused_with_a_way_out() -> None:
    muon = Muon(Small(), **HOW)
    state = muon.state_dict()
    del state["optimizers"]
    with pytest.raises(DstoolsError, match="of an earlier version of dstools") as error:
        muon.load_state_dict(state)
    assert "OUT/store" in error.value.hint
