"""Kept weights: the list comes from the tensors, and engines' units stay whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES, Format
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan, plan_quantize
from dstools_converters.plan.recipe import Recipe, Rule

Checkpoint = Callable[..., Path]
Keeping = Callable[..., Path]
LAYER_1 = "model.layers.1."
EXPERTS = [
    f"{LAYER_1}mlp.experts.{expert}.{part}_proj"
    for expert in range(8)
    for part in ("gate", "up", "down")
]
ROUTED = ("routed_gate", "routed_up", "routed_down")
SHARED = ("shared_gate", "shared_up", "shared_down")


def opened(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def quantize(folder: Path, *rules: Rule, format: Format = "native") -> Plan:
    return plan_quantize(opened(folder), Recipe(rules), format, None)


def named(plan: Plan) -> list[str]:
    quantization = plan.config["quantization_config"]
    names: list[str] = quantization.get("modules_to_not_convert") or quantization.get("ignore", [])
    return names


def kept(plan: Plan) -> set[str]:
    """The modules that DeepSeek ships in FP8 and the plan keeps."""
    names = plan.inventory.names
    return {
        tensor.source.name.removesuffix(".weight")
        for tensor in plan.decisions
        if (parsed := names[tensor.source.name]) is not None
        and parsed.role in QUANTIZED_ROLES
        and not tensor.target.is_quantized
    }


KEPT_MATRICES = {"lm_head", "model.layers.3.eh_proj", "model.layers.3.shared_head.head"}
KEPT_MATRICES |= {f"model.layers.{layer}.mlp.gate" for layer in (1, 2, 3)}


@pytest.mark.parametrize(
    "roles",
    [
        ("q_a_proj", "kv_a_proj_with_mqa"), SHARED, ("dense_gate", "dense_up"), ("dense_down",),
        ("q_b_proj",), ("kv_b_proj",), ("o_proj",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
def test_what_a_recipe_keeps_is_named_by_whole_names(
    roles: tuple[str, ...], format: Format, tiny: Path
) -> None:
    plan = quantize(tiny, Rule("r, rule 1", "keep", roles), format=format)
    assert kept(plan)
    assert set(named(plan)) == kept(plan) | KEPT_MATRICES
    assert len(named(plan)) == len(set(named(plan)))


def test_a_layer_s_experts_are_named_by_the_module_that_engines_look_for(tiny: Path) -> None:
    rule = Rule("r, rule 1", "keep", ROUTED, layers=((1, 1),))
    assert set(named(quantize(tiny, rule))) == KEPT_MATRICES | {f"{LAYER_1}mlp.experts"}
    by_expert = named(quantize(tiny, rule, format="compressed-tensors"))
    assert set(by_expert) == KEPT_MATRICES | set(EXPERTS)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("r", "keep", ("routed_down",)),
        Rule("r", "keep", ("routed_gate", "routed_up")),
        Rule("r", "keep", ("routed_down", "shared_down"), layers=((0, 3),)),
        Rule("r", "keep", name=f"{LAYER_1}mlp.experts.5.*"),
        Rule("r", "keep", ("shared_down",), layers=((2, 2),)),
        Rule("r", "keep", ROUTED, layers=((1, 1),), name="*.experts.0.*"),
    ],
)
def test_a_recipe_that_keeps_some_experts_of_a_layer_is_refused(rule: Rule, tiny: Path) -> None:
    with pytest.raises(DstoolsError, match=r"kept \(r\), but .* is quantized \(DeepSeek") as error:
        quantize(tiny, rule)
    roles = SHARED if rule.roles == ("shared_down",) else ROUTED
    assert ", ".join(roles) in error.value.hint
    kind = roles[0].removesuffix("_gate")
    assert f"the {kind} experts of a layer as one module" in error.value.hint


def test_a_recipe_refused_for_its_experts_works_as_the_hint_says(tiny: Path) -> None:
    plan = quantize(tiny, Rule("r", "keep", ROUTED))
    assert {f"model.layers.{layer}.mlp.experts" for layer in (1, 2, 3)} < set(named(plan))


@pytest.mark.parametrize(
    "quantization",
    [
        {},
        {"modules_to_not_convert": ["model.layers.0.self_attn"]},
        {"ignored_layers": ["lm_head", "o_proj"]},
        {"modules_to_not_convert": ["model.layers.1.mlp.experts.7.up_proj"]},  # which is FP8
    ],
)
def test_a_source_s_kept_weights_stay_and_its_list_is_written_anew(
    quantization: dict[str, Any], fp8_keeping: Keeping
) -> None:
    modules = ("model.layers.0.self_attn.o_proj", "model.layers.2.self_attn.o_proj")
    plan = quantize(fp8_keeping(*modules, **quantization))
    assert {tensor.action for tensor in plan.decisions} == {"copy"}
    assert set(named(plan)) == KEPT_MATRICES | set(modules)
    assert "ignored_layers" not in plan.config["quantization_config"]


def test_a_recipe_that_keeps_everything_is_refused(tiny: Path) -> None:
    with pytest.raises(DstoolsError, match="every weight is kept"):
        quantize(tiny, Rule("r", "keep", name="*"))


def test_a_rule_may_quantize_what_the_source_keeps(fp8_keeping: Keeping) -> None:
    module = "model.layers.0.self_attn.o_proj"
    source = fp8_keeping(module, modules_to_not_convert=[module])
    plan = quantize(source, Rule("r", "fp8-block", ("o_proj",)))
    assert {t.source.name for t in plan.decisions if t.action == "quantize"} == {f"{module}.weight"}
    assert named(plan) == []


def test_a_source_that_keeps_some_experts_is_copied_as_it_is(fp8_keeping: Keeping) -> None:
    down = [module for module in EXPERTS if "down" in module]
    assert kept(quantize(fp8_keeping(*down))) == set(down)


def test_a_source_that_keeps_one_of_two_fused_weights_is_refused(fp8_keeping: Keeping) -> None:
    with pytest.raises(DstoolsError, match=r"q_a_proj.*kept \(not FP8 in the source") as error:
        quantize(fp8_keeping("model.layers.0.self_attn.q_a_proj"))
    rule = Rule("r", "fp8-block", ("q_a_proj", "kv_a_proj_with_mqa"))  # as the hint says
    assert "q_a_proj, kv_a_proj_with_mqa one rule" in error.value.hint
    assert kept(quantize(fp8_keeping("model.layers.0.self_attn.q_a_proj"), rule)) == set()


def test_targets_of_the_source_are_widened_and_the_rest_is_ignored(fp8_keeping: Keeping) -> None:
    kept_modules = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(4)]
    source = fp8_keeping(
        *kept_modules, format="compressed-tensors", targets=["re:.*mlp.*"], ignore=["lm_head"]
    )
    plan = quantize(source, format="compressed-tensors")
    assert set(kept_modules) < set(named(plan))
    assert plan.config["quantization_config"]["config_groups"]["group_0"]["targets"] == ["Linear"]


def test_a_native_list_that_nothing_needs_is_left_out(fp8_keeping: Keeping) -> None:
    source = fp8_keeping(modules_to_not_convert=["lm_head", "model.layers.1.mlp.gate"])
    assert "modules_to_not_convert" not in quantize(source).config["quantization_config"]


def test_a_tied_head_is_a_module_without_a_tensor_that_every_list_names(
    checkpoint: Checkpoint,
) -> None:
    tied = checkpoint("tiny-qwen2")
    assert named(quantize(tied, format="compressed-tensors")) == ["lm_head"]
    assert named(quantize(tied)) == []
    rule = Rule("r", "keep", ("dense_down",), layers=((0, 0),))
    assert set(named(quantize(tied, rule))) == {"model.layers.0.mlp.down_proj", "lm_head"}
