"""Rules of engines: what they refuse or misread is found from headers alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import Finding
from dstools_converters.families.names import TensorName
from dstools_converters.verify.engines import ENGINES, Engine, check_engine

Sparse = Callable[..., Path]
V2_LITE: dict[str, Any] = {  # deepseek-ai/DeepSeek-V2-Lite, config.json; layers and experts cut
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "kv_lora_rank": 512, "q_lora_rank": None, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "num_attention_heads": 16,
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "n_shared_experts": 2, "num_experts_per_tok": 2, "vocab_size": 1024,
}  # fmt: skip
QWEN3: dict[str, Any] = {  # Qwen/Qwen3-32B, config.json; layers cut
    "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "head_dim": 128,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def v3(checkpoint: Callable[..., Path]) -> Inventory:
    return require_sound(open_checkpoint(checkpoint("v3-headers")))


@pytest.mark.parametrize(("tp", "is_refused"), [(3, True), (128, False), (256, True)])
def test_heads_that_cannot_be_shared_out_are_refused(
    v3: Inventory, tp: int, is_refused: bool
) -> None:
    found = [f for f in check_engine(v3, "vllm", tp) if f.code == "engine-heads"]
    assert [f.message for f in found] == is_refused * [
        f"128 attention heads cannot be shared out over {tp} GPUs"
    ]


def test_key_value_heads_and_gpus_must_divide_one_another(fp8: Callable[..., Inventory]) -> None:
    config = QWEN3 | {"num_attention_heads": 72, "num_key_value_heads": 6}
    found = [f.message for f in check_engine(fp8(config), "sglang", 4) if f.code == "engine-heads"]
    assert found == ["6 key-value heads and 4 GPUs do not divide one another"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("dtype", ["F8_E8M0", "BF16"])
def test_scales_that_are_not_float32_are_a_warning(
    fp8: Callable[..., Inventory], engine: Engine, dtype: str
) -> None:
    found = list(check_engine(fp8(QWEN3, dtype, scale_fmt="ue8m0"), engine, 1))
    assert [(f.level, f.code) for f in found] == [("warning", "engine-scale-dtype")]
    assert f"is {dtype}; {engine} allocates float32 scales" in found[0].message
    assert found[0].where.endswith("_proj.weight_scale_inv")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_static_activations_are_refused(fp8: Callable[..., Inventory], engine: Engine) -> None:
    found = list(check_engine(fp8(QWEN3, activation_scheme="static"), engine, 1))
    assert [(f.level, f.code, f.where) for f in found] == [
        ("error", "engine-activations", "config.json")
    ]


def test_tensorrt_llm_cuts_kv_b_by_head(fp8: Callable[..., Inventory]) -> None:
    # 128 + 128 rows a head are two blocks; 64 + 128 are one and a half (NVIDIA/TensorRT-LLM#18659)
    aligned = V2_LITE | {"intermediate_size": 11008}
    assert list(check_engine(fp8(aligned), "trtllm", 1)) == []
    (found,) = check_engine(fp8(aligned | {"qk_nope_head_dim": 64}), "trtllm", 1)
    assert (found.level, found.code) == ("warning", "engine-kv-b")
    assert "192 rows a head" in found.message


def test_tensorrt_llm_reads_blocks_of_128_in_native_format_alone(
    fp8: Callable[..., Inventory], sparse: Sparse
) -> None:
    inventory = fp8(QWEN3)
    assert inventory.scheme is not None
    for change in ({"format": "compressed-tensors"}, {"block_size": (64, 64)}):
        other = replace(inventory, scheme=replace(inventory.scheme, **change))  # type: ignore[arg-type]
        found = list(check_engine(other, "trtllm", 1))
        assert [(f.level, f.code) for f in found] == [("error", "engine-format")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_that_is_not_quantized_has_only_its_heads_checked(
    engine: Engine, checkpoint: Callable[..., Path]
) -> None:
    inventory = require_sound(open_checkpoint(checkpoint("tiny-qwen3")))
    assert list(check_engine(inventory, engine, 2)) == [
        Finding.note("engine", "config.json", "is not quantized: no FP8 rules apply")
    ]
    assert [f.code for f in check_engine(inventory, engine, 3)] == [
        *("engine", "engine-heads", "engine-heads")
    ]


# ------------------------------------------------------------------- what was seen in real engines


def verdict(inventory: Inventory, engine: Engine, tp: int = 1) -> str:
    """ "right", "refuses", or "silently" wrong: what verify says the engine does."""
    errors = [f.message for f in check_engine(inventory, engine, tp) if f.level == "error"]
    if all("silently" in message for message in errors):
        return "silently" if errors else "right"
    return "refuses"


PADDED = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}  # kv_a 576 rows: ragged, and the last
# model, changes, format; vLLM 0.32, SGLang 0.5.23 and transformers 5.23 on a CPU; None: not run
SEEN: list[tuple[str, dict[str, int], str, str | None, str | None, str | None]] = [
    ("tiny-aligned", PADDED, "native", "right", "right", "refuses"),
    ("tiny-aligned", PADDED, "compressed-tensors", "right", "right", "refuses"),
    ("tiny-aligned", {"moe_intermediate_size": 40}, "native", "refuses", "refuses", "right"),
    ("tiny-aligned", {"moe_intermediate_size": 40}, "compressed-tensors",
     "refuses", "refuses", "refuses"),
    ("tiny-aligned", {}, "native", "right", "right", "right"),
    ("tiny-aligned", {}, "compressed-tensors", "right", "right", "refuses"),
    ("tiny-aligned", {"n_shared_experts": 2}, "native", "right", "right", "right"),
    ("tiny-v2", {}, "native", "right", "right", "right"),
    ("tiny-v2-lite", {}, "native", "right", "right", "right"),
    ("tiny-v2-lite", {}, "compressed-tensors", "right", None, "refuses"),
    ("tiny-aligned", {"intermediate_size": 336}, "native", "silently", "refuses", "silently"),
    ("tiny-aligned", {"intermediate_size": 336}, "compressed-tensors", "refuses", "refuses", None),
    ("tiny-aligned", {"q_lora_rank": 96}, "native", "silently", "silently", "right"),
    ("tiny-aligned", {"q_lora_rank": 96}, "compressed-tensors", "refuses", "silently", None),
    ("tiny-aligned", {"moe_intermediate_size": 160}, "native", None, "refuses", "silently"),
    ("tiny-aligned", {"moe_intermediate_size": 192}, "native", None, "refuses", "silently"),
    ("tiny-llama", {}, "native", "right", "silently", "right"),
    ("tiny-llama", {}, "compressed-tensors", "right", "right", "right"),
    ("tiny-qwen2", {}, "native", "right", "right", "right"),
    ("tiny-qwen2", {}, "compressed-tensors", "right", "right", None),
    ("tiny-qwen3", {}, "native", "right", "right", "right"),
    ("tiny-qwen3", {}, "compressed-tensors", "right", "right", "right"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "format", "vllm", "sglang", "transformers"), SEEN)
def test_the_rules_say_what_engines_were_seen_to_do(
    kind: str,
    changes: dict[str, int],
    format: str,
    vllm: str | None,
    sglang: str | None,
    transformers: str | None,
    fp8: Callable[..., Inventory],
    configs: dict[str, dict[str, Any]],
) -> None:
    inventory = fp8(configs[kind] | changes, format=format)
    seen: dict[Engine, str | None] = {
        "vllm": vllm, "sglang": sglang, "transformers": transformers
    }  # fmt: skip
    for engine, wanted in seen.items():
        assert wanted in (None, verdict(inventory, engine)), engine


@pytest.mark.parametrize(
    ("kind", "changes", "wanted"),
    [
        ("tiny-aligned", {}, "right"),
        ("tiny-v2-lite", {}, "right"),
        ("tiny-qwen3", {}, "right"),
        ("tiny-qwen3", {"num_key_value_heads": 1}, "right"),  # replicated
        ("tiny-llama", {"head_dim": 128, "intermediate_size": 768}, "right"),
        ("tiny-aligned", {"intermediate_size": 384}, "refuses"),  # 192 columns of down_proj
        ("tiny-llama", {"intermediate_size": 640}, "refuses"),  # 320
        ("tiny-aligned", {"qk_nope_head_dim": 64}, "refuses"),  # q_b: 192 rows a head
        # experts and shared of 64: of the experts alone, vLLM would make blocks of 64
        ("tiny-aligned", {"moe_intermediate_size": 128}, "refuses"),
        ("tiny-aligned", {"moe_intermediate_size": 384, "n_shared_experts": 2}, "right"),
    ],
)
def test_the_rules_say_what_vllm_was_seen_to_do_on_two_ranks(
    kind: str,
    changes: dict[str, int],
    wanted: str,
    fp8: Callable[..., Inventory],
    configs: dict[str, dict[str, Any]],
) -> None:
    aligned = {"intermediate_size": 512, "moe_intermediate_size": 256}
    assert verdict(fp8(configs[kind] | aligned | changes), "vllm", 2) == wanted


@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
@pytest.mark.parametrize(
    ("roles", "sglang"),
    [
        (("kv_b_proj",), "right"),
        (("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"), "right"),
        (("routed_gate", "routed_up", "routed_down"), "right"),
        (("dense_gate", "dense_up", "dense_down"), "NaN"),
        (("shared_gate", "shared_up", "shared_down"), "AttributeError"),
    ],
)
def test_sglang_does_not_know_kept_gate_and_up_in_compressed_tensors(
    format: str,
    roles: tuple[str, ...],
    sglang: str,
    fp8: Callable[..., Inventory],
    configs: dict[str, dict[str, Any]],
) -> None:
    kept = fp8(configs["tiny-aligned"], format=format, keep=lambda name: name.role in roles)
    assert verdict(kept, "vllm") == "right"
    errors = [f for f in check_engine(kept, "sglang", 1) if f.level == "error"]
    if format == "native" or sglang == "right":
        assert errors == []
    else:
        (error,) = errors
        assert error.code == "engine-kept"
        assert sglang in error.message
        assert "--format native" in error.hint


def test_sglang_knows_the_merged_name_and_never_loads_an_mtp_layer_with_the_model(
    fp8: Callable[..., Inventory], configs: dict[str, dict[str, Any]]
) -> None:
    def codes(keep: Any, **quantization: Any) -> list[str]:
        kept = fp8(configs["tiny-aligned"], format="compressed-tensors", keep=keep, **quantization)
        return [f.code for f in check_engine(kept, "sglang", 1)]

    def dense(name: TensorName) -> bool:
        return name.role.startswith("dense")

    assert codes(lambda name: name.is_mtp) == []
    assert codes(dense) == ["engine-kept"]
    assert codes(dense, ignore=["model.layers.0.mlp.gate_up_proj"]) == []
    assert codes(dense, ignore=["re:.*mlp.*"]) == []
    assert codes(dense, ignore=["re:.*layers.0.mlp.(gate|up|down)_proj"]) == ["engine-kept"]


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_sglang_loses_the_scales_of_native_llama_alone(
    model_type: str, fp8: Callable[..., Inventory], configs: dict[str, dict[str, Any]]
) -> None:
    found = list(check_engine(fp8(configs["tiny-llama"] | {"model_type": model_type}), "sglang", 1))
    assert [f.code for f in found] == ["engine-scales"] * (model_type == "llama")


@pytest.mark.parametrize(
    ("kind", "make", "engine", "option"),
    [
        ("tiny-llama", "native", "sglang", "compressed-tensors"),
        ("tiny-aligned", "compressed-tensors", "transformers", "native"),
    ],
)
def test_the_other_format_which_the_hint_names_can_be_made_of_the_folder_itself(
    kind: str,
    make: str,
    engine: Engine,
    option: str,
    checkpoint: Callable[..., Path],
    quantized: Callable[..., Path],
    ask: Callable[..., tuple[int, Any]],
) -> None:
    folder = quantized(checkpoint(kind), make)
    code, report = ask(folder, "--engine", engine)
    (error,) = [f for f in report["findings"] if f["level"] == "error"]
    assert code == 3
    assert f"dstools quantize --format {option}" in error["hint"]
    assert ask(quantized(folder, option), "--engine", engine)[0] == 0


@pytest.mark.parametrize(
    ("latent", "rope", "is_known"),
    [(512, 64, True), (256, 64, True), (448, 64, True), (128, 64, False), (512, 128, False)],
)
@pytest.mark.parametrize("is_fp8", [True, False])
def test_vllm_s_mla_takes_three_widths(
    latent: int,
    rope: int,
    is_known: bool,
    is_fp8: bool,
    fp8: Callable[..., Inventory],
    configs: dict[str, dict[str, Any]],
) -> None:
    changes = {"kv_lora_rank": latent, "qk_rope_head_dim": rope, "qk_nope_head_dim": 256 - rope}
    inventory = fp8(configs["tiny-v2-lite"] | changes)
    if not is_fp8:
        inventory = replace(inventory, scheme=None)
    found = [f for f in check_engine(inventory, "vllm", 1) if f.code == "engine-mla"]
    assert [f.level for f in found] == ["warning"] * (not is_known)
    assert all(f"qk_rope_head_dim is {latent + rope};" in f.message for f in found)
    assert "engine-mla" not in [f.code for f in check_engine(inventory, "sglang", 1)]


def test_a_dense_model_has_no_latent(fp8: Callable[..., Inventory]) -> None:
    assert list(check_engine(fp8(QWEN3), "vllm", 1)) == []
