"""The model of an exported folder: its weights' shapes, ranks, pool and genai_config.json.

What the graphs were made for is worked out anew from config.json and export.json, by the rules of
docs/export.md, not by the code that wrote them.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dstools_converters.checkpoint.scheme import BLOCK_SIZE
from dstools_converters.errors import DstoolsError, Finding, printable
from dstools_converters.export.folder import (
    DATA,
    DRAFT_GRAPH,
    EXPERTS,
    EXPORT,
    GENAI_CONFIG,
    GRAPH,
    Export,
    Weight,
    pairs_of,
    rank_folders,
)
from dstools_converters.export.genai import settings_of_sessions
from dstools_converters.export.ranks import Ranks
from dstools_converters.families.names import Role
from dstools_converters.families.shapes import MLA, Model, read_model
from dstools_converters.tables import json_table

CONFIG = "config.json"
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
STACKS: dict[Role, str] = {
    "routed_gate": "gate_proj",
    "routed_up": "up_proj",
    "routed_down": "down_proj",
}
F32_ROLES = ("router", "e_score_correction_bias")
MADE_AGAIN = "export the model again"


def check_model(folder: Path, export: Export) -> Iterator[Finding]:
    """Yield where config.json, genai_config.json, ranks, pool and weights contradict each other."""
    try:
        config = json_table(folder / CONFIG)
        genai = json_table(folder / GENAI_CONFIG)
        if config is None:
            if export.kind != "deepseek-inference":
                hint = "copy it from the checkpoint"
                yield Finding.error("config", CONFIG, "is missing", hint)
            return
        model = read_model(config)
    except DstoolsError as error:
        where, _, message = str(error).removeprefix(f"{folder}/").partition(": ")
        yield Finding.error("config", where, message, error.hint)
        return
    if model.model_type != export.model_type:
        message = f"model_type is {model.model_type!r}, {export.model_type!r} in {EXPORT}"
        yield Finding.error("config", CONFIG, message, "it is of another model")
        return
    if export.kind == "onnx":
        yield from _check_ranks(export)
        yield from _check_pool(export, model, config)
        yield from _check_weights(export, model)
    is_served = export.kind == "dense" or not (_ranks(export).count > 1 or export.expert_inputs)
    if export.kind == "deepseek-inference":
        return
    if genai is not None:
        yield from _check_genai(export, model, genai)
    elif is_served:
        yield Finding.error("genai-config", GENAI_CONFIG, "is missing", MADE_AGAIN)


def _ranks(export: Export) -> Ranks:
    return Ranks(export.tp, export.ep)


def _check_ranks(export: Export) -> Iterator[Finding]:
    """Yield files that a rank lacks, and those of a rank that is not there."""
    graphs = [GRAPH, *([DRAFT_GRAPH] if export.has_mtp else [])]
    data = [DATA, *([EXPERTS] if export.expert_inputs else [])]
    wanted = {place + name for place in rank_folders(_ranks(export).count) for name in graphs}
    there = {name for name in export.files if name.endswith(".onnx")}
    wanted |= {place + name for place in rank_folders(_ranks(export).count) for name in data}
    there |= export.weights.keys()
    ranks = f"{_ranks(export).count} ranks" if _ranks(export).count > 1 else "one rank"
    mtp = "with" if export.has_mtp else "without"
    for name in sorted(wanted ^ there):
        what = "lists no such file" if name in wanted else "lists this file as well"
        message = f"{EXPORT} is of {ranks} {mtp} MTP, and {what}"
        yield Finding.error("ranks", printable(name), message, MADE_AGAIN)


# ------------------------------------------------------------------------------------------ pool


def _check_pool(export: Export, model: Model, config: dict[str, Any]) -> Iterator[Finding]:
    """Yield where the pool does not hold the rows it is made for, or its bytes are others."""
    attention, pool = model.attention, export.pool
    if pool is None or not isinstance(attention, MLA):
        yield Finding.error("pool", EXPORT, "has no pool, or the model no latents", MADE_AGAIN)
        return
    pages = -(-pool.context_length // pool.page_size)
    wanted = (1 + export.has_mtp) * pool.max_batch_size * pages
    if pool.num_blocks < wanted:
        message = f"num_blocks is {pool.num_blocks}; its rows at their longest take {wanted}"
        yield Finding.error("pool", EXPORT, message, MADE_AGAIN)
    positions = config.get("max_position_embeddings")
    if type(positions) is int and pool.context_length > positions:
        message = f"context_length is {pool.context_length}; the model has {positions} positions"
        yield Finding.error("pool", EXPORT, message, MADE_AGAIN)
    caches = 2 * (pairs_of(model.num_hidden_layers) + export.has_mtp)
    nbytes = caches * attention.latent_width * ITEM_BYTES[export.dtype]
    if pool.token_bytes != nbytes:
        message = f"token_bytes is {pool.token_bytes}; {caches} caches take {nbytes}"
        yield Finding.error("pool", EXPORT, message, MADE_AGAIN)
    for note in export.graphs:
        is_draft = note.file.endswith(DRAFT_GRAPH)
        caches = 2 * (1 if is_draft else pairs_of(model.num_hidden_layers))
        found = [port for port in note.inputs if port.name.startswith("past_key_values.")]
        shape = (str(pool.page_size), "1", str(attention.latent_width))
        if len(found) != caches or any(port.shape[1:] != shape for port in found):
            message = f"its caches are not {caches} of pages [{', '.join(shape)}]"
            yield Finding.error("pool", printable(note.file), message, MADE_AGAIN)
        logits = [port.shape[-1:] for port in note.outputs if port.name == "logits"]
        if logits != [(str(model.vocab_size),)]:
            message = f"its logits are not those of {model.vocab_size} tokens (vocab_size)"
            yield Finding.error("vocabulary", printable(note.file), message, MADE_AGAIN)


# --------------------------------------------------------------------------------------- weights


def _check_weights(export: Export, model: Model) -> Iterator[Finding]:
    """Yield tensors that the model lacks, lacks here, or has in another shape or dtype."""
    if not export.has_mtp:
        model = replace(model, num_mtp_layers=0)
    for rank, place in enumerate(rank_folders(_ranks(export).count)):
        wanted = dict(_wanted(export, model, rank))
        for name in (f"{place}{DATA}", f"{place}{EXPERTS}"):
            for weight in export.weights.get(name, ()):
                where = f"{name}: {printable(weight.name)}"
                shape, dtypes = wanted.pop(weight.name, (None, ()))
                if shape is None:
                    message = "is listed, and a model of this config.json has no such tensor"
                    yield Finding.error("weight-unknown", where, message, MADE_AGAIN)
                elif weight.shape != shape or weight.dtype not in dtypes:
                    message = f"is {weight.dtype} {list(weight.shape)}; config.json makes it "
                    message += f"{' or '.join(dtypes)} {list(shape)}"
                    yield Finding.error("weight-shape", where, message, MADE_AGAIN)
        scaled = _scaled(export, place)
        for name in wanted:
            if not name.endswith("weight_scale_inv") or name in scaled:
                message = f"{EXPORT} lists no such tensor, and the model has it"
                where = f"{place}{DATA}: {printable(name)}"
                yield Finding.error("weight-missing", where, message, MADE_AGAIN)


def _scaled(export: Export, place: str) -> set[str]:
    """Return the names of the scales of those weights of a rank that are codes."""
    files = (f"{place}{DATA}", f"{place}{EXPERTS}")
    weights: list[Weight] = [w for name in files for w in export.weights.get(name, ())]
    return {f"{w.name}_scale_inv" for w in weights if w.dtype == "F8_E4M3"}


def _wanted(
    export: Export, model: Model, rank: int
) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[str, ...]]]]:
    """Yield name, shape and possible dtypes of each tensor of a rank's graphs."""
    attention, ranks, pool = model.attention, _ranks(export), export.pool
    if pool is None or not isinstance(attention, MLA):
        return
    plain: tuple[str, ...] = (FLOATS[export.dtype],)
    for part in ("cos", "sin"):
        shape: tuple[int, ...] = (pool.context_length, attention.qk_rope_head_dim // 2)
        yield f"rotary.{part}", (shape, ("F32",))
    for name, shape, count in model.kinds():
        own = list(shape)
        slice_ = ranks.part(name, shape, rank)
        if slice_ is not None:
            own[slice_.dim] = slice_.end - slice_.begin
        spelled = model.spell(name)
        lead: tuple[int, ...] = ()
        if name.expert is not None:
            experts = model.spelling.experts_of(name.layer or 0)
            spelled = f"{experts}.{STACKS[name.role]}.{name.part}"
            lead = (len(ranks.experts(count, rank)),)
            yield f"{experts}.map", ((count,), ("I32",))
        if name.role == "kv_b_proj":
            heads = attention.num_heads // ranks.tp
            module = spelled.removesuffix("kv_b_proj.weight")
            for half, size in (("w_k", attention.qk_nope_head_dim), ("w_v", attention.v_head_dim)):
                yield f"{module}{half}", ((heads, size, attention.kv_lora_rank), plain)
            continue
        is_router = name.role in F32_ROLES
        dtypes = ("F32",) if is_router else plain
        if export.has_codes and name.part == "weight" and len(own) == 2 and not is_router:
            dtypes = (*plain, "F8_E4M3")
            grid = tuple(-(-side // BLOCK_SIZE) for side in own)
            yield f"{spelled}_scale_inv", ((*lead, *grid), ("F32",))
        yield spelled, ((*lead, *own), dtypes)


# ----------------------------------------------------------------------------- genai_config.json


def _check_genai(export: Export, model: Model, genai: dict[str, Any]) -> Iterator[Finding]:
    """Yield keys of genai_config.json that are not what the folder is made for."""
    wanted: dict[str, Any] = {
        "model.vocab_size": model.vocab_size,
        "model.decoder.hidden_size": model.hidden_size,
        "model.decoder.num_attention_heads": model.attention.num_heads,
    }
    attention, pool = model.attention, export.pool
    if isinstance(attention, MLA) and export.kind == "onnx":
        wanted |= {
            "model.decoder.filename": GRAPH,
            "model.decoder.num_hidden_layers": pairs_of(model.num_hidden_layers),
            "model.decoder.num_key_value_heads": 1,
            "model.decoder.head_size": attention.latent_width,
            "model.mtp.filename": DRAFT_GRAPH if export.has_mtp else None,
            "model.mtp.head_size": attention.latent_width if export.has_mtp else None,
            "engine.dynamic_batching.prefix_caching": not export.has_mtp,
        }
    if pool is not None:
        wanted |= {
            "model.context_length": pool.context_length,
            "search.max_length": pool.context_length,
        }
    if pool is not None and export.kind == "onnx":
        wanted |= {
            "engine.dynamic_batching.block_size": pool.page_size,
            "engine.dynamic_batching.num_blocks": pool.num_blocks,
            "engine.dynamic_batching.max_batch_size": pool.max_batch_size,
        }
    for key, value in wanted.items():
        found = _at(genai, key)
        if found != value or type(found) is not type(value):
            message = f"{key} is {_shown(found)}; {EXPORT} and {CONFIG} make it {_shown(value)}"
            yield Finding.error("genai-config", GENAI_CONFIG, message, MADE_AGAIN)
    for key in settings_of_sessions(genai):
        message = f"{printable(key)} is not of dstools, and may load code of another"
        yield Finding.error("genai-code", GENAI_CONFIG, message, MADE_AGAIN)
    ends = _at(genai, "model.eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if type(end) is not int or not 0 <= end < model.vocab_size:
            message = f"model.eos_token_id: {_shown(end)} is not a token of the vocabulary"
            yield Finding.error("genai-config", GENAI_CONFIG, message, MADE_AGAIN)
    graph = _at(genai, "model.decoder.filename")
    if export.kind == "dense" and graph not in export.files:
        message = f"model.decoder.filename is {_shown(graph)}, which {EXPORT} does not list"
        yield Finding.error("genai-config", GENAI_CONFIG, message, MADE_AGAIN)


def _at(table: Any, key: str) -> Any:
    """Return the value at a dotted key, None without one."""
    for part in key.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    return table


def _shown(value: Any) -> str:
    return "missing" if value is None else printable(repr(value)[:80])
