"""Rules of engines: what they refuse or misread is found from headers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES
from dstools_converters.errors import Finding
from dstools_converters.families.shapes import read_model
from dstools_converters.verify.engines import ENGINES, Engine, check_engine

Sparse = Callable[..., Path]
NATIVE = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
          "weight_block_size": [128, 128]}  # fmt: skip
V2_LITE: dict[str, Any] = {  # deepseek-ai/DeepSeek-V2-Lite, config.json; layers and experts cut
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "kv_lora_rank": 512, "q_lora_rank": None, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "num_attention_heads": 16,
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "n_shared_experts": 2, "num_experts_per_tok": 2, "vocab_size": 1024,
}  # fmt: skip
SMOLLM2: dict[str, Any] = {  # HuggingFaceTB/SmolLM2-135M-Instruct, config.json; layers cut
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 2, "vocab_size": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN3: dict[str, Any] = {  # Qwen/Qwen3-32B, config.json; layers cut
    "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "head_dim": 128,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 1024,
}  # fmt: skip


@pytest.fixture
def fp8(sparse: Sparse) -> Callable[..., Inventory]:
    """fp8(config, scale_dtype="F32", **quantization): a model of those dimensions in block FP8."""

    def make(config: dict[str, Any], scale_dtype: str = "F32", **quantization: Any) -> Inventory:
        tensors = {}
        model = read_model(config)
        for name, shape in model.weights():
            is_fp8 = name.role in QUANTIZED_ROLES and name.part == "weight"
            tensors[model.spell(name)] = ("F8_E4M3" if is_fp8 else "BF16", list(shape))
            if is_fp8:
                tensors[f"{model.spelling.module(name)}.weight_scale_inv"] = (
                    scale_dtype,
                    [-(-side // 128) for side in shape],
                )
        config = config | {"quantization_config": NATIVE | quantization}
        return require_sound(open_checkpoint(sparse(config, {"model.safetensors": tensors})))

    return make


@pytest.fixture(scope="module")
def v3(checkpoint: Callable[..., Path]) -> Inventory:
    return require_sound(open_checkpoint(checkpoint("v3-headers")))


def shapes(inventory: Inventory, engine: Engine, tp: int) -> dict[str, str]:
    """{first tensor of a role that is refused for its shape: why}"""
    return {
        f.where.partition(": ")[2]: f.message
        for f in check_engine(inventory, engine, tp)
        if f.code == "engine-shape"
    }


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_v3_runs_on_up_to_16_gpus(v3: Inventory, engine: Engine, tp: int) -> None:
    # 18432 / 16 = 1152 = 9 blocks, 2048 / 16 = 1; q_a 1536 = 12 ends on a block before kv_a 576
    assert list(check_engine(v3, engine, tp)) == []


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_v3_on_32_gpus_is_refused_for_the_mlps(v3: Inventory, engine: Engine) -> None:
    # 18432 / 32 = 576 = 4.5 blocks: sgl-project/sglang#3345; 2048 / 32 = 64 = half a block
    rows, columns = "rows cut in 32 do not end", "columns cut in 32 do not end"
    found = shapes(v3, engine, 32)
    faults = {name: why.split("its ")[1].split(" on blocks")[0] for name, why in found.items()}
    assert faults == {
        "model.layers.0.mlp.down_proj.weight": f"18432 {columns}",
        "model.layers.0.mlp.gate_proj.weight": f"18432 {rows}",
        "model.layers.0.mlp.up_proj.weight": f"18432 {rows}",
        "model.layers.3.mlp.experts.0.down_proj.weight": f"2048 {columns}",
        "model.layers.3.mlp.experts.0.gate_proj.weight": f"2048 {rows}",
        "model.layers.3.mlp.experts.0.up_proj.weight": f"2048 {rows}",
        "model.layers.3.mlp.shared_experts.down_proj.weight": f"2048 {columns}",
        "model.layers.3.mlp.shared_experts.gate_proj.weight": f"2048 {rows}",
        "model.layers.3.mlp.shared_experts.up_proj.weight": f"2048 {rows}",
    }  # fmt: skip
    assert found["model.layers.0.mlp.down_proj.weight"].endswith("(and 2 more like it)")
    routed = found["model.layers.3.mlp.experts.0.up_proj.weight"]
    assert routed.endswith(f"(and {256 * 59 - 1} more like it)")


@pytest.mark.parametrize(("tp", "is_refused"), [(3, True), (128, False), (256, True)])
def test_heads_that_cannot_be_shared_out_are_refused(
    v3: Inventory, tp: int, is_refused: bool
) -> None:
    found = [f for f in check_engine(v3, "vllm", tp) if f.code == "engine-heads"]
    assert [f.message for f in found] == is_refused * [
        f"128 attention heads cannot be shared out over {tp} GPUs"
    ]


def test_v2_lite_is_refused_on_one_gpu_for_its_gate(fp8: Callable[..., Inventory]) -> None:
    # 10944 = 85.5 blocks, and up_proj follows in the same matrix; up_proj itself is the last
    found = shapes(fp8(V2_LITE), "vllm", 1)
    assert list(found) == ["model.layers.0.mlp.gate_proj.weight"]
    assert "its 10944 rows do not end on a block of 128, and another weight follows it" in str(
        found
    )


def test_a_query_that_runs_alone_may_be_ragged_on_one_gpu(fp8: Callable[..., Inventory]) -> None:
    # V2-Lite's q_proj and kv_a_proj_with_mqa are two matrices: 3 heads of 192 = 4.5 blocks
    config = V2_LITE | {"intermediate_size": 11008, "num_attention_heads": 3}
    assert shapes(fp8(config), "vllm", 1) == {}
    assert "model.layers.0.self_attn.q_proj.weight" in shapes(fp8(config), "vllm", 3)


def test_smollm2_is_refused_for_its_query_and_key(fp8: Callable[..., Inventory]) -> None:
    # q 576 = 4.5 blocks, k 192 = 1.5, each before another; v 192 is the last, o [576, 576] alone
    assert list(shapes(fp8(SMOLLM2), "vllm", 1)) == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
    ]


@pytest.mark.parametrize(
    ("tp", "refused"),
    [
        (8, []),  # a key-value head each: 1024 / 8 = 128; 25600 / 8 = 3200 = 25 blocks
        # 25600 / 16 = 1600 = 12.5; 8 heads over 16 GPUs: each holds one of 128 rows, a block
        (16, ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    ],
)
def test_key_value_heads_are_repeated_where_gpus_are_more(
    fp8: Callable[..., Inventory], tp: int, refused: list[str]
) -> None:
    assert list(shapes(fp8(QWEN3), "vllm", tp)) == [f"model.layers.0.{n}.weight" for n in refused]
    assert "engine-heads" not in [f.code for f in check_engine(fp8(QWEN3), "vllm", tp)]


def test_key_value_heads_and_gpus_must_divide_one_another(fp8: Callable[..., Inventory]) -> None:
    config = QWEN3 | {"num_attention_heads": 72, "num_key_value_heads": 6}
    found = [f.message for f in check_engine(fp8(config), "sglang", 4) if f.code == "engine-heads"]
    assert found == ["6 key-value heads and 4 GPUs do not divide one another"]


def test_transformers_misreads_ragged_shapes(v3: Inventory, fp8: Callable[..., Inventory]) -> None:
    # of V3, kv_a_proj_with_mqa alone is ragged: 576 = 4.5 blocks
    found = list(check_engine(v3, "transformers", 1))
    assert [(f.level, f.code) for f in found] == [("error", "engine-shape"), ("note", "engine-mtp")]
    assert found[0].where.endswith(": model.layers.0.self_attn.kv_a_proj_with_mqa.weight")
    assert "misreads [576, 7168] (and 61 more like it) silently" in found[0].message
    assert list(check_engine(fp8(QWEN3), "transformers", 1)) == []
    # SmolLM2 is ragged in each: 576 rows or columns
    assert len(shapes(fp8(SMOLLM2), "transformers", 1)) == 7


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
    from dataclasses import replace

    inventory = fp8(QWEN3)
    assert inventory.scheme is not None
    for change in ({"format": "compressed-tensors"}, {"block_size": (64, 64)}):
        other = replace(inventory, scheme=replace(inventory.scheme, **change))  # type: ignore[arg-type]
        found = list(check_engine(other, "trtllm", 1))
        assert [(f.level, f.code) for f in found] == [("error", "engine-format")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_that_is_not_quantized_has_only_its_heads_checked(
    engine: Engine, tiny: Path
) -> None:
    inventory = require_sound(open_checkpoint(tiny))
    assert list(check_engine(inventory, engine, 2)) == [
        Finding.note("engine", "config.json", f"is not quantized; {engine} has no FP8 rules")
    ]
    assert [f.code for f in check_engine(inventory, engine, 3)] == ["engine", "engine-heads"]


@pytest.mark.parametrize(
    ("engine", "tp", "where"),
    [
        ("vllm", 1, "kv_a_proj_with_mqa"),  # good: the last of its merged matrix may be ragged
        ("vllm", 1, "q_a_proj"),  # 96 rows, and kv_a follows
        ("vllm", 2, "o_proj"),  # 128 columns cut in two
        ("sglang", 2, "q_b_proj"),  # 192 rows cut in two
        ("transformers", 1, "q_b_proj"),  # read in blocks of 96
    ],
)
def test_ragged_shapes_are_caught_by_the_engine_s_rules(
    engine: str,
    tp: int,
    where: str,
    tiny_fp8: Path,
    checkpoint: Callable[..., Path],
    ask: Callable[..., tuple[int, Any]],
) -> None:
    code, report = ask(tiny_fp8, "--engine", engine, "--tp", str(tp))
    refused = [f["where"] for f in report["findings"] if f["code"] == "engine-shape"]
    assert code == 3
    assert any(f".{where}." in at for at in refused) == (where != "kv_a_proj_with_mqa")
    aligned = checkpoint("tiny-aligned", fp8="float32")
    assert ask(aligned, "--engine", engine)[0] == 0
