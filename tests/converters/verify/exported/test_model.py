"""Shapes, ranks, pool and genai_config.json of an exported folder against its config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.export.folder import pairs_of, require_export
from dstools_converters.export.ranks import Ranks
from dstools_converters.families.shapes import read_model
from dstools_converters.verify.exported.model import check_model

SAMPLE = Path(__file__).parents[3] / "data" / "sample-v3"


@pytest.fixture
def copy(exported: Callable[..., Path], damaged: Callable[[Path], Any]) -> Any:
    """The sample model with MTP in float32, exported, to be damaged."""
    return damaged(exported(SAMPLE))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.vocab_size", 321),
        ("model.context_length", 1024),
        ("search.max_length", 1024),
        ("model.decoder.filename", "mtp.onnx"),
        ("model.decoder.hidden_size", 128),
        ("model.decoder.num_attention_heads", 8),
        ("model.decoder.num_hidden_layers", 4),
        ("model.decoder.num_key_value_heads", 4),
        ("model.decoder.num_key_value_heads", True),
        ("model.decoder.head_size", 64),
        ("model.mtp.filename", None),
        ("model.mtp.head_size", 191),
        ("engine.dynamic_batching.block_size", 16),
        ("engine.dynamic_batching.num_blocks", 63),
        ("engine.dynamic_batching.max_batch_size", 5),
        ("engine.dynamic_batching.prefix_caching", True),
    ],
)
def test_a_key_of_genai_config_that_contradicts_the_folder_is_named(
    copy: Any, key: str, value: object
) -> None:
    copy.edit("genai_config.json", key, value)
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("genai-config", "genai_config.json")
    said = "missing" if value is None else repr(value)
    assert finding.message.startswith(f"{key} is {said}; ")


def test_a_genai_config_that_may_load_code_is_an_error(copy: Any) -> None:
    copy.edit("genai_config.json", "model.decoder.session_options.custom_ops_library", "/evil.so")
    (finding,) = copy.findings()
    assert (finding.code, finding.where, finding.level) == (
        "genai-code",
        "genai_config.json",
        "error",
    )


@pytest.mark.parametrize("ends", [[1, 320], -1, [True], "1"])
def test_an_end_that_is_no_token_is_named(copy: Any, ends: object) -> None:
    copy.edit("genai_config.json", "model.eos_token_id", ends)
    (finding,) = copy.findings()
    assert "is not a token of the vocabulary" in finding.message


def test_a_genai_config_that_is_not_json_is_named(copy: Any) -> None:
    copy.put("genai_config.json", b"{")
    assert copy.faults() == [("config", "genai_config.json")]


def test_a_genai_config_that_was_never_written_is_named(copy: Any) -> None:
    (copy.path / "genai_config.json").unlink()
    del copy.table["files"]["genai_config.json"]
    assert copy.faults() == [("genai-config", "genai_config.json")]


# ------------------------------------------------------------------------------------- config.json


def test_a_config_of_another_kind_of_model_is_named(copy: Any) -> None:
    copy.edit("config.json", "model_type", "deepseek_v2")
    assert copy.faults() == [("config", "config.json")]


def test_a_config_that_is_not_read_is_named(copy: Any) -> None:
    copy.edit("config.json", "model_type", "bert")
    (finding,) = copy.findings()
    assert (finding.code, finding.where) == ("config", "config.json")
    assert "model_type 'bert' is not supported" in finding.message


def test_a_config_that_is_gone_is_named(copy: Any) -> None:
    (copy.path / "config.json").unlink()
    assert copy.faults() == [("file-missing", "config.json"), ("config", "config.json")]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("moe_intermediate_size", 48, "mlp.experts.gate_proj.weight"),
        ("n_routed_experts", 32, "mlp.experts.map"),
        ("v_head_dim", 64, "self_attn.w_v"),
        ("kv_lora_rank", 64, "self_attn.w_k"),
        ("vocab_size", 384, "lm_head.weight"),
        ("intermediate_size", 512, "mlp.gate_proj.weight"),
    ],
)
def test_weights_that_a_config_gives_another_shape_are_named(
    copy: Any, key: str, value: int, fault: str
) -> None:
    copy.edit("config.json", key, value)
    export = require_export(copy.path)
    wrong = [f.where for f in check_model(copy.path, export) if f.code == "weight-shape"]
    assert any(where.endswith(fault) for where in wrong)


def test_a_layer_more_and_a_layer_less_are_named(copy: Any) -> None:
    export = require_export(copy.path)
    copy.edit("config.json", "num_hidden_layers", 6)
    codes = [finding.code for finding in check_model(copy.path, export)]
    assert "weight-missing" in codes
    copy.edit("config.json", "num_hidden_layers", 2)
    codes = [finding.code for finding in check_model(copy.path, export)]
    assert "weight-unknown" in codes


def test_a_router_in_half_precision_is_named(copy: Any) -> None:
    weight = copy.weight("model.layers.1.mlp.gate.weight")
    weight["dtype"], weight["nbytes"] = "F16", weight["nbytes"] // 2
    messages = {f.where: f.message for f in copy.findings() if f.code == "weight-shape"}
    assert messages == {
        f"model.data: {weight['name']}": "is F16 [16, 256]; config.json makes it F32 [16, 256]"
    }


# ---------------------------------------------------------------------------------- pool and ranks


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_blocks", 63, "num_blocks is 63; its rows at their longest take 64"),
        ("token_bytes", 4607, "token_bytes is 4607; 6 caches take 4608"),
        ("context_length", 513, "context_length is 513; the model has 512 positions"),
        ("page_size", 32, "its caches are not 4 of pages [32, 1, 192]"),
    ],
)
def test_a_pool_that_does_not_hold_its_rows_is_named(
    copy: Any, key: str, value: int, message: str
) -> None:
    copy.table["pool"][key] = value
    assert message in [f.message for f in copy.findings() if f.code == "pool"]


@pytest.mark.parametrize(("layers", "caches"), [(1, 1), (4, 2), (27, 14), (61, 31)])
def test_a_layer_without_a_partner_takes_a_pair_of_its_own(layers: int, caches: int) -> None:
    config = json.loads((SAMPLE / "config.json").read_text())
    model = read_model(config | {"num_hidden_layers": layers})
    assert pairs_of(model.num_hidden_layers) == caches


def test_a_folder_without_a_pool_is_named(copy: Any) -> None:
    copy.table["pool"] = None
    assert ("pool", "export.json") in copy.faults()


def test_a_vocabulary_that_the_logits_do_not_have_is_named(copy: Any) -> None:
    copy.table["graphs"][0]["outputs"][0]["shape"][1] = "319"
    assert copy.faults() == [("vocabulary", "model.onnx")]


def test_mtp_that_is_said_and_not_there_is_named(
    exported: Callable[..., Path], damaged: Callable[[Path], Any]
) -> None:
    copy = damaged(exported(SAMPLE, mtp=False, ranks=Ranks(tp=2)))
    copy.table["has_mtp"] = True
    assert ("ranks", "rank1/mtp.onnx") in copy.faults()


def test_mtp_that_is_there_and_not_said_is_named(copy: Any) -> None:
    copy.table["has_mtp"] = False
    faults = copy.faults()
    assert ("ranks", "mtp.onnx") in faults
    assert ("weight-unknown", "model.data: model.layers.4.input_layernorm.weight") in faults


def test_a_rank_that_is_said_and_not_there_is_named(
    exported: Callable[..., Path], damaged: Callable[[Path], Any]
) -> None:
    copy = damaged(exported(SAMPLE, ranks=Ranks(ep=2), expert_inputs=True))
    copy.table["ep"] = 4
    faults = copy.faults()
    assert ("ranks", "rank3/model.data") in faults
    assert ("ranks", "rank2/experts.safetensors") in faults


def test_codes_without_their_scales_are_named(
    exported: Callable[..., Path], damaged: Callable[[Path], Any], sample_fp8: Path
) -> None:
    copy = damaged(exported(sample_fp8))
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    copy.table["weights"]["model.data"].remove(copy.weight(name))
    assert ("weight-missing", f"model.data: {name}") in copy.faults()
