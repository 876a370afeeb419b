"""Sampling: what tokens can be drawn with."""

import pytest

from dstools_converters.errors import DstoolsError
from dstools_converters.runtime.sampling import Sampling

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("temperature", [1e-7, 1e-30, 1e-320, -0.5, INF, NAN])
def test_a_temperature_that_logits_cannot_be_divided_by_is_refused(temperature: float) -> None:
    with pytest.raises(
        DstoolsError, match=r"temperature .* is not 0, nor finite and at least 1e-06"
    ):
        Sampling(temperature)


@pytest.mark.parametrize("top_p", [-0.1, 1.1, NAN])
def test_a_top_p_that_is_no_share_is_refused(top_p: float) -> None:
    with pytest.raises(DstoolsError, match=r"top_p .* is not between 0 and 1"):
        Sampling(1.0, top_p)


def test_zero_and_the_least_temperature_are_accepted() -> None:
    assert [Sampling(value).temperature for value in (0.0, 1e-6)] == [0.0, 1e-6]
