"""The scheme of an FP8 KV cache: carried where it can be, named where it is left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.plan.cache import check_cache
from dstools_converters.plan.plan import plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe

Checkpoint = Callable[..., Path]
INT8 = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": True}


@pytest.fixture
def cached(
    fp8_keeping: Checkpoint, headers: Callable[..., Any], sparse: Checkpoint
) -> Callable[..., Inventory]:
    """cached(scheme, *, has_scales=True): compressed-tensors with a scheme of its KV cache."""

    def make(scheme: Any, *, has_scales: bool = True) -> Inventory:
        made = fp8_keeping(kind="tiny-llama", format="compressed-tensors", kv_cache_scheme=scheme)
        config, shards = headers(made)
        if has_scales:
            for part in ("k_scale", "v_scale"):
                next(iter(shards.values()))[f"model.layers.0.self_attn.{part}"] = ("F32", [1])
        return require_sound(open_checkpoint(sparse(config, shards)))

    return make


@pytest.mark.parametrize("has_scales", [True, False])
def test_a_scheme_that_native_has_no_place_for_is_named(
    cached: Callable[..., Inventory], has_scales: bool
) -> None:
    source = cached(INT8, has_scales=has_scales)
    plan = plan_quantize(source, Recipe(), "native", None)
    assert "kv_cache_scheme" not in plan.config["quantization_config"]
    (finding,) = check_cache(plan)
    assert (finding.level, finding.where) == ("warning", "config.json")
    assert finding.message.startswith(
        "kv_cache_scheme (int, 8 bits) is left out: the native format"
    )
    # what the hint says
    assert finding.hint.startswith("--format compressed-tensors keeps it")
    plan = plan_quantize(source, Recipe(), "compressed-tensors", None)
    assert plan.config["quantization_config"]["kv_cache_scheme"] == INT8
    assert list(check_cache(plan)) == []


@pytest.mark.parametrize("scheme", [None, {}])
@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
def test_without_a_scheme_nothing_is_said(
    cached: Callable[..., Inventory], scheme: Any, format: Any
) -> None:
    source = cached(scheme)
    assert list(check_cache(plan_quantize(source, Recipe(), format, None))) == []
    assert list(check_cache(plan_dequantize(source))) == []


def test_a_scheme_of_the_base_is_named_as_the_source_lacks_its_scales(
    cached: Callable[..., Inventory], checkpoint: Checkpoint
) -> None:
    source = require_sound(open_checkpoint(checkpoint("tiny-llama")))
    plan = plan_quantize(source, Recipe(), "compressed-tensors", None, cached(INT8))
    assert not plan.config["quantization_config"].get("kv_cache_scheme")
    (finding,) = check_cache(plan)
    assert (finding.where, "its scales are in --base" in finding.message) == (
        "--base config.json",
        True,
    )


def test_the_scheme_of_a_calibration_replaces_one_without_scales(
    cached: Callable[..., Inventory], plan_of: Callable[..., Any], tmp_path: Path
) -> None:
    source = cached(INT8, has_scales=False).checkpoint.folder
    plan = plan_of(source, "amax", format="compressed-tensors", kv_cache=True)
    assert plan.config["quantization_config"]["kv_cache_scheme"]["type"] == "float"
    assert list(check_cache(plan)) == []


def test_every_command_that_plans_prints_it(
    cached: Callable[..., Inventory], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from dstools.cli import main

    folder = tmp_path / "source"
    shutil.copytree(cached(INT8).checkpoint.folder, folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    result = CliRunner().invoke(main, ["quantize", str(folder), str(tmp_path / "o"), "--dry-run"])
    assert result.exit_code == 0
    assert "warning: config.json: kv_cache_scheme (int, 8 bits) is left out" in result.stderr
