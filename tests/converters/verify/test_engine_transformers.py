"""What transformers refuses or misreads: the rules from headers, and transformers itself."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.verify.engines import check_engine


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep transformers from reporting every tensor that it cannot convert."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture
def made(
    make_checkpoint: ModuleType, quantized: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> Callable[..., Path]:
    """made(kind, changes, format): a checkpoint of a changed config, quantized."""

    def make(kind: str, changes: dict[str, int], format: str) -> Path:
        config = make_checkpoint.CONFIGS[kind] | changes
        monkeypatch.setitem(make_checkpoint.CONFIGS, "changed", config)
        return quantized(make_checkpoint.make("changed", tmp_path / "changed"), format)

    return make


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "right"),
        ({"intermediate_size": 640, "num_key_value_heads": 1}, "right"),  # k of 64: one block
        ({"hidden_size": 64}, "right"),  # one block of columns
        ({"intermediate_size": 336}, "misreads"),  # 3 blocks of 112
        ({"head_dim": 80}, "refuses"),  # q 320 is refused, k 160 alone would be read as 2 of 80
        ({"head_dim": 48}, "misreads"),  # q 192: 2 of 96
        ({"intermediate_size": 576}, "refuses"),  # 5 blocks
        ({"hidden_size": 576}, "refuses"),
        ({"head_dim": 120}, "misreads"),  # q 480: 4 of 120, k 240: 2 of 120
    ],
)
@pytest.mark.usefixtures("quiet")
def test_transformers_does_with_native_shapes_what_the_rule_says(
    changes: dict[str, int],
    wanted: str,
    made: Callable[..., Path],
    dequantized: Callable[[Path], Path],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = made("tiny-llama", changes, "native")
    inventory = require_sound(open_checkpoint(folder))
    messages = " ".join(f.message for f in check_engine(inventory, "transformers", 1))

    def load(path: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        state: dict[str, Any] = model.state_dict()
        return state

    right = load(dequantized(folder))
    try:
        theirs = load(folder)
    except RuntimeError:
        seen = "refuses"
    else:
        seen = "right" if all(right[name].equal(theirs[name]) for name in right) else "misreads"
    said = [word for word in ("refuses", "misreads") if f"transformers {word}" in messages]
    assert (said or ["right"])[0] == seen == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ""),
        ({"intermediate_size": 336}, "its 336 columns are not groups of 128"),
        ({"hidden_size": 576}, "its 576 columns are not groups of 128"),
    ],
)
@pytest.mark.usefixtures("quiet")
def test_transformers_runs_compressed_tensors_in_groups_of_columns(
    changes: dict[str, int], wanted: str, made: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = made("tiny-llama", changes, "compressed-tensors")
    inventory = require_sound(open_checkpoint(folder))
    found = list(check_engine(inventory, "transformers", 1))
    assert all(wanted in f.message and f.code == "engine-shape" for f in found)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    try:
        with torch.inference_mode():
            model(torch.arange(8)[None])
    except RuntimeError:
        assert found
    else:
        assert not found


def test_weights_without_activations_need_no_groups(
    fp8: Callable[..., Inventory], configs: dict[str, dict[str, Any]]
) -> None:
    inventory = fp8(configs["tiny-llama"] | {"hidden_size": 576}, format="compressed-tensors")
    assert list(check_engine(inventory, "transformers", 1))
    (group,) = inventory.checkpoint.config["quantization_config"]["config_groups"].values()
    group["input_activations"] = None
    assert list(check_engine(inventory, "transformers", 1)) == []


def test_v3_is_refused_for_one_role(checkpoint: Callable[..., Path]) -> None:
    # kv_a_proj_with_mqa alone is ragged: 576 = 4.5 blocks
    v3 = require_sound(open_checkpoint(checkpoint("v3-headers")))
    found = list(check_engine(v3, "transformers", 1))
    assert [(f.level, f.code) for f in found] == [("error", "engine-shape"), ("note", "engine-mtp")]
    assert found[0].where.endswith(": model.layers.0.self_attn.kv_a_proj_with_mqa.weight")
    assert "refuses [576, 7168], which [5, 56] blocks do not divide" in found[0].message
    assert "(and 61 more like it)" in found[0].message


def test_experts_of_compressed_tensors_are_refused(
    fp8: Callable[..., Inventory], configs: dict[str, dict[str, Any]]
) -> None:
    found = list(
        check_engine(fp8(configs["tiny-v2"], format="compressed-tensors"), "transformers", 1)
    )
    assert [f.code for f in found] == ["engine-format"]


@pytest.mark.parametrize(
    ("ignore", "is_right"),
    [([], False), (["lm_head"], True), (["re:.*lm_head"], True), (["re:.*mlp.*"], False)],
)
def test_a_head_must_be_ignored_tied_or_not(
    ignore: list[str],
    is_right: bool,
    fp8: Callable[..., Inventory],
    configs: dict[str, dict[str, Any]],
) -> None:
    for kind in ("tiny-qwen2", "tiny-llama"):
        inventory = fp8(configs[kind], format="compressed-tensors", ignore=ignore)
        findings = check_engine(inventory, "transformers", 1)
        assert ("engine-head" in [f.code for f in findings]) == (not is_right)
