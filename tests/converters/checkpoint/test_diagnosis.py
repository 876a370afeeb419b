"""Where config and tensors disagree, one cause is named, and its hint works when followed."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from dstools.cli import main
from dstools_converters.checkpoint.folder import open_checkpoint
from dstools_converters.checkpoint.inventory import check, take_inventory

Config = dict[str, Any]
Shards = dict[str, dict[str, tuple[str, list[int]]]]
Edit = Callable[[Config, Shards], object]
Headers = Callable[[Path], tuple[Config, Shards]]
Sparse = Callable[[Config, Shards], Path]
Checkpoint = Callable[..., Path]


def rename(change: Callable[[str], str]) -> Edit:
    """Give every tensor the name that `change` returns for its own."""

    def edit(config: Config, shards: Shards) -> None:
        for shard, tensors in shards.items():
            shards[shard] = {change(name): entry for name, entry in tensors.items()}

    return edit


def front(prefix: str) -> Edit:
    return rename(lambda name: prefix + name)


def behind(prefix: str) -> Edit:
    return rename(lambda name: name.removeprefix(prefix))


def replace(pattern: str, new: str) -> Edit:
    return rename(lambda name: re.sub(pattern, new, name))


def put(**values: Any) -> Edit:
    return lambda config, shards: config.update(values)


def without(key: str) -> Edit:
    return lambda config, shards: config.pop(key)


def drop(pattern: str) -> Edit:
    def edit(config: Config, shards: Shards) -> None:
        for shard, tensors in shards.items():
            kept = {name: e for name, e in tensors.items() if not re.search(pattern, name)}
            shards[shard] = kept

    return edit


def add(entries: dict[str, list[int]], dtype: str = "BF16") -> Edit:
    return lambda config, shards: shards[min(shards)].update(
        {name: (dtype, shape) for name, shape in entries.items()}
    )


def both(*edits: Edit) -> Edit:
    def edit(config: Config, shards: Shards) -> None:
        for one in edits:
            one(config, shards)

    return edit


def entries(shards: Shards) -> Iterator[tuple[dict[str, tuple[str, list[int]]], str]]:
    for tensors in shards.values():
        for name in list(tensors):
            yield tensors, name


def pack(pattern: str, new: str, parts: str) -> Edit:
    """Store weights as one: the groups of `pattern` that `new` uses say which belong together."""

    def edit(config: Config, shards: Shards) -> None:
        rows: dict[str, list[int]] = {}
        for tensors, name in entries(shards):
            match = re.search(pattern, name)
            if match:
                _, shape = tensors.pop(name)
                packed = name[: match.start()] + match.expand(new) + name[match.end() :]
                whole = rows.setdefault(packed, [0, *shape[1:]])
                whole[0] += shape[0]
        add(rows)(config, shards)
        assert rows, parts

    return edit


def stack(fused: bool = True, module: str = "experts", tail: str = "") -> Edit:
    """Store the experts of a layer in one tensor, gate and up in one, too, if `fused`."""

    def edit(config: Config, shards: Shards) -> None:
        sizes: dict[str, list[int]] = {}
        for tensors, name in entries(shards):
            match = re.fullmatch(r"(.*\.mlp\.)experts\.(\d+)\.(\w+)_proj\.weight", name)
            if match:
                _, shape = tensors.pop(name)
                last = "gate_up" if fused and match[3] in ("gate", "up") else match[3]
                rows = shape[0] * (2 if last == "gate_up" else 1)
                size = sizes.setdefault(
                    f"{match[1]}{module}.{last}_proj{tail}", [0, rows, shape[1]]
                )
                size[0] = max(size[0], int(match[2]) + 1)
        add(sizes)(config, shards)

    return edit


def unstack(config: Config, shards: Shards) -> None:
    """Split the experts as the hint says."""
    size, hidden = config["moe_intermediate_size"], config["hidden_size"]
    for tensors, name in entries(shards):
        match = re.fullmatch(
            r"(.*\.mlp\.)(?:experts|switch_mlp)\.([a-z]\w+)_proj(?:\.weight)?", name
        )
        if match:
            _, (experts, *_) = tensors.pop(name)
            for n in range(experts):
                for last in match[2].split("_"):
                    shape = [hidden, size] if last == "down" else [size, hidden]
                    tensors[f"{match[1]}experts.{n}.{last}_proj.weight"] = ("BF16", shape)


class Variant(NamedTuple):
    """`damage` makes of a good checkpoint one whose cause is told in `words`; `mend` follows it."""

    kind: str
    damage: Edit
    words: tuple[str, ...]
    mend: Edit
    fp8: str | None = None


OWN = r"^(?=(model|lm_head)\.)"
VARIANTS = {
    # names
    "no prefix, the head apart": Variant(
        "tiny-llama", behind("model."), ("lacks the prefix model.", "put model. in front"),
        replace(r"^(?!lm_head)", "model.")),
    "no prefix and no head of its own": Variant(
        "tiny-qwen2", behind("model."), ("lacks the prefix model.", "save_pretrained"),
        front("model.")),
    "no prefix in FP8 with MTP": Variant(
        "tiny", behind("model."), ("lacks the prefix model.",),
        replace(r"^(?!lm_head)", "model."), "float32"),
    "language_model. in front": Variant(
        "tiny-llama", front("language_model."),
        ("has the prefix language_model.", "leave out language_model."), behind("language_model.")),
    "language_model. in front of FP8": Variant(
        "tiny-qwen3", front("language_model."), ("has the prefix language_model.",),
        behind("language_model."), "ue8m0"),
    "language_model. inside model.": Variant(
        "tiny-qwen3", replace(r"^model\.", "model.language_model."),
        ("has model.language_model. for model.",), replace("^model.language_model.", "model.")),
    "a vision tower beside it": Variant(
        "tiny-llama",
        both(front("language_model."), add({
            f"vision_tower.encoder.layers.{n}.self_attn.{x}_proj.weight": [64, 64]
            for n in range(3) for x in "qkv"})),
        ("has the prefix language_model.", "as 29 more"), behind("language_model.")),
    "module. of DistributedDataParallel": Variant(
        "tiny-v2-lite", front("module."), ("has the prefix module.",), behind("module.")),
    "_orig_mod. of torch.compile": Variant(
        "tiny", front("_orig_mod."), ("has the prefix _orig_mod.",), behind("_orig_mod.")),
    "_orig_mod. of compiled layers": Variant(
        "tiny-llama", replace(r"(layers\.\d+\.)", r"\1_orig_mod."), ("has _orig_mod. in it",),
        replace(r"_orig_mod\.", "")),
    "FSDP in DDP": Variant(
        "tiny-qwen3", both(replace(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module."),
                           front("module._fsdp_wrapped_module.")),
        ("module.", "_fsdp_wrapped_module."),
        both(replace(r"_fsdp_wrapped_module\.", ""), behind("module."))),
    "transformer. for model.": Variant(
        "tiny-llama", replace(r"^model\.", "transformer."), ("has transformer. for model.",),
        replace(r"^transformer\.", "model.")),
    "PEFT's names after merging": Variant(
        "tiny-llama", front("base_model.model."), ("has the prefix base_model.model.",),
        behind("base_model.model.")),
    "PEFT's names, the adapter lost": Variant(
        "tiny-llama", both(replace(r"(q_proj|v_proj)\.weight", r"\1.base_layer.weight"),
                           front("base_model.model.")),
        ("base_model.model.", "base_layer."),
        both(replace(r"base_layer\.", ""), behind("base_model.model."))),
    "experts named w1, w2, w3": Variant(
        "tiny-v2-lite", both(replace(r"(experts\.\d+\.)gate_proj", r"\1w1"),
                             replace(r"(experts\.\d+\.)down_proj", r"\1w2"),
                             replace(r"(experts\.\d+\.)up_proj", r"\1w3")),
        ("has w1 for gate_proj", "w2", "w3"),
        both(replace("w1", "gate_proj"), replace("w2", "down_proj"), replace("w3", "up_proj"))),
    "Mixtral's block_sparse_moe": Variant(
        "tiny-v2-lite", both(replace(r"mlp\.(experts\.\d+\.)gate_proj", r"block_sparse_moe.\1w1"),
                             replace(r"mlp\.(experts\.\d+\.)down_proj", r"block_sparse_moe.\1w2"),
                             replace(r"mlp\.(experts\.\d+\.)up_proj", r"block_sparse_moe.\1w3"),
                             replace(r"mlp\.gate\.", "block_sparse_moe.gate.")),
        ("block_sparse_moe for mlp",),
        both(replace("block_sparse_moe", "mlp"), replace("w1", "gate_proj"),
             replace("w2", "down_proj"), replace("w3", "up_proj"))),
    # several weights in one tensor
    "experts fused": Variant(
        "tiny", stack(),
        ("experts.gate_up_proj", "experts.0.gate_proj.weight is gate_up_proj[0, 0:160]",
         "up_proj.weight is gate_up_proj[0, 160:320]", "down_proj.weight is down_proj[0]"),
        unstack),
    "experts stacked": Variant(
        "tiny-v2-lite", stack(fused=False, tail=".weight"),
        ("experts.0.gate_proj.weight is gate_proj[0]",), unstack),
    "experts stacked as MLX does": Variant(
        "tiny-v2-lite", stack(fused=False, module="switch_mlp", tail=".weight"),
        ("switch_mlp.", "experts.0.down_proj.weight is down_proj[0]"), unstack),
    "experts as vLLM has them": Variant(
        "tiny", both(stack(), replace("gate_up_proj$", "w13_weight"),
                     replace("experts.down_proj$", "experts.w2_weight")),
        ("gate_proj.weight is w13_weight[0, 0:160]", "down_proj.weight is w2_weight[0]"),
        both(replace("w13_weight$", "gate_up_proj"), replace("w2_weight$", "down_proj"), unstack)),
    "experts fused and transposed": Variant(
        "tiny", both(stack(), lambda c, s: [
            t.update({n: (t[n][0], [t[n][1][0], *t[n][1][:0:-1]])})
            for t, n in entries(s) if n.endswith("gate_up_proj")]),
        ("experts.gate_up_proj", "transposed", "experts.0.gate_proj.weight is [160, 256]"),
        both(lambda c, s: [t.pop(n) for t, n in entries(s) if n.endswith("gate_up_proj")],
             add({f"model.layers.{n}.mlp.experts.gate_up_proj": [8, 320, 256] for n in (1, 2, 3)}),
             unstack)),
    "experts fused beside their own": Variant(
        "tiny", add({"model.layers.1.mlp.experts.gate_up_proj": [8, 320, 256]}),
        ("beside the experts' own", "remove"), drop("gate_up_proj$")),
    "qkv packed": Variant(
        "tiny-llama", both(pack("[qkv]_proj", "qkv_proj", "qkv"),
                           pack("(gate|up)_proj", "gate_up_proj", "gate and up")),
        ("q_proj.weight is qkv_proj[0:256]", "v_proj.weight is qkv_proj[384:512]",
         "up_proj.weight is gate_up_proj[640:1280]"),
        both(drop("(qkv|gate_up)_proj"), *(
            add({f"model.layers.{n}.self_attn.q_proj.weight": [256, 256],
                 f"model.layers.{n}.self_attn.k_proj.weight": [128, 256],
                 f"model.layers.{n}.self_attn.v_proj.weight": [128, 256],
                 f"model.layers.{n}.mlp.gate_proj.weight": [640, 256],
                 f"model.layers.{n}.mlp.up_proj.weight": [640, 256]}) for n in range(3)))),
    # the head
    "a classifier": Variant(
        "tiny-llama", both(drop("lm_head"), add({"score.weight": [2, 256]}),
                           put(architectures=["LlamaForSequenceClassification"])),
        ("score.weight", "LlamaForSequenceClassification", "lm_head.weight"),
        add({"lm_head.weight": [1024, 256]})),
    "a base model": Variant(
        "tiny-qwen3", both(drop("lm_head"), put(architectures=["Qwen3Model"])),
        ("lm_head.weight", "tie_word_embeddings"), put(tie_word_embeddings=True)),
    "a base model of experts, the head to be added": Variant(
        "tiny-v2-lite", drop("lm_head"), ("add lm_head.weight",),
        add({"lm_head.weight": [1024, 256]})),
    # numbers
    "fewer layers": Variant(
        "tiny-llama", put(num_hidden_layers=1),
        ("num_hidden_layers is 1, but the shards hold layers 0-2", "set num_hidden_layers to 3"),
        put(num_hidden_layers=3)),
    "fewer layers, and the others removed": Variant(
        "tiny-llama", put(num_hidden_layers=1), ("to keep fewer layers, remove",),
        drop(r"layers\.[12]\.")),
    "fewer layers before MTP": Variant(
        "tiny", put(num_hidden_layers=2),
        ("num_hidden_layers is 2, but the shards hold layers 0-2, and MTP layer 3",),
        put(num_hidden_layers=3)),
    "fewer layers, and the others and MTP removed": Variant(
        "tiny", put(num_hidden_layers=2), ("and of MTP, and the key num_nextn_predict_layers",),
        both(drop(r"layers\.[23]\."), without("num_nextn_predict_layers"))),
    "fewer layers in FP8": Variant(
        "tiny-v32", put(num_hidden_layers=1), ("num_hidden_layers is 1",),
        put(num_hidden_layers=3), "ue8m0"),
    "more layers": Variant(
        "tiny-qwen2", put(num_hidden_layers=28),
        ("num_hidden_layers is 28, but the shards hold layers 0-2", "add the missing layers"),
        put(num_hidden_layers=3)),
    "millions of layers": Variant(
        "tiny", put(num_hidden_layers=(1 << 24) - 1), ("16777215",), put(num_hidden_layers=3)),
    "fewer experts": Variant(
        "tiny", put(n_routed_experts=4), ("n_routed_experts is 4", "experts 0-7"),
        put(n_routed_experts=8)),
    "more experts": Variant(
        "tiny-v2-lite", put(n_routed_experts=64), ("n_routed_experts is 64",),
        put(n_routed_experts=8)),
    "more dense layers": Variant(
        "tiny", put(first_k_dense_replace=3),
        ("first_k_dense_replace is 3", "set first_k_dense_replace to 1"),
        put(first_k_dense_replace=1)),
    "no dense layer": Variant(
        "tiny-v2-lite", put(first_k_dense_replace=0), ("first_k_dense_replace is 0",),
        put(first_k_dense_replace=1)),
    "no dense layer by the key's absence": Variant(
        "tiny-v2-lite", without("first_k_dense_replace"), ("first_k_dense_replace is not set",),
        put(first_k_dense_replace=1)),
    "every second layer of experts": Variant(
        "tiny", put(moe_layer_freq=2), ("moe_layer_freq is 2",), put(moe_layer_freq=1)),
    "another width of experts": Variant(
        "tiny", put(moe_intermediate_size=128), ("moe_intermediate_size is 128", "have 160"),
        put(moe_intermediate_size=160)),
    "more shared experts": Variant(
        "tiny-v2-lite", put(n_shared_experts=1), ("n_shared_experts is 1",),
        put(n_shared_experts=2)),
    "rows added to the vocabulary": Variant(
        "tiny-llama", put(vocab_size=1000), ("vocab_size is 1000", "set vocab_size to 1024"),
        put(vocab_size=1024)),
    "another width of the MLP": Variant(
        "tiny-qwen3", put(intermediate_size=512), ("intermediate_size is 512",),
        put(intermediate_size=640)),
    "another number of keys and values": Variant(
        "tiny-llama", put(num_key_value_heads=4), ("num_key_value_heads is 4",),
        put(num_key_value_heads=2)),
    "no number of keys and values": Variant(
        "tiny-llama", without("num_key_value_heads"), ("num_key_value_heads is not set",),
        put(num_key_value_heads=2)),
    "another width of heads": Variant(
        "tiny-qwen3", put(head_dim=64), ("head_dim is 64", "set head_dim to 128"),
        put(head_dim=128)),
    "a rank of queries that is not there": Variant(
        "tiny-v2-lite", put(q_lora_rank=1536), ("q_lora_rank is 1536", "set q_lora_rank to null"),
        put(q_lora_rank=None)),
    "no rank of queries": Variant(
        "tiny", put(q_lora_rank=None), ("q_lora_rank is null", "set q_lora_rank to 96"),
        put(q_lora_rank=96)),
    "another latent": Variant(
        "tiny", put(kv_lora_rank=512), ("kv_lora_rank is 512",), put(kv_lora_rank=192)),
    "biases that are not there": Variant(
        "tiny-llama", put(attention_bias=True), ("attention_bias is true", "set attention_bias"),
        put(attention_bias=False)),
    "biases of the MLP that are not there": Variant(
        "tiny-llama", put(mlp_bias=True), ("mlp_bias is true",), put(mlp_bias=False)),
    "another family without biases": Variant(
        "tiny-llama", put(model_type="qwen2"), ('model_type is "qwen2"', "tensors are of llama"),
        put(model_type="llama")),
    "another family with norms": Variant(
        "tiny-qwen3", put(model_type="llama"), ("tensors are of qwen3", "restore the config.json"),
        put(model_type="qwen3")),
    "V2 for V3": Variant(
        "tiny", put(model_type="deepseek_v2"), ("tensors are of deepseek_v3",),
        put(model_type="deepseek_v3")),
    "V3 for V3.2": Variant(
        "tiny-v32", put(model_type="deepseek_v3"), ("tensors are of deepseek_v32",),
        put(model_type="deepseek_v32")),
    "the config of another size": Variant(
        "tiny-qwen3", put(hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
                          num_attention_heads=16, num_key_value_heads=8, vocab_size=2000),
        ("hidden_size is 512", "more keys", "restore the config.json"),
        put(hidden_size=256, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=1024)),
    "fewer layers and experts, to try": Variant(
        "tiny", put(num_hidden_layers=2, n_routed_experts=4),
        ("num_hidden_layers is 2", "n_routed_experts is 4"),
        put(num_hidden_layers=3, n_routed_experts=8)),
    # MTP
    "MTP lost": Variant(
        "tiny", drop(r"layers\.3\."), ("num_nextn_predict_layers is 1", "hold 0 MTP layers"),
        put(num_nextn_predict_layers=0)),
    "MTP not named": Variant(
        "tiny", without("num_nextn_predict_layers"), ("num_nextn_predict_layers is not set",),
        put(num_nextn_predict_layers=1)),
    "a layer more that is not MTP's": Variant(
        "tiny", both(drop(r"layers\.3\.(eh_proj|enorm|hnorm|shared_head|embed)"),
                     put(num_nextn_predict_layers=0)),
        ("num_hidden_layers is 3, but the shards hold layers 0-3",), put(num_hidden_layers=4)),
    # names of others
    "Meta's names": Variant(
        "tiny-llama", both(behind("model."), replace("self_attn.([qkvo])_proj", r"attention.w\1"),
                           replace("mlp", "feed_forward"),
                           replace("embed_tokens", "tok_embeddings"),
                           replace("input_layernorm", "attention_norm"),
                           replace("post_attention_layernorm", "ffn_norm")),
        ("is a name of Meta's original release", "convert_llama_weights_to_hf.py"),
        both(replace(r"attention\.w([qkvo])", r"self_attn.\1_proj"), replace("feed_forward", "mlp"),
             replace("tok_embeddings", "embed_tokens"),
             replace("ffn_norm", "post_attention_layernorm"),
             replace("attention_norm", "input_layernorm"), replace("^(?!lm_head)", "model."))),
    "names of nobody": Variant(
        "tiny-llama", replace(r"^model\.layers\.(\d+)\.(\w+)\.", r"net.\1.\2_x."),
        ("is not a name of transformers' llama", "e.g. model.layers.0.input_layernorm.weight"),
        replace(r"^net\.(\d+)\.(\w+)_x\.", r"model.layers.\1.\2.")),
    # single tensors
    "a tensor missing": Variant(
        "tiny-llama", drop(r"layers\.1\.self_attn\.q_proj"), ("download or save it again",),
        add({"model.layers.1.self_attn.q_proj.weight": [256, 256]})),
    "a tensor too many": Variant(
        "tiny", add({"model.layers.0.mlp.gate.weight": [8, 256]}), ("remove the tensor",),
        drop(r"layers\.0\.mlp\.gate\.")),
    "a tensor of another shape": Variant(
        "tiny", both(drop("model.norm"), add({"model.norm.weight": [16, 16]})),
        ("restore the tensor",), both(drop("model.norm"), add({"model.norm.weight": [256]}))),
    "a tensor of whole numbers": Variant(
        "tiny", both(drop("model.norm"), add({"model.norm.weight": [256]}, "U8")),
        ("save it in BF16, F16, F32",),
        both(drop("model.norm"), add({"model.norm.weight": [256]}))),
    "a layer missing in the middle": Variant(
        "tiny-llama", drop(r"layers\.1\."), ("model.layers.1.", "and 8 more"),
        add({f"model.layers.1.{name}.weight": shape for name, shape in {
            "input_layernorm": [256], "post_attention_layernorm": [256],
            "self_attn.q_proj": [256, 256], "self_attn.k_proj": [128, 256],
            "self_attn.v_proj": [128, 256], "self_attn.o_proj": [256, 256],
            "mlp.gate_proj": [640, 256], "mlp.up_proj": [640, 256], "mlp.down_proj": [256, 640],
        }.items()})),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_the_cause_is_one_finding_and_its_hint_works(
    name: str, checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    variant = VARIANTS[name]
    config, shards = headers(
        checkpoint(variant.kind, **({"fp8": variant.fp8} if variant.fp8 else {}))
    )
    variant.damage(config, shards)
    folder = sparse(config, shards)
    (finding,) = (f for f in check(take_inventory(open_checkpoint(folder))) if f.level == "error")
    told = f"{finding.where}: {finding.message}\n{finding.hint}"
    assert all(word in told for word in variant.words), told
    assert run("verify", folder, "--headers-only", exit_code=3).count("\n") < 15
    assert finding.message in run("quantize", folder, f"{folder}-out", "--dry-run", exit_code=1)
    assert "dstools quantize" not in run("inspect", folder)
    variant.mend(config, shards)
    folder = sparse(config, shards)
    run("quantize", folder, f"{folder}-out", "--dry-run")
    assert not [f for f in check(take_inventory(open_checkpoint(folder))) if f.level == "error"]


def run(*words: str | Path, exit_code: int | None = 0) -> str:
    """Return all that a command prints."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert exit_code in (None, result.exit_code), result.output
    return result.output


