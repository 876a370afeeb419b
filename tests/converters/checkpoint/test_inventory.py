"""What does not add up between config and tensors is refused by file and tensor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import check, require_sound, take_inventory
from dstools_converters.errors import DstoolsError, Finding

Checkpoint = Callable[..., Path]
Config = dict[str, Any]
Shards = dict[str, dict[str, tuple[str, list[int]]]]
Headers = Callable[[Path], tuple[Config, Shards]]
Sparse = Callable[[Config, Shards], Path]

FP8_KINDS = ["tiny", "tiny-aligned", "tiny-v2", "tiny-v2-lite", "tiny-v32"]
FP8_KINDS += ["tiny-llama", "tiny-qwen2", "tiny-qwen3"]
GATE = "model.layers.0.mlp.gate_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
MTP = "model.layers.3."  # of `tiny`


def findings(folder: Path) -> list[Finding]:
    return list(check(take_inventory(open_checkpoint(folder))))


def shard_of(shards: Shards, name: str) -> str:
    (shard,) = (shard for shard, tensors in shards.items() if name in tensors)
    return shard


def change(shards: Shards, name: str, dtype: str = "", shape: list[int] | None = None) -> None:
    tensors = shards[shard_of(shards, name)]
    tensors[name] = (dtype or tensors[name][0], tensors[name][1] if shape is None else shape)


def remove(shards: Shards, start: str) -> None:
    for tensors in shards.values():
        for name in [name for name in tensors if name.startswith(start)]:
            del tensors[name]


@pytest.mark.parametrize("fp8", [None, "float32", "ue8m0"])
@pytest.mark.parametrize("kind", FP8_KINDS)
def test_a_good_checkpoint_has_nothing_to_remark(
    kind: str, fp8: str | None, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(kind, fp8=fp8) if fp8 else checkpoint(kind)
    assert findings(folder) == []
    inventory = require_sound(open_checkpoint(folder))
    assert inventory.unknown == []
    weights = [info.name for info, _ in inventory.weights()]
    scales = {name for name in inventory.tensors if name.endswith("_scale_inv")}
    assert weights == [name for name in inventory.tensors if name not in scales]
    assert {name: s.scale.name for name, s in inventory.quantized().items()} == {
        name.removesuffix("_scale_inv"): name for name in scales
    }
    assert bool(scales) == bool(fp8)


def test_scales_are_found_in_another_shard(checkpoint: Checkpoint) -> None:
    folder = checkpoint("tiny", fp8="float32", scales_apart=True)
    inventory = require_sound(open_checkpoint(folder))
    last = max(inventory.checkpoint.shards)
    assert {s.scale.shard for s in inventory.quantized().values()} == {last}
    assert len({inventory.tensors[name].shard for name in inventory.quantized()}) > 1


def test_v3_is_sound(checkpoint: Checkpoint) -> None:
    inventory = require_sound(open_checkpoint(checkpoint("v3-headers")))
    # 5 of attention in 62 layers, 3 of an MLP in 3 dense ones, 257 experts in 59
    assert len(inventory.quantized()) == 5 * 62 + 3 * 3 + 3 * 257 * 59 == 45_808


def first_shard(shards: Shards) -> dict[str, tuple[str, list[int]]]:
    return shards[min(shards)]


FAULTS: dict[str, tuple[Callable[[Config, Shards], object], str, str]] = {
    # what is done to `tiny` in FP8: (how, code, of what: a tensor, or a file)
    "a scale is missing": (
        lambda c, s: remove(s, f"{GATE}_scale_inv"), "scale-missing", GATE,
    ),
    "a scale has no weight": (
        lambda c, s: first_shard(s).update({f"{ROUTER}_scale_inv": ("F32", [1, 2])}),
        "scale-orphaned", f"{ROUTER}_scale_inv",
    ),
    "a scale of another format": (
        lambda c, s: first_shard(s).update({f"{ROUTER}_scale": ("F32", [1])}),
        "scale-orphaned", ROUTER.replace("weight", "weight_scale"),
    ),
    "its weight is BF16": (
        lambda c, s: change(s, GATE, "BF16"), "scale-orphaned", f"{GATE}_scale_inv",
    ),
    # gate [336, 256] has 3 x 2 blocks
    "a scale has a row too few": (
        lambda c, s: change(s, f"{GATE}_scale_inv", shape=[2, 2]),
        "scale-shape", f"{GATE}_scale_inv",
    ),
    "a scale is transposed": (
        lambda c, s: change(s, f"{GATE}_scale_inv", shape=[2, 3]),
        "scale-shape", f"{GATE}_scale_inv",
    ),
    "a scale is flat": (
        lambda c, s: change(s, f"{GATE}_scale_inv", shape=[6]), "scale-shape", f"{GATE}_scale_inv",
    ),
    "a scale is F16": (
        lambda c, s: change(s, f"{GATE}_scale_inv", "F16"), "scale-dtype", f"{GATE}_scale_inv",
    ),
    "another block size": (
        lambda c, s: c["quantization_config"].update(weight_block_size=[64, 64]),
        "scale-shape", None,
    ),
    "FP8 without a quantization_config": (
        lambda c, s: (c.pop("quantization_config"),
                      [remove(s, n) for t in list(s.values()) for n in [*t] if "_scale_inv" in n]),
        "quantization-unnamed", None,
    ),
    "FP8 router": (lambda c, s: change(s, ROUTER, "F8_E4M3"), "scale-missing", ROUTER),
    "FP8 norm": (
        lambda c, s: (change(s, "model.norm.weight", "F8_E4M3"),
                      first_shard(s).update({"model.norm.weight_scale_inv": ("F32", [2])})),
        "shape", "model.norm.weight",
    ),
    "FP8 of no known role": (
        lambda c, s: first_shard(s).update({"model.layers.0.x.weight": ("F8_E4M3", [2, 2])}),
        "fp8-unknown", "model.layers.0.x.weight",
    ),
    "a weight is missing": (lambda c, s: remove(s, ROUTER), "weight-missing", ROUTER),
    "a weight of another shape": (
        lambda c, s: change(s, ROUTER, shape=[7, 256]), "shape", ROUTER,
    ),
    "a weight of another rank": (
        lambda c, s: change(s, ROUTER, shape=[8 * 256]), "shape", ROUTER,
    ),
    "an MTP embedding of another shape": (
        lambda c, s: change(s, f"{MTP}embed_tokens.weight", shape=[1023, 256]), "shape",
        f"{MTP}embed_tokens.weight",
    ),
    "an expert too many": (
        lambda c, s: first_shard(s).update(
            {"model.layers.1.mlp.experts.8.up_proj.weight": ("BF16", [160, 256])}),
        "weight-unasked", "model.layers.1.mlp.experts.8.up_proj.weight",
    ),
    "a bias that the config denies": (
        lambda c, s: first_shard(s).update({
            "model.layers.0.self_attn.o_proj.bias": ("BF16", [256])}),
        "weight-unasked", "model.layers.0.self_attn.o_proj.bias",
    ),
    "a layer fewer in the config": (
        lambda c, s: c.update(num_hidden_layers=2), "config-mismatch", "config.json",
    ),
    "no MTP layer in the shards": (
        lambda c, s: remove(s, MTP), "mtp-mismatch", "config.json",
    ),
    "no MTP layer in the config": (
        lambda c, s: c.update(num_nextn_predict_layers=0), "mtp-mismatch", "config.json",
    ),
    "the config says nothing of MTP": (
        lambda c, s: c.pop("num_nextn_predict_layers"), "mtp-mismatch", "config.json",
    ),
    "two MTP layers in the config": (
        lambda c, s: c.update(num_nextn_predict_layers=2), "mtp-mismatch", "config.json",
    ),
    "half an MTP layer": (
        lambda c, s: remove(s, f"{MTP}eh_proj"), "weight-missing", f"{MTP}eh_proj.weight",
    ),
    "experts fused as in memory": (
        lambda c, s: first_shard(s).update(
            {"model.layers.1.mlp.experts.gate_up_proj": ("BF16", [8, 320, 256])}),
        "experts-fused", "model.layers.1.mlp.experts.gate_up_proj",
    ),
    "millions of layers": (
        lambda c, s: c.update(num_hidden_layers=(1 << 24) - 1, num_nextn_predict_layers=0),
        "config-mismatch", "config.json",
    ),
    "millions of MTP layers": (
        lambda c, s: c.update(num_nextn_predict_layers=(1 << 24) - 1),
        "mtp-mismatch", "config.json",
    ),
    "millions of experts": (
        lambda c, s: c.update(n_routed_experts=(1 << 24) - 1), "config-mismatch", "config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_by_file_and_tensor(
    fault: str, tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    how, code, what = FAULTS[fault]
    config, shards = headers(tiny_fp8)
    how(config, shards)
    folder = sparse(config, shards)
    found = [f for f in findings(folder) if f.level == "error"]
    assert code in [f.code for f in found]
    tensors = {f"{shard}: {name}" for shard, names in shards.items() for name in names}
    if what is not None:
        (named,) = {f.where for f in found if f.code == code}
        assert named.removeprefix(f"{named.partition(': ')[0]}: ") == what or named == what
    for finding in found:
        is_missing = finding.code == "weight-missing"
        assert is_missing or finding.where == "config.json" or finding.where in tensors
    with pytest.raises(DstoolsError) as error:
        require_sound(open_checkpoint(folder))
    assert str(error.value) == f"{found[0].where}: {found[0].message}"
    assert error.value.hint == found[0].hint


def rename_scales(c: Config, s: Shards) -> None:
    for shard, tensors in s.items():
        s[shard] = {n.replace("weight_scale_inv", "weight_scale"): e for n, e in tensors.items()}


def restore_names(c: Config, s: Shards) -> None:
    for shard, tensors in s.items():
        s[shard] = {
            n if n.endswith("_inv") else n.replace("weight_scale", "weight_scale_inv"): e
            for n, e in tensors.items()
        }


SCALE = f"{GATE}_scale_inv"
FOLLOWED: dict[str, tuple[Callable[[Config, Shards], object], str, str,
                          Callable[[Config, Shards], object]]] = {
    # what is done to `tiny` in FP8: (how, code, a part of the hint, what the hint says)
    "a scale is missing": (
        lambda c, s: remove(s, SCALE), "scale-missing", "download the shard",
        lambda c, s: first_shard(s).update({SCALE: ("F32", [3, 2])}),
    ),
    "another block size": (
        lambda c, s: c["quantization_config"].update(weight_block_size=[64, 64]),
        "scale-shape", "to [128, 128]",
        lambda c, s: c["quantization_config"].update(weight_block_size=[128, 128]),
    ),
    "one scale of another shape": (
        lambda c, s: change(s, SCALE, shape=[2, 3]), "scale-shape", "restore the scales",
        lambda c, s: change(s, SCALE, shape=[3, 2]),
    ),
    "a scale in F16": (
        lambda c, s: change(s, SCALE, "F16"), "scale-dtype", "save it in F32",
        lambda c, s: change(s, SCALE, "F32"),
    ),
    "a scale beside BF16": (
        lambda c, s: change(s, GATE, "BF16"), "scale-orphaned", "remove it",
        lambda c, s: remove(s, SCALE),
    ),
    "scales named as compressed-tensors does": (
        rename_scales, "scale-names", "rename them to weight_scale_inv", restore_names,
    ),
    "an FP8 norm": (
        lambda c, s: (change(s, "model.norm.weight", "F8_E4M3"),
                      first_shard(s).update({"model.norm.weight_scale_inv": ("F32", [2])})),
        "shape", "save it in BF16, without its scale",
        lambda c, s: (remove(s, "model.norm.weight_scale_inv"),
                      change(s, "model.norm.weight", "BF16")),
    ),
    "FP8 of no known role": (
        lambda c, s: first_shard(s).update({"model.layers.0.x.weight": ("F8_E4M3", [2, 2])}),
        "fp8-unknown", "save it in BF16",
        lambda c, s: change(s, "model.layers.0.x.weight", "BF16"),
    ),
    "a block that quantizes nothing": (
        lambda c, s: ([remove(s, n) for t in list(s.values()) for n in [*t] if "_scale_inv" in n],
                      [change(s, n, "BF16") for t in s.values() for n in t
                       if t[n][0] == "F8_E4M3"]),
        "quantization-empty", "remove quantization_config",
        lambda c, s: c.pop("quantization_config"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLLOWED)
def test_a_hint_that_is_followed_leaves_nothing_to_remark(
    fault: str, tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    how, code, hint, mend = FOLLOWED[fault]
    config, shards = headers(tiny_fp8)
    how(config, shards)
    (finding,) = (f for f in findings(sparse(config, shards)) if f.level == "error")
    assert finding.code == code
    assert hint in finding.hint
    mend(config, shards)
    assert [f for f in findings(sparse(config, shards)) if f.level == "error"] == []


def test_a_whole_missing_mtp_layer_is_one_finding(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    remove(shards, MTP)
    assert [f.code for f in findings(sparse(config, shards))] == ["mtp-mismatch"]


def test_a_config_that_calls_bf16_quantized_is_refused(
    tiny: Path, tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    _, shards = headers(tiny)
    config, _ = headers(tiny_fp8)
    (finding,) = findings(sparse(config, shards))
    assert (finding.level, finding.code, finding.where) == (
        "error",
        "quantization-empty",
        "config.json",
    )


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E8M0"])
def test_a_scale_may_be_stored_in_each_of_three_dtypes(
    dtype: str, tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    change(shards, f"{GATE}_scale_inv", dtype)
    assert findings(sparse(config, shards)) == []


def test_an_unknown_tensor_is_a_note_and_is_listed(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    first_shard(shards)["vision\x1b.weight"] = ("BF16", [2])
    first_shard(shards)["hc_attn_scale"] = ("F32", [2])  # of DeepSeek-V4: a weight, no scale
    folder = sparse(config, shards)
    assert [(f.level, f.code, f.where.partition(": ")[2]) for f in findings(folder)] == [
        ("note", "unknown-tensor", "vision\\x1b.weight"),
        ("note", "unknown-tensor", "hc_attn_scale"),
    ]
    inventory = require_sound(open_checkpoint(folder))
    assert [info.name for info in inventory.unknown] == ["vision\x1b.weight", "hc_attn_scale"]


def test_tensors_without_elements_carry_nothing(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    """transformers saves shared experts of no rows where n_shared_experts is 0."""
    config, shards = headers(tiny)
    config["n_shared_experts"] = 0
    names = []
    for tensors in shards.values():
        for name, (dtype, shape) in tensors.items():
            if ".shared_experts." in name:
                names.append(name)
                rows, columns = shape
                empty = [rows, 0] if "down_proj" in name else [0, columns]
                tensors[name] = (dtype, empty)
    inventory = require_sound(open_checkpoint(sparse(config, shards)))
    assert {info.name for info in inventory.unknown} == set(names) != set()
    config["n_shared_experts"] = 1
    with pytest.raises(DstoolsError, match=r"shared_experts\.\w+\.weight: is \["):
        require_sound(open_checkpoint(sparse(config, shards)))


def test_a_tied_head_may_be_stored_again(
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-qwen2"))
    first_shard(shards)["lm_head.weight"] = ("BF16", [1024, 256])
    assert findings(sparse(config, shards)) == []
    first_shard(shards)["lm_head.weight"] = ("BF16", [1023, 256])
    assert [f.code for f in findings(sparse(config, shards))] == ["shape"]


@pytest.mark.parametrize("shape", [[], [1]])
@pytest.mark.parametrize(
    "parts",
    [
        ["self_attn.k_scale", "self_attn.v_scale"],
        ["self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"],
        ["self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"],
        ["self_attn.kv_scale"],
        ["self_attn.q_scale", "self_attn.k_scale", "self_attn.v_scale", "self_attn.prob_scale"],
    ],
)
def test_scales_of_a_kv_cache_may_have_any_spelling_and_be_a_scalar(
    parts: list[str], shape: list[int],
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse,
) -> None:  # fmt: skip
    config, shards = headers(checkpoint("tiny-qwen3", fp8="float32"))
    for layer in range(3):
        for part in parts:
            first_shard(shards)[f"model.layers.{layer}.{part}"] = ("F32", shape)
    folder = sparse(config, shards)
    assert findings(folder) == []
    assert require_sound(open_checkpoint(folder)).unknown == []


@pytest.mark.parametrize("shape", [[2], [1, 1, 3], [0]])
def test_a_scale_of_a_kv_cache_that_is_not_one_number_is_refused(
    shape: list[int], tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    first_shard(shards)["model.layers.0.self_attn.k_scale"] = ("F32", shape)
    (finding,) = findings(sparse(config, shards))
    assert (finding.level, finding.code) == ("error", "shape")
    assert "KV cache" in finding.message
    assert "same model" not in finding.hint


def test_static_scales_of_inputs_are_one_warning(
    tiny_fp8: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny_fp8)
    for tensors in list(shards.values()):
        for name in [name for name in tensors if name.endswith("weight_scale_inv")]:
            tensors[name.replace("weight_scale_inv", "input_scale")] = ("F32", [])
    (finding,) = findings(sparse(config, shards))
    assert (finding.level, finding.code) == ("warning", "input-scale")
    assert "input_scale" in finding.where
