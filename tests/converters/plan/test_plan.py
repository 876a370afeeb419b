"""The plan: every tensor has one action, every byte one place; the impossible is refused."""

import json
import math
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.header import ITEM_BITS
from dstools_converters.checkpoint.inventory import Inventory, require_sound
from dstools_converters.checkpoint.parameters import parameters
from dstools_converters.errors import DstoolsError
from dstools_converters.plan.plan import Plan, plan_dequantize, plan_quantize
from dstools_converters.plan.recipe import Recipe, Rule

Checkpoint = Callable[..., Path]
Config = dict[str, Any]
Shards = dict[str, dict[str, tuple[str, list[int]]]]
Headers = Callable[[Path], tuple[Config, Shards]]
Sparse = Callable[[Config, Shards], Path]

KINDS = ["tiny", "tiny-aligned", "tiny-v2", "tiny-v2-lite", "tiny-v32"]
KINDS += ["tiny-llama", "tiny-qwen2", "tiny-qwen3"]
NATIVE = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
          "weight_block_size": [128, 128]}  # fmt: skip
OWN = Recipe()


def opened(folder: Path) -> Inventory:
    return require_sound(open_checkpoint(folder))


def native(folder: Path, *rules: Rule) -> Plan:
    return plan_quantize(opened(folder), Recipe(rules), "native", None)


def actions(plan: Plan) -> dict[str, str]:
    return {t.source.name: t.action for shard in plan.shards for t in shard.tensors}


