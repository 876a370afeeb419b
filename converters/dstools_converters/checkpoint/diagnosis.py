"""Diagnosis of a config and tensors that disagree: few causes, each with a hint that was tried.

A cause is a change of names, of shapes or of the config. It is applied to the headers in memory,
and reported only where config and tensors then differ less; the differences left are explained in
the same way. So a hint that is followed succeeds, or leads to the next finding.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from dstools_converters.checkpoint.differences import (
    Differences,
    Names,
    Tensors,
    compare,
    differences_found,
)
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.implied import Evidence, implied
from dstools_converters.checkpoint.respelling import (
    STACKS,
    Change,
    Respelled,
    Split,
    respell,
    split,
)
from dstools_converters.errors import DstoolsError, Finding, counted, printable
from dstools_converters.families.names import TensorName
from dstools_converters.families.shapes import Model, read_model

NUMBERED = re.compile(r"(.*-)(\d{5})-of-(\d+)\.safetensors")  # DeepSeek: 00001-of-000163
HEADS = ("score.", "classifier.", "qa_outputs.", "v_head.", "value_head.", "rm_head.")
FOREIGN = {  # a part of a name -> whose names these are, and what to do
    ".attention.wq.": (
        "Meta's original release",
        "convert it with transformers' convert_llama_weights_to_hf.py, or take the -hf release",
    ),
    ".attn.wkv_a.": (
        "DeepSeek's inference/convert.py",
        "take the Hugging Face release that they were converted from",
    ),
    "blk.": ("GGUF", "take the safetensors that the GGUF file was made from"),
    ".self_attention.linear_": (
        "Megatron",
        "export it to Hugging Face's format, e.g. with Megatron Bridge",
    ),
}
# Findings after which names say nothing of roles.
MISNAMED = {"adapter-unmerged", "tensor-names", "experts-fused", "weights-fused"}
MAX_KEYS = 4  # contradicting keys of one config; more make it the config of another model


def explain(
    config: dict[str, Any], model: Model, tensors: Tensors, names: Names, files: list[str]
) -> Iterator[Finding]:
    """Yield the causes of all differences between the config and the tensors, none if they agree.

    `names` holds the parsed name of every tensor, `files` the names of the folder's shards.
    """
    adapter = _adapter(names)
    if adapter:
        yield _unmerged(tensors, adapter)
        return
    differences = compare(model, tensors, names)
    stacked = [tensors[name] for name, p in names.items() if p is None and _is_stack(tensors[name])]
    if not differences.total:
        if stacked:
            yield _stacked_beside(stacked)
        return
    lost = _lost_shards(files)
    if lost and differences.missing:
        yield _shards_missing(lost, len(differences.missing))
        return
    respelled = respell(tensors, names, model.spelling)
    unknown = sum(parsed is None for parsed in names.values())
    if respelled and _finds(model, respelled, differences, unknown):
        yield _misnamed(model, tensors, respelled)
        yield from _explain_again(config, respelled.tensors)
        return
    parts = split(tensors, names, model)
    if parts and _helps(config, parts.tensors, differences):
        yield _packed(parts)
        yield from _explain_again(config, parts.tensors)
    elif stacked and differences.missing:
        yield _stacked(model, stacked)
    elif unknown > len(names) // 2:
        yield _foreign(model, tensors, names)
    else:
        yield from _explain_config(config, model, tensors, names, differences)


def _explain_config(
    config: dict[str, Any], model: Model, tensors: Tensors, names: Names, differences: Differences
) -> Iterator[Finding]:
    """Yield what the config says otherwise than the tensors, which have the family's names."""
    head = TensorName("lm_head", "weight")
    embedding = tensors.get(model.spell(TensorName("embed_tokens", "weight")))
    if head in differences.missing and embedding is not None:
        yield _headless(config, tensors, names)
        spelled = model.spell(head)
        yield from _explain_again(config, {**tensors, spelled: embedding._replace(name=spelled)})
        return
    evidence = Evidence(tensors, names)
    contradicted = implied(model, evidence)
    for change in (contradicted, *({key: value} for key, value in contradicted.items())):
        edited = config | change
        if _helps(edited, tensors, differences):
            yield _contradicted(config, model, change, evidence)
            yield from _explain_again(edited, tensors)
            return
    yield from differences_found(model, differences)