# ------------------------------------------------------------------------- faults of several kinds


def errors(folder: Path) -> list[tuple[str, str]]:
    """Return code and text of the errors between config and tensors."""
    findings = check(take_inventory(open_checkpoint(folder)))
    return [(f.code, f"{f.where}: {f.message}") for f in findings if f.level == "error"]


SEVERAL: dict[str, tuple[str, Edit, list[str]]] = {
    "a base model as AutoModel saves it": (
        "tiny-qwen3", both(drop("lm_head"), behind("model.")), ["tensor-names", "head-missing"],
    ),
    "fused experts of a multimodal model": (
        "tiny", both(stack(), replace(r"^model\.", "model.language_model.")),
        ["tensor-names", "experts-fused"],
    ),
    "fused experts, MTP left out": (
        "tiny", both(stack(), drop(r"layers\.3\.")), ["experts-fused", "mtp-mismatch"],
    ),
    "fewer layers in the config, a norm lost": (
        "tiny", both(put(num_hidden_layers=1), drop("model.norm")),
        ["config-mismatch", "weight-missing"],
    ),
    "a prefix, and fewer experts": (
        "tiny-v2-lite", both(front("model."), put(n_routed_experts=2)),
        ["tensor-names", "config-mismatch"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_several_causes_are_one_finding_each_in_the_order_of_mending(
    name: str, checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    kind, damage, codes = SEVERAL[name]
    config, shards = headers(checkpoint(kind))
    damage(config, shards)
    assert [code for code, _ in errors(sparse(config, shards))] == codes


def test_fused_experts_in_fp8_are_one_finding_with_their_scales(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    """As transformers 5 keeps FP8 experts in memory."""
    config, shards = headers(tiny)
    both(drop(r"layers\.3\."), stack(), put(num_nextn_predict_layers=0))(config, shards)
    for tensors, name in entries(shards):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            _, (experts, rows, cols) = tensors[name]
            tensors[name] = "F8_E4M3", [experts, rows, cols]
            scales = [experts, -(-rows // 128), -(-cols // 128)]
            tensors[f"{name}_scale_inv"] = "F32", scales
    native = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    put(quantization_config=native)(config, shards)
    assert [code for code, _ in errors(sparse(config, shards))] == ["experts-fused"]


LORA = {  # of two projections; rank 4
    f"layers.{n}.self_attn.q_proj.lora_{side}": shape
    for n in range(3)
    for side, shape in {"A": [4, 256], "B": [256, 4]}.items()
}


@pytest.mark.parametrize("is_beside", [True, False])
def test_a_lora_is_named_whether_or_not_its_base_is_whole(
    is_beside: bool, checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-llama"))
    if not is_beside:
        both(replace(r"(q_proj)\.weight", r"\1.base_layer.weight"), front("base_model."))(
            config, shards
        )
    add({f"base_model.model.{name}.default.weight": shape for name, shape in LORA.items()})(
        config, shards
    )
    ((code, told),) = errors(sparse(config, shards))
    assert code == "adapter-unmerged"
    assert "this and 5 more tensors belong to a LoRA that is not merged" in told


def test_a_lora_alone_is_told_from_one_with_its_base(
    checkpoint: Checkpoint, sparse: Sparse
) -> None:
    config = json.loads((checkpoint("tiny-llama") / "config.json").read_text())
    names = {f"base_model.model.model.{name}.weight": ("F32", s) for name, s in LORA.items()}
    ((code, told),) = errors(sparse(config, {"model.safetensors": names}))
    assert code == "adapter-unmerged"
    assert "all 6 tensors belong to a LoRA; its base model is not here" in told


def test_shards_that_the_index_has_forgotten_are_named(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny)
    lost = sorted(shards)[1:3]
    kept = {name: tensors for name, tensors in shards.items() if name not in lost}
    folder = sparse(config, kept)
    ((code, told),) = errors(folder)
    missing = sum(len(shards[name]) for name in lost)
    assert (code, told.partition(":")[0]) == ("shard-missing", lost[0])
    assert "is missing, as 1 more are, by the numbers of the other files" in told
    assert f"and with it {missing} weights" in told
    assert run("verify", folder, "--headers-only", exit_code=3).count("\n") < 15
    folder = sparse(config, shards)  # copied, with the index of the whole
    run("quantize", folder, f"{folder}-out", "--dry-run")


@pytest.mark.parametrize("kind", ["tiny", "tiny-llama"])
def test_a_shard_that_is_gone_is_one_finding(
    kind: str, checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    folder = sparse(*headers(checkpoint(kind)))
    lost = sorted(folder.glob("*.safetensors"))[0]
    lost.unlink()
    output = run("verify", folder, "--headers-only", exit_code=3)
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        line for line in output.splitlines() if lost.name in line
    ]
    assert output.count("\n") < 15


def test_an_index_of_tensors_that_no_shard_holds_is_told_in_a_few_lines(
    tiny: Path, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(tiny)
    folder = sparse(config, shards)
    cut = sparse(config, {name: dict(list(t.items())[:3]) for name, t in shards.items()})
    (cut / "model.safetensors.index.json").write_text(
        (folder / "model.safetensors.index.json").read_text()
    )
    assert run("verify", cut, "--headers-only", exit_code=3).count("\n") < 20
    assert "download again" in run("quantize", cut, f"{cut}-out", "--dry-run", exit_code=1)


# ------------------------------------------------------------------- hints followed with real data


def save(folder: Path, tensors: dict[str, Any], config: Config) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def the_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_names_without_a_prefix_are_completed_by_transformers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = checkpoint("tiny-qwen2")
    config, whole = json.loads((source / "config.json").read_text()), load(source)
    bare = save(tmp_path / "bare", {n.removeprefix("model."): t for n, t in whole.items()}, config)
    assert "AutoModelForCausalLM.from_pretrained and save_pretrained do it" in run(
        "verify", bare, exit_code=3
    )
    mended = tmp_path / "mended"
    AutoModelForCausalLM.from_pretrained(bare, dtype=torch.bfloat16).save_pretrained(mended)
    assert the_same(load(mended), whole)
    run("quantize", mended, tmp_path / "out")


def test_transformers_is_not_recommended_where_it_would_invent_a_head(
    checkpoint: Checkpoint, headers: Headers, sparse: Sparse
) -> None:
    config, shards = headers(checkpoint("tiny-qwen3"))
    both(drop("lm_head"), behind("model."))(config, shards)
    assert "AutoModel" not in run("verify", sparse(config, shards), exit_code=3)


def test_experts_fused_by_transformers_are_those_of_the_slices(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = checkpoint("tiny-v2-lite")
    config, whole = json.loads((source / "config.json").read_text()), load(source)
    state = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    fused = save(tmp_path / "fused", state, config)
    hint = run("verify", fused, "--headers-only", exit_code=3)
    place = re.search(r"mlp\.experts\.0\.up_proj\.weight is gate_up_proj\[0, (\d+):(\d+)\]", hint)
    assert place, hint
    size, rows = map(int, place.groups())
    mended = dict(state)
    for name in [name for name in state if name.endswith("mlp.experts.gate_up_proj")]:
        path = name.removesuffix(".gate_up_proj")
        gate_up, down = mended.pop(name), mended.pop(f"{path}.down_proj")
        for n in range(len(down)):
            mended[f"{path}.{n}.gate_proj.weight"] = gate_up[n, 0:size]
            mended[f"{path}.{n}.up_proj.weight"] = gate_up[n, size:rows]
            mended[f"{path}.{n}.down_proj.weight"] = down[n]
    assert the_same(mended, whole)
    run("quantize", save(tmp_path / "mended", mended, config), tmp_path / "out")
    # and what the hint warns of: transformers gives fused experts back as it got them
    AutoModelForCausalLM.from_pretrained(fused).save_pretrained(tmp_path / "again")
    assert "gate_up_proj" in run("verify", tmp_path / "again", exit_code=3)


def test_a_lora_is_merged_by_peft(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    source = checkpoint("tiny-llama")
    config = json.loads((source / "config.json").read_text())

    def adapted() -> Any:
        base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(base, lora)

    trained = adapted()
    unmerged = save(tmp_path / "unmerged", trained.state_dict(), config)
    told = run("verify", unmerged, "--headers-only", exit_code=3)
    assert "not merged" in told
    assert "merge_and_unload() returns" in told
    again = adapted()
    again.load_state_dict(load(unmerged))
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    run("quantize", tmp_path / "merged", tmp_path / "out")
    # the adapter alone, which PEFT names adapter_model.safetensors
    trained.save_pretrained(tmp_path / "adapter")
    alone = tmp_path / "adapter"
    tensors = load(alone)
    assert "PeftModel.from_pretrained" in run(
        "verify", save(tmp_path / "alone", tensors, config), exit_code=3
    )
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, alone).merge_and_unload()
    merged.save_pretrained(tmp_path / "from-base")
    run("quantize", tmp_path / "from-base", tmp_path / "out-2")
    assert the_same(load(tmp_path / "from-base"), load(tmp_path / "merged"))
