"""Settings that contradict each other are refused; those that several launches share are not."""

from dataclasses import replace
from typing import Any

import pytest

from dstools_converters.errors import DstoolsError
from dstools_distill.recipe.settings import SPREADING, Lora, Training, check_settings

TWO = Training(processes=2, parallel="ddp")


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            Training(processes=2),
            "processes = 2 and parallel = 'single' contradict each other",
            '"single"',
        ),
        (
            Training(parallel="ddp"),
            "processes = 1 and parallel = 'ddp' contradict each other",
            '"ddp"',
        ),
        (
            replace(TWO, batch_size=6, micro_batch_size=2),
            "batch_size = 6 is not a multiple of micro_batch_size x processes = 4",
            "a multiple",
        ),
        (replace(TWO, parallel="zero3", ema=0.9), "zero3 divides each weight", '"zero2" or "ddp"'),
        (Training(parallel="fsdp2", lora=Lora()), "fsdp2 divides each", '"zero2" or "single"'),
        (replace(TWO, parallel="zero2", precision="bfloat16"), "zero2 does not train", "autocast"),
        (Training(optimizer="muon", lora=Lora()), "not lora updates", "another optimizer"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: Training, message: str, hint: str
) -> None:
    with pytest.raises(DstoolsError) as caught:
        check_settings(settings, "a.toml: sft: ")
    assert str(caught.value).startswith("a.toml: sft: ")
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("parallel", SPREADING)
def test_muon_is_refused_where_a_weight_or_its_gradient_is_divided(parallel: Any) -> None:
    with pytest.raises(DstoolsError, match=f"muon needs each weight whole, and {parallel}"):
        check_settings(Training(parallel=parallel, optimizer="muon"))


@pytest.mark.parametrize(
    "settings",
    [
        Training(),
        TWO,
        Training(parallel="zero3"),  # a trial of the launch, with one process
        replace(TWO, parallel="zero2", ema=0.9, lora=Lora()),
        replace(TWO, optimizer="muon"),
    ],
)
def test_settings_that_agree_pass(settings: Training) -> None:
    check_settings(settings)