def _explain_again(config: dict[str, Any], tensors: Tensors) -> Iterator[Finding]:
    """Yield the causes that are left after a change."""
    model = read_model(config)
    yield from explain(config, model, tensors, _parse(model, tensors), [])


def _parse(model: Model, tensors: Tensors) -> Names:
    return {name: model.spelling.parse(name, model.num_hidden_layers) for name in tensors}


def _finds(model: Model, respelled: Respelled, before: Differences, unknown: int) -> bool:
    """Return whether other names, already given, find weights: half of those missing, or more.

    Where half of the unknown names become known, fewer will do: the others have other causes.
    """
    tensors = respelled.tensors
    names = _parse(model, tensors)
    left = len(compare(model, tensors, names).missing)
    known = sum(names[new] is not None for new in respelled.renamed.values())
    is_most = 2 * left <= len(before.missing) or 2 * known >= unknown
    return is_most and left < len(before.missing)


def _helps(config: dict[str, Any], tensors: Tensors, before: Differences) -> bool:
    """Return whether a change, already made, leaves at most half of the differences."""
    try:
        model = read_model(config)
    except DstoolsError:
        return False
    return 2 * compare(model, tensors, _parse(model, tensors)).total <= before.total


# ------------------------------------------------------------------------------- names and shapes


def _adapter(names: Names) -> list[str]:
    """Return the names of a LoRA's tensors. Source: PEFT, tuners/lora/layer.py."""
    return [
        name
        for name, parsed in names.items()
        if parsed is None and any(part.startswith("lora_") for part in name.split("."))
    ]


def _unmerged(tensors: Tensors, adapter: list[str]) -> Finding:
    count, where = len(adapter), tensors[adapter[0]].where
    if count == len(tensors):
        return Finding.error(
            "adapter-unmerged",
            where,
            f"all {count} tensors belong to a LoRA; its base model is not here",
            "merge it: PeftModel.from_pretrained(base, ADAPTER).merge_and_unload(), then "
            "save_pretrained",
        )
    return Finding.error(
        "adapter-unmerged",
        where,
        f"this and {count - 1} more tensors belong to a LoRA that is not merged into the weights",
        "load them into their PEFT model, and save what its merge_and_unload() returns",
    )


def _misnamed(model: Model, tensors: Tensors, respelled: Respelled) -> Finding:
    first, new = next(iter(respelled.renamed.items()))
    more = f", as {count} more names do" if (count := len(respelled.renamed) - 1) else ""
    steps = "; ".join(map(_instruction, respelled.changes))
    hint = f"rename in shards and index ({steps}), this one to {printable(new)}"
    lm_head = model.spell(TensorName("lm_head", "weight"))
    if all(not old for old, _ in respelled.changes) and (model.is_tied or lm_head in tensors):
        hint += "; AutoModelForCausalLM.from_pretrained and save_pretrained do it"
    message = " and ".join(_difference(change, first) for change in respelled.changes)
    return Finding.error("tensor-names", tensors[first].where, f"{message}{more}", hint)


def _difference(change: Change, name: str) -> str:
    """Return how a name is unlike those of the family."""
    old, new = map(printable, change)
    if not old:
        return f"lacks the prefix {new}"
    if new:
        return f"has {old} for {new}"
    return f"has the prefix {old}" if name.startswith(old) else f"has {old} in it"


def _instruction(change: Change) -> str:
    """Return what to do with all names that a change concerns."""
    old, new = map(printable, change)
    if not old:
        return f"put {new} in front"
    return f"write {new} for {old}" if new else f"leave out {old}"


