from pathlib import Path
from typing import Any

import pytest
import torch

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.errors import DstoolsError
from dstools_converters.export.graph import Form
from dstools_converters.export.ranges import Piece
from dstools_converters.export.ranks import Ranks
from dstools_converters.export.sources import require_same, sources
from dstools_converters.runtime.weights import coded_names

SAMPLE = Path(__file__).parents[2] / "data" / "sample-v3"


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    return require_sound(open_checkpoint(SAMPLE))


def form(dtype: torch.dtype = torch.bfloat16, **options: Any) -> Form:
    return Form(dtype, 64, 64, **options)


def test_experts_of_a_layer_are_one_tensor_in_their_order(inventory: Inventory) -> None:
    source = sources(inventory, form(), 0)["model.layers.1.mlp.experts.gate_proj.weight"]
    assert (source.shape, source.dtype, source.is_copy) == ((16, 40, 256), "BF16", True)
    names = [piece.info.name for piece in source.pieces]
    assert names == [f"model.layers.1.mlp.experts.{e}.gate_proj.weight" for e in range(16)]


def test_the_halves_of_kv_b_proj_are_rows_of_each_head(inventory: Inventory) -> None:
    known = sources(inventory, form(), 0)
    info = inventory.tensors["model.layers.0.self_attn.kv_b_proj.weight"]
    keys = [Piece(info, (64 * head, 64 * head + 32), (0, 128)) for head in range(4)]
    values = [Piece(info, (64 * head + 32, 64 * head + 64), (0, 128)) for head in range(4)]
    assert list(known["model.layers.0.self_attn.w_k"].pieces) == keys
    assert list(known["model.layers.0.self_attn.w_v"].pieces) == values
    assert known["model.layers.0.self_attn.w_k"].shape == (4, 32, 128)


def test_the_router_is_float32_and_another_dtype_is_converted(inventory: Inventory) -> None:
    known = sources(inventory, form(torch.float16), 0)
    router = known["model.layers.1.mlp.gate.weight"]
    assert (router.dtype, router.is_copy) == ("F32", False)
    bias = known["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert (bias.dtype, bias.is_copy) == ("F32", True)
    assert (known["lm_head.weight"].dtype, known["lm_head.weight"].is_copy) == ("F16", False)


def test_codes_and_their_scales_stay(quantized: Any) -> None:
    fp8 = require_sound(open_checkpoint(quantized(SAMPLE)))
    known = sources(fp8, form(codes=coded_names(fp8)), 0)
    codes = known["model.layers.1.mlp.experts.down_proj.weight"]
    scales = known["model.layers.1.mlp.experts.down_proj.weight_scale_inv"]
    assert (codes.shape, codes.dtype, codes.is_copy) == ((16, 256, 40), "F8_E4M3", True)
    assert (scales.shape, scales.dtype, scales.is_copy) == ((16, 2, 1), "F32", True)
    assert known["model.layers.0.self_attn.w_k"].dtype == "BF16"  # absorbed, so dequantized


def test_a_rank_has_its_columns_and_its_experts(inventory: Inventory) -> None:
    known = sources(inventory, form(ranks=Ranks(tp=2, ep=2)), 1)
    assert known["model.layers.0.self_attn.o_proj.weight"].pieces[0].columns == (64, 128)
    assert known["model.layers.0.self_attn.w_v"].shape == (2, 32, 128)
    experts = known["model.layers.1.mlp.experts.up_proj.weight"]
    assert experts.shape == (8, 40, 256)
    assert experts.pieces[0].info.name == "model.layers.1.mlp.experts.8.up_proj.weight"
    assert known["model.layers.1.mlp.shared_experts.up_proj.weight"].pieces[0].rows == (20, 40)


def test_every_weight_of_the_model_has_a_source_once(inventory: Inventory) -> None:
    pieces = [piece for source in sources(inventory, form(), 0).values() for piece in source.pieces]
    numbers = sum((p.rows[1] - p.rows[0]) * (p.columns[1] - p.columns[0]) for p in pieces)
    shared = {"mtp_embed_tokens", "shared_head"}  # copies that an MTP layer may have
    parsed = inventory.names.items()
    used = [name for name, parts in parsed if parts and parts.role not in shared]
    assert numbers == sum(inventory.tensors[name].numel for name in used)


def test_a_graph_that_disagrees_is_refused(inventory: Inventory) -> None:
    source = sources(inventory, form(), 0)["lm_head.weight"]
    require_same("lm_head.weight", source, (320, 256), "BF16")
    with pytest.raises(DstoolsError, match=r"lm_head.weight: the graph has F32 \[320, 256\]"):
        require_same("lm_head.weight", source, (320, 256), "F32")
