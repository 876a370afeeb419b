"""The shapes to try on a card: complete, right by definition, and wrong where a result is."""

import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dstools_kernels import ops
from dstools_kernels.ops.dispatch import VARIABLE
from dstools_kernels.proof import card, cases, roofline

CPU = torch.device("cpu")


def test_every_op_has_short_cases_and_cases_of_v3() -> None:
    names = {m.name for m in pkgutil.iter_modules(ops.__path__)} - {"dispatch", "triton"}
    assert {case.work.op for case in cases.SMALL} == names
    assert {case.work.op for case in cases.V3} == names


def test_what_the_page_counts_is_timed() -> None:
    timed = {case.name for case in cases.V3}
    assert {f"{work.op} {work.shape}" for work in roofline.V3} <= timed


def perturbed(result: Any) -> Any:
    """Return a result 1/16 larger, its last part where it has several, or with another integer."""
    if isinstance(result, tuple):
        return type(result)(*result[:-1], perturbed(result[-1]))
    return result * 1.0625 if result.is_floating_point() else result + 1


@pytest.mark.parametrize("case", cases.SMALL, ids=lambda case: case.name)
def test_a_definition_equals_itself_and_not_what_is_a_sixteenth_larger(case: cases.Case) -> None:
    torch.manual_seed(0)
    call = case.make(CPU)
    result = call()
    is_right, how = case.compare(result, call())
    assert is_right, how
    if (result[-1] if isinstance(result, tuple) else result).numel():
        is_right, how = case.compare(perturbed(result), result)
        assert not is_right, how


def test_short_cases_check_every_kernel_that_is_shipped_but_the_one_that_may_hang(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dstools_kernels.ops.triton.config import Config
    from dstools_kernels.proof.compile import all_twins, configs

    monkeypatch.setenv(VARIABLE, "triton")
    shipped, launched, checked = configs(all_twins()), set[str](), set[str]()
    launch = Config.launch

    def record(config: Config, *arguments: Any, **constants: Any) -> None:
        launched.update(name for name, other in shipped.items() if other == config)
        launch(config, *arguments, **constants)

    monkeypatch.setattr(Config, "launch", record)
    for case in cases.SMALL:

        def make(device: torch.device, case: cases.Case = case) -> Callable[[], Any]:
            call = case.make(device)
            launched.clear()  # by what makes the inputs
            return call

        assert card.check(case._replace(make=make), CPU).is_right, case.name
        checked |= launched
    assert checked == shipped.keys() - {"mla_decode/bf16.gluon"}