def _packed(parts: Split) -> Finding:
    """Return that weights are stored as parts of a larger tensor, and which parts they are."""
    info = _with_gate(parts.packed)
    held = "all experts of a layer" if len(info.shape) == 3 else "several weights"
    more = f", as {count} more do" if (count := len(parts.packed) - 1) else ""
    slices = ", ".join(f"{printable(part.weight)} is {part.place}" for part in parts.examples)
    return Finding.error(
        "experts-fused" if len(info.shape) == 3 else "weights-fused",
        info.where,
        f"holds {held} in one tensor {list(info.shape)}{more}",
        f"split them in shards and index: {slices}, and so on; loading and saving with "
        "transformers 5 keeps them fused",
    )


def _is_stack(info: TensorInfo) -> bool:
    """Return whether a tensor holds a matrix of all experts of a layer."""
    is_scale = info.name.endswith(("_scale", "_scale_inv"))
    return (
        len(info.shape) == 3 and not is_scale and any(f".{stack}." in info.name for stack in STACKS)
    )


def _with_gate(packed: list[TensorInfo]) -> TensorInfo:
    """Return the first tensor that holds a gate, which tells more than one of down alone."""
    return max(packed, key=lambda info: "gate" in info.name)


def _stacked_beside(stacked: list[TensorInfo]) -> Finding:
    """Return that experts are stacked, and stored one by one as well."""
    info = stacked[0]
    return Finding.error(
        "experts-fused",
        info.where,
        f"holds all experts of a layer in one tensor {list(info.shape)}, beside the experts' own; "
        f"{len(stacked)} such tensors",
        "an engine may load either; remove the fused ones, in shards and index",
    )


def _stacked(model: Model, stacked: list[TensorInfo]) -> Finding:
    """Return that experts are stacked in shapes that the config does not explain."""
    info = _with_gate(stacked)
    wanted = next(
        (f": {model.spell(name)} is {list(shape)}" for name, shape, _ in model.kinds()
         if name.role == "routed_gate"), "",
    )  # fmt: skip
    return Finding.error(
        "experts-fused",
        info.where,
        f"holds all experts of a layer in one tensor {list(info.shape)}, of other sizes than the "
        f"config says, or transposed; {len(stacked)} such tensors",
        f"save one matrix for each expert, as the config has it{wanted}",
    )


def _foreign(model: Model, tensors: Tensors, names: Names) -> Finding:
    """Return that most names belong to another layout."""
    unknown = [name for name, parsed in names.items() if parsed is None]
    wanted = model.spell(TensorName("input_layernorm", "weight", 0))
    name, whose = unknown[0], f"is not a name of transformers' {model.model_type}"
    hint = f"convert the checkpoint to Hugging Face's names, e.g. {wanted}"
    for part, (source, advice) in FOREIGN.items():
        named = [name for name in unknown if part in f".{name}"]
        if named:
            name, whose, hint = named[0], f"is a name of {source}", advice
    more = f", as {len(unknown) - 1} more of {len(names)} names"
    return Finding.error("tensor-names", tensors[name].where, f"{whose}{more}", hint)


# -------------------------------------------------------------------------- what there is, or not


def _lost_shards(files: list[str]) -> list[str]:
    """Return the files that are missing, by the numbers in the names of the others."""
    present: dict[tuple[str, str], set[int]] = {}
    for file in files:
        match = NUMBERED.fullmatch(file)
        if match is None:
            return []
        present.setdefault((match[1], match[3]), set()).add(int(match[2]))
    if len(present) != 1:
        return []
    (((stem, total), numbers),) = present.items()
    lost = set(range(1, int(total) + 1)) - numbers
    return [f"{stem}{number:05}-of-{total}.safetensors" for number in sorted(lost)]


