"""A token is the one whose interval has the random number; logits without one are an error."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dstools_converters.runtime import draw as module
from dstools_converters.runtime.draw import NOT_FINITE, Noise, pick
from dstools_converters.runtime.sampling import Sampling

INF, NAN = float("inf"), float("nan")


def drawn(shares: list[float], top_p: float, uniform: float) -> int:
    logits = torch.tensor([shares]).log()
    return pick(logits, Sampling(1.0, top_p), [uniform])[0]


@pytest.mark.parametrize(
    ("top_p", "uniform", "token"),
    [
        (1.0, 0.0, 1),  # token 0 has no share at all
        (1.0, 0.19, 1),
        (1.0, 0.21, 2),
        (1.0, 0.69, 2),
        (1.0, 0.71, 3),
        (1.0, 1 - 2**-53, 3),
        (0.7, 0.624, 2),  # the nucleus is 0.5 and 0.3; their sum 0.8: 0.5 / 0.8 = 0.625
        (0.7, 0.626, 3),
        (0.7, 1 - 2**-53, 3),
        (0.49, 0.99, 2),  # one token is enough
        (0.0, 0.99, 2),  # and there always is one
        (0.81, 0.99, 1),  # 0.8 is not
    ],
)
@pytest.mark.parametrize("first_tokens", [1, 2, 1024])
def test_the_token_is_the_one_whose_interval_has_the_number(
    top_p: float, uniform: float, token: int, first_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_TOKENS", first_tokens)
    assert drawn([0.0, 0.2, 0.5, 0.3], top_p, uniform) == token


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.floats(0.05, 1.0),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_is_in_the_nucleus(logits: list[float], top_p: float, uniform: float) -> None:
    scores = torch.tensor([logits])
    (token,) = pick(scores, Sampling(1.0, top_p), [uniform])
    shares = torch.softmax(scores.double(), -1)[0]
    above = float(
        shares[shares > shares[token] * (1 + 1e-5)].sum()
    )  # float32 orders near ties as it likes
    assert above < top_p + 1e-5
    assert shares[token] > 0


@pytest.mark.parametrize(
    ("top_p", "uniform", "token"),
    [(0.0, 0.99, 0), (0.5, 0.0, 0), (0.5, 0.74, 2), (0.5, 0.76, 3), (1.0, 0.99, 7)],
)
@pytest.mark.parametrize("first_tokens", [1, 3, 4, 5, 8])
def test_of_equal_tokens_the_smallest_ids_come_first(
    top_p: float, uniform: float, token: int, first_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_TOKENS", first_tokens)
    assert drawn([1 / 8] * 8, top_p, uniform) == token


@pytest.mark.parametrize("size", [50, 129_280])  # one thread, several
def test_greedy_takes_the_smallest_id_of_equal_logits(size: int) -> None:
    logits = torch.zeros(3, size)
    logits[1, [size - 1, 40, 41]] = 2.0
    assert pick(logits, Sampling(), []) == [0, 40, 0]


def test_a_token_does_not_depend_on_the_rows_beside_it() -> None:
    """A flat row, whose nucleus is nearly the whole vocabulary, beside rows with many ties."""
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(200, 4000, generator=generator)).bfloat16().float()
    uniform = torch.rand(201, generator=generator, dtype=torch.float64).tolist()
    nucleus = Sampling(1.0, 0.9)
    together = pick(torch.cat((logits, torch.zeros(1, 4000))), nucleus, uniform)
    assert pick(logits, nucleus, uniform[:200]) == together[:200]
    alone = [pick(row[None], nucleus, [u]) for row, u in zip(logits, uniform, strict=False)]
    assert [token for (token,) in alone] == together[:200]


# ------------------------------------------------------------------------------- what is not finite


@pytest.fixture
def plain() -> Tensor:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = 20.0
    return logits


BAD = {"NaN": [NAN], "+inf": [INF], "both": [INF, NAN], "-inf and NaN": [-INF, NAN]}


@pytest.mark.parametrize("top_p", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("values", [*BAD.values(), [-INF] * 50], ids=[*BAD, "only -inf"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_only_the_row_that_is_not_finite_has_no_token(
    values: list[float], top_p: float, temperature: float, plain: Tensor
) -> None:
    plain[1, : len(values)] = torch.tensor(values)
    uniform = [0.1, 0.5, 0.9]
    assert pick(plain, Sampling(temperature, top_p), uniform) == [7, NOT_FINITE, 7]


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0])
def test_ids_masked_with_minus_infinity_are_never_drawn(temperature: float, plain: Tensor) -> None:
    plain[:, 8:] = -INF
    plain[2, 7] = -INF
    tokens = pick(plain, Sampling(temperature, 0.9), [0.0, 0.5, 1 - 2**-53])
    assert tokens[:2] == [7, 7]
    assert tokens[2] < 7


def test_the_least_temperature_is_greedy_and_does_not_overflow(plain: Tensor) -> None:
    big = plain * 1e30  # logits no model has
    assert pick(big, Sampling(1e-6), [0.0, 0.5, 0.9]) == [7, 7, 7]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_logit_that_overflows_at_a_temperature_ends_its_row_alone(
    top_p: float, plain: Tensor
) -> None:
    plain[1, 3] = 1e33
    uniform = [0.0, 0.5, 0.9]
    assert pick(plain, Sampling(1e-6, top_p), uniform) == [7, NOT_FINITE, 7]
    assert pick(plain, Sampling(1e-3, top_p), uniform) == [7, 3, 7]
    assert pick(plain, Sampling(), uniform) == [7, 3, 7]


# --------------------------------------------------------------------------------- random numbers


def test_a_number_depends_on_seed_index_and_step_alone() -> None:
    """In any order; those of 64 steps are drawn at a time, as answers before this loop were."""
    source = random.Random("5 3 64")
    wanted = [source.random() for _ in range(64)]
    noise = Noise(5, 3)
    assert [noise.number(step) for step in range(64, 128)] == wanted
    assert noise.number(0) == random.Random("5 3 0").random()
    assert noise.number(70) == wanted[6]
    assert len({Noise(seed, index).number(0) for seed in (1, 2) for index in (1, 2)}) == 4
