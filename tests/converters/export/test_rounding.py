from dataclasses import replace
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.export.rounding import bound
from dstools_converters.families.shapes import Model


@pytest.fixture
def model(tiny_fp8: Path) -> Model:
    with open_checkpoint(tiny_fp8) as checkpoint:
        return require_sound(checkpoint).model


def test_it_grows_with_the_root_of_the_longest_sum_and_of_the_products(model: Model) -> None:
    longest = max(shape[-1] for _, shape, _ in model.kinds())
    products = 9 * model.num_layers + 1
    assert bound(model) == 2.0**-24 * (longest * products) ** 0.5
    wide = replace(model, intermediate_size=16 * longest)
    assert bound(wide) == 4 * bound(model)


def test_a_model_as_large_as_v3_may_differ_by_more_than_a_small_one(model: Model) -> None:
    v3 = replace(model, hidden_size=7168, intermediate_size=18432, num_hidden_layers=61)
    # sqrt(18432 * (9 * 62 + 1)) is 3210: at logits of 30, 5.7e-3, where 1e-4 was asked for
    assert 30 * bound(v3) == pytest.approx(5.7e-3, rel=0.02)
