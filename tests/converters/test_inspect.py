"""The figures of a checkpoint, against the published ones and against sums worked by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import require_sound
from dstools_converters.inspect import Report, inspect
from dstools_converters.plan.plan import plan_quantize
from dstools_converters.plan.recipe import Recipe

Checkpoint = Callable[..., Path]


def report(folder: Path) -> Report:
    return inspect(require_sound(open_checkpoint(folder)))


@pytest.fixture(scope="module")
def v3(checkpoint: Checkpoint) -> Report:
    return report(checkpoint("v3-headers"))


def test_v3_has_671_billion_parameters_and_38_billion_active(v3: Report) -> None:
    assert v3.parameters == 671_026_419_200
    # of a token's way, by hand: norms, MLA, three dense MLPs, router and 8 + 1 experts in 58 layers
    hidden = 7168
    mla = hidden * (1536 + 576 + 128 * 128) + 1536 * 128 * 192 + 512 * 128 * 256 + 1536 + 512
    layers = 61 * (mla + 2 * hidden) + 3 * 3 * 18432 * hidden + 58 * 9 * 3 * 2048 * hidden
    layers += 58 * (256 * hidden + 256) + hidden
    assert layers == 35_698_939_392
    embedding = 129280 * hidden
    assert v3.parameters_active == layers + 2 * embedding == 37_552_297_472
    # eh_proj, its norms, and another embedding and head beside an MoE layer of 257 experts
    expert, router = 3 * 2048 * hidden, 256 * hidden + 256
    mtp = mla + 2 * hidden + 257 * expert + router + 2 * hidden**2 + 3 * hidden + 2 * embedding
    assert v3.parameters_mtp == mtp == 13_463_426_304


def test_v3_s_layers_experts_and_files(v3: Report) -> None:
    assert (v3.layers_dense, v3.layers_moe, v3.layers_mtp) == (3, 58, 1)
    assert v3.experts == "256 routed, 8 active, 1 shared"
    assert v3.attention == (
        "MLA, 128 heads of 128 + 64 rope, values 128, latent 512, query rank 1536"
    )
    assert v3.quantization == "native FP8, blocks of 128x128, float32 scales"
    assert (v3.shards, v3.tensors, v3.model_type) == (163, 91_991, "deepseek_v3")
    assert v3.unknown_tensors == []


def test_v3_s_cache_is_71_times_smaller_than_multi_head(v3: Report) -> None:
    assert v3.cache_bytes_per_token == 61 * (512 + 64) * 2 == 70_272
    assert v3.cache_bytes_per_token_mha == 61 * 128 * (192 + 128) * 2 == 4_997_120


def test_v32_caches_the_indexer_s_keys_too(checkpoint: Checkpoint) -> None:
    found = report(checkpoint("v32-headers"))
    assert found.cache_bytes_per_token == 61 * (512 + 64 + 128) * 2
    assert found.attention.endswith("query rank 1536, indexer 64 x 128")
    assert found.quantization == "native FP8, blocks of 128x128, ue8m0 scales"
    # wq_b [64 x 128, 1536], wk [128, 7168], weights_proj [64, 7168], k_norm's weight and bias [128]
    indexer = 64 * 128 * 1536 + 128 * 7168 + 64 * 7168 + 2 * 128
    assert found.parameters == 671_026_419_200 + 61 * indexer
    assert found.parameters_active == 37_552_297_472 + 61 * indexer


DENSE = {  # by hand: hidden 256, intermediate 640, 4 heads, 2 key-value heads, 3 layers, 1024 rows
    "tiny-llama": (
        2 * 1024 * 256 + 256 + 3 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 640 * 256 + 2 * 256),
        "grouped-query, 4 heads of 64, 2 kv",
        64,
    ),
    "tiny-qwen2": (  # tied, with biases of q, k and v
        1024 * 256 + 256 + 3 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 640 * 256 + 2 * 256 + 512),
        "grouped-query, 4 heads of 64, 2 kv",
        64,
    ),
    "tiny-qwen3": (  # heads of 128, with norms of q and k
        2 * 1024 * 256 + 256 + 3 * (2 * 512 * 256 + 2 * 256 * 256 + 3 * 640 * 256 + 2 * 256 + 256),
        "grouped-query, 4 heads of 128, 2 kv",
        128,
    ),
}


@pytest.mark.parametrize("kind", DENSE)
def test_of_a_dense_model_every_parameter_is_active(kind: str, checkpoint: Checkpoint) -> None:
    found = report(checkpoint(kind))
    parameters, attention, head_dim = DENSE[kind]
    assert (found.parameters, found.parameters_active, found.parameters_mtp) == (
        parameters,
        parameters,
        0,
    )
    assert (found.layers_dense, found.layers_moe, found.layers_mtp, found.experts) == (3, 0, 0, "")
    assert found.attention == attention
    assert found.cache_bytes_per_token == 3 * 2 * 2 * head_dim * 2  # layers, k and v, heads, BF16
    assert found.cache_bytes_per_token_mha == 2 * found.cache_bytes_per_token
    assert found.quantization == "none"


@pytest.mark.parametrize("kind", ["tiny", "tiny-v2", "tiny-v2-lite", "tiny-v32"])
def test_fp8_has_the_parameters_of_its_bf16_twin(kind: str, checkpoint: Checkpoint) -> None:
    plain, fp8 = report(checkpoint(kind)), report(checkpoint(kind, fp8="float32"))
    names = ("parameters", "parameters_active", "parameters_mtp", "cache_bytes_per_token")
    assert [getattr(plain, n) for n in names] == [getattr(fp8, n) for n in names]
    # the other way round: what quantize would make of the one is the other
    assert plain.quantized_kept == fp8.quantized_kept
    assert plain.quantized_bytes == fp8.quantized_bytes == fp8.bytes
    kept = sum(fp8.quantized_kept.values())
    assert kept == sum(n for role, n in plain.bytes_by_role.items() if role in plain.quantized_kept)


@pytest.mark.parametrize(
    "options", [{}, {"fp8": "ue8m0"}, {"fp8": "float32", "scales_apart": True}]
)
def test_bytes_add_up_however_they_are_counted(
    options: dict[str, Any], checkpoint: Checkpoint
) -> None:
    folder = checkpoint("tiny", **options)
    found = report(folder)
    inventory = require_sound(open_checkpoint(folder))
    total = sum(info.nbytes for info in inventory.tensors.values())
    assert found.bytes == total
    for counted in (found.bytes_by_dtype, found.bytes_by_role):
        assert sum(counted.values()) == total
        assert list(counted.values()) == sorted(counted.values(), reverse=True)
    plan = plan_quantize(inventory, Recipe(), "native", None)
    assert found.quantized_bytes == plan.index()["metadata"]["total_size"]
    assert "o_proj" not in found.quantized_kept
    # the router of 2 MoE layers and the MTP layer [8, 256] and its bias [8] in F32
    assert found.quantized_kept["router"] == 3 * 8 * 256 * 2
    assert found.quantized_kept["e_score_correction_bias"] == 3 * 8 * 4


def test_unknown_tensors_are_listed_and_counted_as_such(
    tiny: Path, headers: Any, sparse: Any
) -> None:
    config, shards = headers(tiny)
    shards[min(shards)]["vision.weight"] = ("U8", [5])
    found = report(sparse(config, shards))
    assert found.unknown_tensors == ["vision.weight"]
    assert found.bytes_by_role["unknown"] == found.quantized_kept["unknown"] == 5
    assert found.parameters == report(tiny).parameters + 5