def outputs(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        o.name: (o.dtype, o.shape) for s in plan.shards for t in s.tensors for o in t.target.parts
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_quantized_is_what_deepseek_quantizes(kind: str, checkpoint: Checkpoint) -> None:
    # the FP8 twin was made by other code, by the releases' own lists
    source, twin = opened(checkpoint(kind)), opened(checkpoint(kind, fp8="float32"))
    plan = plan_quantize(source, OWN, "native", None)
    assert outputs(plan) == {n: (i.dtype, i.shape) for n, i in twin.tensors.items()}
    assert actions(plan) == {
        name: "quantize" if name in twin.quantized() else "copy" for name in source.tensors
    }
    assert set(plan.counts) == {"quantize", "copy"}
    assert plan.bytes_in == sum(info.nbytes for info in source.tensors.values())
    assert plan.config == source.checkpoint.config | {"quantization_config": NATIVE}


def plans(checkpoint: Checkpoint) -> dict[str, Plan]:
    tiny, fp8 = opened(checkpoint("tiny")), opened(checkpoint("tiny", fp8="float32"))
    apart = opened(checkpoint("tiny", fp8="ue8m0", scales_apart=True))
    return {
        "native": plan_quantize(tiny, OWN, "native", "ue8m0"),
        "compressed-tensors": plan_quantize(tiny, OWN, "compressed-tensors", None),
        "copy": plan_quantize(fp8, OWN, "native", None),
        "requantize": plan_quantize(fp8, OWN, "native", "ue8m0"),
        "restore": plan_quantize(tiny, OWN, "native", None, fp8),
        "dequantize": plan_dequantize(fp8),
        "apart": plan_quantize(apart, OWN, "native", None),
        "qwen2": plan_quantize(opened(checkpoint("tiny-qwen2")), OWN, "native", None),
        "v32": plan_quantize(opened(checkpoint("tiny-v32")), OWN, "native", None),
    }


def test_every_byte_of_the_output_has_one_place_and_the_headers_say_which(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from safetensors import safe_open

    for label, plan in plans(checkpoint).items():
        seen = Counter(t.source.name for s in plan.shards for t in s.tensors)
        assert seen == Counter(info.name for info, _ in plan.inventory.weights()), label
        assert [s.name for s in plan.shards] == sorted(s.name for s in plan.shards)
        total = 0
        for shard in plan.shards:
            assert len(shard.header) % 4096 == 0
            assert struct.unpack("<Q", shard.header[:8])[0] == len(shard.header) - 8
            end = len(shard.header)
            placed = sorted(
                (o for t in shard.tensors for o in t.target.parts), key=lambda o: o.offset
            )
            for output in placed:
                assert output.offset == end
                assert output.offset % (ITEM_BITS[output.dtype] // 8) == 0
                assert output.nbytes * 8 == math.prod(output.shape) * ITEM_BITS[output.dtype]
                end += output.nbytes
                total += output.nbytes
            assert end == shard.nbytes
            for tensor in shard.tensors:
                assert tensor.source.shard == shard.name
                codes = tensor.target.parts[0]
                assert (codes.name, codes.shape) == (tensor.source.name, tensor.source.shape)
                if tensor.action == "copy" and len(tensor.target.parts) == 1:
                    assert codes.dtype == tensor.source.dtype

            path = tmp_path / f"{label}-{shard.name}"
            with path.open("wb") as file:
                file.write(shard.header)
                file.truncate(shard.nbytes)
            with safe_open(path, "np") as file:
                assert file.metadata() == {"format": "pt"}
                assert {
                    n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape())
                    for n in file.offset_keys()
                } == {o.name: (o.dtype, list(o.shape)) for o in placed}
        index = plan.index()
        assert index["metadata"]["total_size"] == total
        assert index["weight_map"] == {
            o.name: s.name for s in plan.shards for t in s.tensors for o in t.target.parts
        }
        assert plan.bytes_out == sum(s.nbytes for s in plan.shards)


def test_an_odd_number_of_bytes_puts_no_other_tensor_out_of_alignment(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny)
    for shard, tensors in shards.items():
        shards[shard] = {f"odd.{shard}": ("U8", [3]), **tensors}
    for shard_plan in native(sparse(config, shards)).shards:
        for output in (o for t in shard_plan.tensors for o in t.target.parts):
            assert output.offset % (ITEM_BITS[output.dtype] // 8) == 0


def test_the_index_keeps_what_else_its_metadata_said(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    folder = sparse(*headers(tiny))
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text()) | {"metadata": {"total_size": 1, "format": "pt"}}
    index.write_text(json.dumps(found))
    plan = native(folder)
    total = sum(o.nbytes for s in plan.shards for t in s.tensors for o in t.target.parts)
    assert plan.index()["metadata"] == {"total_size": total, "format": "pt"}


@pytest.mark.parametrize("wrong", [333312, 1, 0, -1, "8", 0.5, None, True, [1], 10**30])
def test_a_number_of_parameters_is_kept_where_it_is_right(
    wrong: object, tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    folder = sparse(*headers(tiny))
    index = folder / "model.safetensors.index.json"
    right = parameters(require_sound(open_checkpoint(folder)))
    for given, kept in ((right, {"total_parameters": right}), (wrong, {})):
        found = json.loads(index.read_text()) | {"metadata": {"total_parameters": given}}
        index.write_text(json.dumps(found))
        metadata = native(folder).index()["metadata"]
        del metadata["total_size"]
        assert metadata == kept


# ------------------------------------------------------------------------------ FP8 in


@pytest.mark.parametrize("format", ["native", "compressed-tensors"])
@pytest.mark.parametrize(
    ("found", "asked", "action", "written"),
    [
        ("float32", None, "copy", "float32"),
        ("float32", "float32", "copy", "float32"),
        ("float32", "ue8m0", "requantize", "ue8m0"),
        ("ue8m0", None, "copy", "ue8m0"),
        ("ue8m0", "ue8m0", "copy", "ue8m0"),
        ("ue8m0", "float32", "copy", "float32"),  # a power of two is a float32
    ],
)
def test_fp8_passes_through_unless_its_scales_must_be_rounded(
    found: str, asked: Any, action: str, written: str, format: Any, checkpoint: Checkpoint
) -> None:
    source = opened(checkpoint("tiny", fp8=found))
    plan = plan_quantize(source, OWN, format, asked)
    assert plan.scheme is not None
    assert plan.scheme.scale_format == written
    assert {t.action for s in plan.shards for t in s.tensors if t.target.is_quantized} == {action}
    assert {t.source.name for s in plan.shards for t in s.tensors if t.target.is_quantized} == set(
        source.quantized()
    )
    if format == "native":
        wanted = NATIVE | ({"scale_fmt": "ue8m0"} if written == "ue8m0" else {})
        assert plan.config["quantization_config"] == wanted


def test_keys_of_the_source_s_quantization_config_survive_in_the_same_format(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    config["quantization_config"] |= {"kv_cache": "x"}
    source = opened(sparse(config, shards))
    same = plan_quantize(source, OWN, "native", None).config["quantization_config"]
    assert same == config["quantization_config"]
    other = plan_quantize(source, OWN, "compressed-tensors", None).config["quantization_config"]
    assert "kv_cache" not in other
    assert other["quant_method"] == "compressed-tensors"


def test_patterns_of_compressed_tensors_do_not_leak_into_a_native_config(
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-aligned", fp8="float32"))
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "ignore": ["re:.*mlp.gate$", "lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    renamed: Shards = {
        shard: {n.replace("_scale_inv", "_scale"): entry for n, entry in tensors.items()}
        for shard, tensors in shards.items()
    }
    plan = native(sparse(config, renamed))
    assert plan.config["quantization_config"] == NATIVE
    assert plan.counts == {"copy": sum(plan.counts.values())}


@pytest.mark.parametrize("dtype", ["BF16", "F8_E8M0"])
def test_a_scale_of_another_dtype_becomes_f32(
    dtype: str, tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    stored = {
        shard: {n: (dtype if "_scale_inv" in n else d, s) for n, (d, s) in tensors.items()}
        for shard, tensors in shards.items()
    }
    made = outputs(native(sparse(config, stored)))
    assert {d for n, (d, _) in made.items() if "_scale_inv" in n} == {"F32"}
    assert made.keys() == {n for tensors in shards.values() for n in tensors}


def test_another_block_size_is_kept(
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-llama", fp8="float32"))
    config["quantization_config"]["weight_block_size"] = [32, 64]
    for tensors in shards.values():
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            rows, cols = tensors[name.removesuffix("_scale_inv")][1]
            tensors[name] = ("F32", [rows // 32, cols // 64])
    plan = native(sparse(config, shards))
    assert plan.config == config
    assert outputs(plan)["model.layers.0.mlp.up_proj.weight_scale_inv"] == ("F32", (20, 4))


def test_a_shard_of_scales_alone_has_nothing_left_to_hold(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    scales = {
        name: tensors.pop(name)
        for tensors in shards.values()
        for name in list(tensors)
        if name.endswith("_scale_inv")
    }
    plan = native(sparse(config, shards | {"scales.safetensors": scales}))
    assert [shard.name for shard in plan.shards] == sorted(shards)
    assert set(scales) <= set(plan.index()["weight_map"])
    for shard in plan.shards:
        names = {output.name for tensor in shard.tensors for output in tensor.target.parts}
        assert {n.removesuffix("_scale_inv") for n in names if "_scale_inv" in n} <= names


# ------------------------------------------------------------------------------ dequantize


def test_dequantize_makes_bf16_of_fp8_and_copies_the_rest(tiny: Path, tiny_fp8: Path) -> None:
    plan = plan_dequantize(opened(tiny_fp8))
    bf16 = opened(tiny)
    assert outputs(plan) == {n: (i.dtype, i.shape) for n, i in bf16.tensors.items()}
    assert plan.config == bf16.checkpoint.config
    assert plan.scheme is None
    fp8 = opened(tiny_fp8).quantized()
    assert actions(plan) == {n: "dequantize" if n in fp8 else "copy" for n in bf16.tensors}


def test_dequantize_refuses_what_is_not_quantized(tiny: Path) -> None:
    with pytest.raises(DstoolsError, match="nothing to dequantize"):
        plan_dequantize(opened(tiny))


# ------------------------------------------------------------------------------ --base


def test_a_base_s_fp8_comes_back_and_what_it_kept_is_kept(tiny: Path, tiny_fp8: Path) -> None:
    base = opened(tiny_fp8)
    plan = plan_quantize(opened(tiny), OWN, "native", None, base)
    assert actions(plan) == {
        name: "restore" if name in base.quantized() else "copy" for name in opened(tiny).tensors
    }
    assert plan.config["quantization_config"] == base.checkpoint.config["quantization_config"]
    assert outputs(plan) == {n: (i.dtype, i.shape) for n, i in base.tensors.items()}


def test_a_recipe_s_own_rule_goes_before_the_base(tiny: Path, tiny_fp8: Path) -> None:
    base = opened(tiny_fp8)
    rules = (Rule("r, rule 1", "keep", ("o_proj",)), Rule("r, rule 2", "fp8-block", ("kv_b_proj",)))
    plan = plan_quantize(opened(tiny), Recipe(rules), "native", None, base)
    found = actions(plan)
    assert found["model.layers.0.self_attn.kv_b_proj.weight"] == "quantize"
    kept = [f"model.layers.{layer}.self_attn.o_proj" for layer in range(4)]
    assert {found[f"{module}.weight"] for module in kept} == {"copy"}
    assert set(kept) <= set(plan.config["quantization_config"]["modules_to_not_convert"])


def test_a_weight_that_is_not_bf16_cannot_be_restored_and_is_quantized(
    checkpoint: Checkpoint, tiny_fp8: Path
) -> None:
    plan = plan_quantize(
        opened(checkpoint("tiny", dtype="fp16")), OWN, "native", None, opened(tiny_fp8)
    )
    assert set(plan.counts) == {"quantize", "copy"}
    assert {t.rule for s in plan.shards for t in s.tensors} == {
        "FP8 in the base",
        "not FP8 in the base",
    }


@pytest.mark.parametrize(
    ("source", "base", "asked", "message"),
    [
        ("tiny", "tiny", None, "is not quantized"),
        ("tiny_fp8", "tiny_fp8", None, "the source is FP8 already"),
        ("tiny", "tiny_fp8", "ue8m0", "--base has float32 scales, ue8m0 were asked for"),
        ("tiny_aligned", "tiny_fp8", None, "is .*, in --base "),
    ],
)
def test_a_base_that_does_not_fit_is_refused(
    source: str, base: str, asked: Any, message: str, request: pytest.FixtureRequest
) -> None:
    folders = [opened(request.getfixturevalue(name)) for name in (source, base)]
    with pytest.raises(DstoolsError, match=message):
        plan_quantize(folders[0], OWN, "native", asked, folders[1])


# ------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ("tiny-llama", "k_proj"), ("tiny-llama", "dense_up"), ("tiny", "q_a_proj"),
        ("tiny", "routed_gate"), ("tiny", "shared_up"),
    ],
)  # fmt: skip
def test_a_recipe_that_parts_what_engines_fuse_is_refused(
    kind: str, alone: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(kind)
    with pytest.raises(
        DstoolsError, match=r"is kept \(r, rule 1\), but .* is quantized \(DeepSeek"
    ) as error:
        native(folder, Rule("r, rule 1", "keep", (alone,)))
    assert alone in error.value.hint


@pytest.mark.parametrize(
    ("tensor", "entry", "message"),
    [
        ("model.norm.weight", None, r"it is BF16 \[256\]"),
        ("x.weight", ("BF16", [4, 4]), "its name has no known role"),
        ("x.weight", ("U8", [4, 4]), r"it is U8 \[4, 4\]"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(
    tensor: str, entry: Any, message: str, tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny)
    if entry:
        shards[min(shards)][tensor] = entry
    folder = sparse(config, shards)
    with pytest.raises(DstoolsError, match=f"{tensor}: r asks for fp8-block, but {message}"):
        native(folder, Rule("r", "fp8-block", name=tensor))


def test_a_rule_for_a_scale_alone_matches_nothing(tiny_fp8: Path) -> None:
    with pytest.raises(DstoolsError, match="r: matches no tensor"):
        native(tiny_fp8, Rule("r", "keep", name="*.weight_scale_inv"))


def test_a_role_with_biases_can_be_asked_for(checkpoint: Checkpoint) -> None:
    rules = Rule("r", "fp8-block", ("q_proj", "k_proj", "v_proj"))
    found = actions(native(checkpoint("tiny-qwen2"), rules))
    assert found["model.layers.0.self_attn.q_proj.weight"] == "quantize"
    assert found["model.layers.0.self_attn.q_proj.bias"] == "copy"


def test_an_unknown_tensor_is_carried_as_it_is(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny)
    shards[min(shards)]["vision.q_proj.weight"] = ("BF16", [256, 256])
    plan = native(sparse(config, shards))
    assert outputs(plan)["vision.q_proj.weight"] == ("BF16", (256, 256))


# ------------------------------------------------------------------------------ the digest


def test_the_same_source_and_options_have_the_same_digest(tiny: Path, tiny_fp8: Path) -> None:
    assert native(tiny).digest == native(tiny).digest
    assert plan_dequantize(opened(tiny_fp8)).digest == plan_dequantize(opened(tiny_fp8)).digest
    unchanged = Rule("another label", "keep", ("lm_head",))  # which is kept in any case
    assert native(tiny, unchanged).digest == native(tiny).digest


def test_another_source_or_option_has_another_digest(
    tiny: Path, tiny_fp8: Path, tiny_aligned: Path, checkpoint: Checkpoint
) -> None:
    source, fp8 = opened(tiny), opened(tiny_fp8)
    digests = [
        plan.digest
        for plan in (
            plan_quantize(source, OWN, "native", "float32"),
            plan_quantize(source, OWN, "native", "ue8m0"),
            plan_quantize(source, OWN, "compressed-tensors", "float32"),
            plan_quantize(source, OWN, "compressed-tensors", "ue8m0"),
            plan_quantize(source, OWN, "native", None, fp8),
            plan_quantize(source, Recipe((Rule("r", "keep", ("o_proj",)),)), "native", "float32"),
            plan_quantize(opened(tiny_aligned), OWN, "native", "float32"),
            plan_quantize(opened(checkpoint("tiny", seed=1)), OWN, "native", "float32"),
            plan_quantize(fp8, OWN, "native", None),
            plan_quantize(fp8, OWN, "native", "ue8m0"),
            plan_dequantize(fp8),
        )
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("role", ["lm_head", "router", "eh_proj", "shared_head", "embed_tokens"])
def test_what_no_engine_reads_in_fp8_is_not_quantized_by_a_rule(tiny: Path, role: str) -> None:
    recipe = Recipe((Rule("r, rule 1", "fp8-block", (role,)),))
    with pytest.raises(DstoolsError, match=rf"r, rule 1 asks for fp8-block, but it is the {role}"):
        plan_quantize(opened(tiny), recipe, "native", None)


def test_a_rule_cannot_keep_what_is_fp8_already(tiny_fp8: Path) -> None:
    recipe = Recipe((Rule("r, rule 1", "keep", ("routed_down",)),))
    with pytest.raises(DstoolsError, match="but it is FP8 already") as caught:
        plan_quantize(opened(tiny_fp8), recipe, "native", None)
    assert "dequantize" in caught.value.hint


@pytest.mark.parametrize("block", [(128, 64), (64, 128)])
def test_new_codes_are_not_made_in_blocks_that_are_not_square(
    tiny_fp8: Path, block: tuple[int, int]
) -> None:
    inventory = opened(tiny_fp8)
    assert inventory.scheme is not None
    odd = replace(inventory, scheme=replace(inventory.scheme, block_size=block))
    with pytest.raises(
        DstoolsError, match=f"blocks of {block[0]} x {block[1]}; new ones are square"
    ):
        plan_quantize(odd, Recipe(), "native", "ue8m0")
    assert plan_quantize(odd, Recipe(), "native", None).counts["copy"]  # as they are, they may stay
