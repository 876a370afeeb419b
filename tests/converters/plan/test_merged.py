"""Merged weights that do not end on blocks: the warning, and the recipe that it names."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.plan.merged import check_merged, keeping
from dstools_converters.plan.plan import plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe, read_recipe

# kind, changes, the roles that are named
RAGGED: list[tuple[str, dict[str, Any], str]] = [
    ("tiny-llama", {"head_dim": 48}, "k_proj, q_proj"),
    ("tiny-llama", {"num_key_value_heads": 1}, "k_proj"),  # 64 rows
    ("tiny-llama", {"intermediate_size": 336}, "dense_gate"),
    ("tiny-aligned", {"q_lora_rank": 96}, "q_a_proj"),
    ("tiny-aligned", {"moe_intermediate_size": 160}, "routed_gate, shared_gate"),
    ("tiny-v2-lite", {"intermediate_size": 10944}, "dense_gate"),  # V2-Lite's own
]


@pytest.fixture
def made(
    make_checkpoint: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """made(kind, changes): a checkpoint of a changed config."""

    def make(kind: str, changes: dict[str, Any]) -> Path:
        config = make_checkpoint.CONFIGS[kind] | changes
        monkeypatch.setitem(make_checkpoint.CONFIGS, "changed", config)
        folder: Path = make_checkpoint.make("changed", tmp_path / "changed")
        return folder

    return make


@pytest.mark.parametrize(("kind", "changes", "roles"), RAGGED)
def test_ragged_merged_weights_are_named_and_the_hint_s_recipe_keeps_them(
    kind: str, changes: dict[str, Any], roles: str, made: Callable[..., Path], tmp_path: Path
) -> None:
    inventory = require_sound(open_checkpoint(made(kind, changes)))

    def findings(recipe: Recipe, format: Any) -> list[Any]:
        return list(check_merged(plan_quantize(inventory, recipe, format, None)))

    for format in ("native", "compressed-tensors"):
        (found,) = findings(Recipe(), format)
        assert found.level == "warning"
        assert found.message.endswith(f"refuse or misread such {roles}")
        (tmp_path / "recipe.toml").write_text(found.hint.partition("a recipe with ")[2])
        assert findings(read_recipe(tmp_path / "recipe.toml"), format) == []


@pytest.mark.parametrize("kind", ["tiny-aligned", "tiny-v2", "tiny-v2-lite", "tiny-llama",
                                  "tiny-qwen2", "tiny-qwen3", "tiny-v32"])  # fmt: skip
def test_whole_blocks_are_no_warning(kind: str, checkpoint: Callable[..., Path]) -> None:
    inventory = require_sound(open_checkpoint(checkpoint(kind)))
    assert list(check_merged(plan_quantize(inventory, Recipe(), "native", None))) == []


def test_bf16_has_no_blocks(tiny_fp8: Path) -> None:
    inventory = require_sound(open_checkpoint(tiny_fp8))
    assert list(check_merged(plan_dequantize(inventory))) == []


def test_mla_s_query_is_a_matrix_of_its_own(made: Callable[..., Path]) -> None:
    folder = made("tiny-v2-lite", {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32})  # 192 rows
    plan = plan_quantize(require_sound(open_checkpoint(folder)), Recipe(), "native", None)
    assert list(check_merged(plan)) == []


def test_every_role_has_a_recipe_of_one_line(tmp_path: Path) -> None:
    kept = {role: keeping(role) for role in ("q_a_proj", "routed_down", "shared_up", "o_proj")}
    assert kept == {
        "q_a_proj": 'rule = [{ role = ["q_a_proj", "kv_a_proj_with_mqa"], scheme = "keep" }]',
        "routed_down": 'rule = [{ role = ["routed_gate", "routed_up", "routed_down"], '
        'scheme = "keep" }]',
        "shared_up": 'rule = [{ role = ["shared_gate", "shared_up", "shared_down"], '
        'scheme = "keep" }]',
        "o_proj": 'rule = [{ role = ["o_proj"], scheme = "keep" }]',
    }
    for line in kept.values():
        (tmp_path / "recipe.toml").write_text(line)
        assert len(read_recipe(tmp_path / "recipe.toml").rules) == 1


def test_the_command_warns_once_on_stderr_and_still_succeeds(tiny: Path, tmp_path: Path) -> None:
    asked = ["quantize", str(tiny), str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0
    assert result.stderr.count("warning: ") == 1
    assert "warning: model.layers.0.mlp.gate_proj.weight: its 336 rows" in result.stderr
    named = "dense_gate, q_a_proj, routed_gate, shared_gate"
    assert f"refuse or misread such {named}" in result.stderr
    assert "hint: for these engines use a recipe with rule = [" in result.stderr
    assert "warning" not in result.stdout
