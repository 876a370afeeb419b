"""Weights that engines run as one are all FP8 or all kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.verify.roles import check_experts, check_fused, check_roles

Keeping = Callable[..., Path]
LAYER = "model.layers.{}.mlp."
PARTS = ("gate", "up", "down")


def experts(layer: int, *parts: str, numbers: range = range(8)) -> list[str]:
    return [f"{LAYER.format(layer)}experts.{n}.{part}_proj" for n in numbers for part in parts]


def shared(layer: int, *parts: str) -> list[str]:
    return [f"{LAYER.format(layer)}shared_experts.{part}_proj" for part in parts]


@pytest.mark.parametrize(
    ("kept", "engines"),
    [
        ([], ""),
        (experts(1, *PARTS), ""),
        (experts(1, *PARTS) + experts(3, *PARTS), ""),
        (experts(1, "down"), "vllm sglang trtllm"),
        (experts(1, "gate", "up"), "vllm sglang trtllm"),
        (experts(2, *PARTS, numbers=range(1)), "vllm sglang trtllm"),
        (experts(3, *PARTS, numbers=range(7)), "vllm sglang trtllm"),  # of the MTP layer
        (shared(1, *PARTS), ""),
        (shared(1, "down"), "sglang"),
        (["model.layers.0.mlp.down_proj"], ""),
    ],
)
def test_a_layer_s_experts_are_all_alike_for_engines_that_run_them_as_one(
    kept: list[str], engines: str, fp8_keeping: Keeping
) -> None:
    inventory = require_sound(open_checkpoint(fp8_keeping(*kept)))
    for engine in ("vllm", "sglang", "trtllm"):
        findings = list(check_experts(inventory, engine))
        assert bool(findings) == (engine in engines.split())
        for finding in findings:
            roles = "shared" if "shared" in kept[0] else "routed"
            assert finding.level == "error"
            assert f"{roles}_gate, {roles}_up, {roles}_down" in finding.hint


def test_layers_with_experts_apart_are_one_finding(fp8_keeping: Keeping) -> None:
    kept = [name for layer in (1, 2, 3) for name in experts(layer, "down")]
    inventory = require_sound(open_checkpoint(fp8_keeping(*kept)))
    (finding,) = check_experts(inventory, "vllm")
    assert "(and in 2 more layers)" in finding.message


def test_halves_of_one_matrix_are_an_error_without_an_engine_too(fp8_keeping: Keeping) -> None:
    kept = shared(1, "gate")
    inventory = require_sound(open_checkpoint(fp8_keeping(*kept)))
    (finding,) = check_fused(inventory)
    assert (finding.code, finding.level) == ("fused-apart", "error")
    assert list(check_roles(inventory)) == []