def _shards_missing(lost: list[str], weights: int) -> Finding:
    more = f", as {len(lost) - 1} more are" if len(lost) > 1 else ""
    return Finding.error(
        "shard-missing",
        printable(lost[0]),
        f"is missing{more}, by the numbers of the other files, and with it {weights} weights",
        "copy the missing files here, and the index of the whole checkpoint",
    )


def _headless(config: dict[str, Any], tensors: Tensors, names: Names) -> Finding:
    """Return that there is no output head: of a classifier, or of a base model."""
    other = [name for name, p in names.items() if p is None and name.startswith(HEADS)]
    if other:
        classes = config.get("architectures")
        kind = printable(str(classes[0])) if isinstance(classes, list) and classes else "no class"
        return Finding.error(
            "head-missing",
            tensors[other[0]].where,
            f"is the head of a classifier or reward model ({kind}); there is no lm_head.weight",
            "dstools takes language models: add lm_head.weight of the model that it was trained "
            "from; the other head is then copied along",
        )
    return Finding.error(
        "head-missing",
        "lm_head.weight",
        "no shard holds it, and the config does not tie it to the embedding: a model without head",
        "add lm_head.weight of the model that it was made from; or set tie_word_embeddings to true "
        "if its head is the embedding",
    )


def _contradicted(
    config: dict[str, Any], model: Model, change: dict[str, Any], evidence: Evidence
) -> Finding:
    """Return that tensors contradict some keys of the config."""
    messages = []
    for key, value in change.items():
        stated = f"is {printable(json.dumps(config[key]))}" if key in config else "is not set"
        messages.append(f"{key} {stated}, but {_evidence_for(key, value, evidence)}")
    if list(change) == ["num_nextn_predict_layers"]:
        number = change["num_nextn_predict_layers"]
        hint = f"set num_nextn_predict_layers to {number}"
        if number < model.num_mtp_layers:
            hint += ", or restore the tensors of the MTP layers from the original"
        return Finding.error("mtp-mismatch", "config.json", messages[0], hint)
    if len(change) > MAX_KEYS:
        del messages[MAX_KEYS:]
        messages.append(f"{len(change) - MAX_KEYS} more keys")
    if len(change) > MAX_KEYS or "model_type" in change:
        hint = "restore the config.json that the tensors were saved with"
    else:
        hint = ", ".join(f"set {key} to {json.dumps(value)}" for key, value in change.items())
        layers = change.get("num_hidden_layers")
        if layers is not None:
            if layers < model.num_hidden_layers:
                hint += "; or add the missing layers, from a whole copy"
            else:
                mtp = " and of MTP, and the key num_nextn_predict_layers" if evidence.mtp else ""
                hint += f"; to keep fewer layers, remove the tensors of all others{mtp}"
    return Finding.error("config-mismatch", "config.json", "; ".join(messages), hint)


def _evidence_for(key: str, value: Any, evidence: Evidence) -> str:
    """Return what the tensors say of a key."""
    match key:
        case "num_hidden_layers":
            mtp = f", and MTP layer {min(evidence.mtp)}" if evidence.mtp else ""
            return f"the shards hold layers 0-{value - 1}{mtp}{_example(value - 1, evidence)}"
        case "num_nextn_predict_layers":
            example = _example(max(evidence.mtp, default=-1), evidence)
            return f"the shards hold {counted(value, 'MTP layer')}{example}"
        case "n_routed_experts":
            return f"the layers in the shards have experts 0-{value - 1}"
        case "first_k_dense_replace":
            return f"layer {value} in the shards is the first with experts"
        case "model_type":
            return f"the tensors are of {value}"
        case "attention_bias" | "mlp_bias":
            return f"the shards hold {'its' if value else 'no such'} biases"
        case "q_lora_rank" if value is None:
            return "the shards hold q_proj, not q_a_proj and q_b_proj"
    return f"the tensors have {value}"


def _example(layer: int, evidence: Evidence) -> str:
    """Return a tensor of a layer, for messages; "" of a layer without any."""
    return f" ({evidence.first[layer]})" if layer in evidence.first else ""
