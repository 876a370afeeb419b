"""Shapes that engines refuse or misread, from headers alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.verify.engines import Engine, check_engine

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
    routed = "model.layers.3.mlp.experts.0.up_proj.weight"
    if engine == "vllm":  # makes blocks of 64 of the routed experts' blocks
        assert not any(".experts." in name for name in found)
        return
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
    assert found[routed].endswith(f"(and {256 * 59 - 1} more like it)")


def test_v2_lite_is_refused_on_one_gpu_for_its_gate(fp8: Callable[..., Inventory]) -> None:
    # 10944 = 85.5 blocks, and up_proj follows in the same matrix; up_proj itself is the last
    found = shapes(fp8(V2_LITE), "vllm", 1)
    assert list(found) == ["model.layers.0.mlp.gate_proj.weight"]
    assert "its 10944 rows do not end on a block of 128, and another weight follows it" in str(
        found
    )
    keep = 'rule = [{ role = ["dense_gate", "dense_up"], scheme = "keep" }]'
    assert keep in next(check_engine(fp8(V2_LITE), "vllm", 1)).hint


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


@pytest.mark.parametrize(
    ("config", "tp", "block"),
    [
        # deepseek-ai/DeepSeek-V2, config.json: 1536 rows; 8 x 192 = 64 x 3
        ({"moe_intermediate_size": 1536, "hidden_size": 5120}, 8, 64),
        ({"moe_intermediate_size": 384}, 2, 64),  # seen: 192 rows a rank
        ({"moe_intermediate_size": 1408}, 2, 64),  # V2-Lite: 704
        ({"moe_intermediate_size": 1408}, 4, 32),  # 352
        ({"moe_intermediate_size": 384, "hidden_size": 2080}, 2, 32),  # 2080 = 65 x 32
        ({"moe_intermediate_size": 1408}, 8, 0),  # 176 = 16 x 11
        ({"moe_intermediate_size": 384, "hidden_size": 2064}, 2, 0),  # 2064 = 129 x 16
        ({"moe_intermediate_size": 320}, 2, 0),  # seen of 160 and 192: scales of part of a block
        ({"moe_intermediate_size": 512}, 2, None),  # whole blocks
    ],
)
def test_vllm_divides_the_blocks_of_native_routed_experts(
    config: dict[str, int], tp: int, block: int | None, fp8: Callable[..., Inventory]
) -> None:
    model = V2_LITE | {"intermediate_size": 16384, "num_attention_heads": 64} | config
    routed = "model.layers.1.mlp.experts.0"
    notes = [f for f in check_engine(fp8(model), "vllm", tp) if f.code == "engine-refined"]
    assert [f.level for f in notes] == ["note"] * bool(block)
    assert all(f"need blocks of {block}," in f.message for f in notes)
    assert any(routed in name for name in shapes(fp8(model), "vllm", tp)) == (block == 0)
    if block:  # neither compressed-tensors nor another engine does
        other = fp8(model, format="compressed-tensors")
        assert any(routed in name for name in shapes(other, "vllm", tp))
        assert any(routed in name for name in shapes(fp8(model), "sglang", tp))
    kept = fp8(model, keep=lambda name: name.role.startswith("routed"))
    assert "engine-refined" not in [f.code for f in check_engine(kept, "vllm", tp)]


@pytest.mark.parametrize(
    ("model", "tp", "role", "vllm", "sglang"),
    [
        (SMOLLM2, 1, "self_attn.q_proj", "silently", "refuses"),
        (SMOLLM2, 1, "self_attn.k_proj", "silently", "refuses"),
        (V2_LITE, 1, "mlp.gate_proj", "silently", "refuses"),
        (V2_LITE | {"q_lora_rank": 96}, 1, "self_attn.q_a_proj", "silently", "silently"),
        (V2_LITE | {"moe_intermediate_size": 704}, 1, "mlp.experts.0.gate_proj",
         "refuses", "refuses"),
        (V2_LITE | {"moe_intermediate_size": 160, "n_shared_experts": 1}, 1,
         "mlp.shared_experts.gate_proj", "silently", "refuses"),
        # meta-llama/Llama-3.2-1B: 8 key-value heads of 64 are half a block each on 8 GPUs
        ({"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64,
          "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1,
          "vocab_size": 1024}, 8, "self_attn.v_proj", "silently", "refuses"),
        (V2_LITE, 16, "self_attn.q_proj", "refuses", "refuses"),  # 192 rows, of no merged matrix
        (V2_LITE, 16, "mlp.down_proj", "refuses", "refuses"),  # columns
    ],
)  # fmt: skip
def test_ragged_parts_of_native_merged_matrices_are_misread_silently_and_others_refused(
    model: dict[str, Any], tp: int, role: str, vllm: str, sglang: str, fp8: Callable[..., Inventory]
) -> None:
    wanted: dict[Engine, str] = {"vllm": vllm, "sglang": sglang, "trtllm": "refuses"}
    for engine, word in wanted.items():
        (message,) = [m for n, m in shapes(fp8(model), engine, tp).items() if f".{role}." in n]
        assert word in message
        assert ("silently" in message) == (word == "silently")
    (refused,) = [
        message
        for name, message in shapes(fp8(model, format="compressed-tensors"), "vllm", tp).items()
        if f".{role}." in name
    ]
    assert refused.startswith("vllm refuses it: ")


def test_the_last_of_a_merged_matrix_may_be_ragged(fp8: Callable[..., Inventory]) -> None:
    config = SMOLLM2 | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256}
    config |= {"head_dim": 96}  # q 384 = 3 blocks, k and v 192
    assert list(shapes(fp8(config), "vllm", 1)) == ["model.layers.0.self_attn.k_proj.weight"]


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_a_kept_role_is_not_cut_into_blocks(engine: Engine, fp8: Callable[..., Inventory]) -> None:
    kept = fp8(SMOLLM2, keep=lambda name: name.role in ("q_proj", "k_proj", "v_proj"))
    assert list(check_engine(kept, engine, 1)) == []
