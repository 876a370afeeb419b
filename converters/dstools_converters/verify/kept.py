"""Lists of kept modules: what config.json names as not quantized, held against the tensors."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from dstools_converters.checkpoint.foreign import kept_beside
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.scheme import KEPT_LISTS, QUANTIZED_ROLES
from dstools_converters.checkpoint.storage import CODE_DTYPES
from dstools_converters.errors import Finding, printable
from dstools_converters.families.names import EXPERTS, Role
from dstools_converters.verify.readings import (
    Module,
    Reading,
    broken_patterns,
    exact_reading,
    kept_lists,
    loose_reading,
    reading_of,
)
from dstools_converters.verify.roles import layers_apart

# The modules as which engines run weights that are stored apart. Source: packed_modules_mapping of
# vLLM's and SGLang's models.
FUSED_NAMES: dict[Role, tuple[str, ...]] = {
    "q_proj": ("qkv_proj",),
    "k_proj": ("qkv_proj",),
    "v_proj": ("qkv_proj",),
    "q_a_proj": ("fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"),
    "kv_a_proj_with_mqa": ("fused_qkv_a_proj", "fused_qkv_a_proj_with_mqa"),
    "dense_gate": ("gate_up_proj",),
    "dense_up": ("gate_up_proj",),
    "shared_gate": ("gate_up_proj",),
    "shared_up": ("gate_up_proj",),
}
HINT = "quantize this folder into another: FP8 is copied, and the list written from the tensors"


def check_kept(inventory: Inventory) -> Iterator[Finding]:
    """Yield where the list and the tensors disagree, whichever engine reads them.

    An entry that not every engine matches with a weight is a note where the weight is kept, and a
    warning where it is FP8.
    """
    if inventory.scheme is None:
        return
    quantization = inventory.checkpoint.config["quantization_config"]
    yield from _check_lists(inventory, quantization)
    untried = broken_patterns(quantization)
    for text in untried:
        yield Finding.warning(
            "ignore-pattern",
            "config.json",
            f"the pattern {printable(text)!r} is broken, or too complex to be tried",
            "name the modules, or write a simpler pattern",
        )
    exact, loose = exact_reading(quantization), loose_reading(quantization)
    # llm-compressor names parents of FP8 modules, which no reader of its format takes for these
    is_native = inventory.scheme.format == "native"
    unnamed: defaultdict[Role, list[TensorInfo]] = defaultdict(list)
    named: defaultdict[tuple[str, bool, bool], list[tuple[str, TensorInfo]]] = defaultdict(list)
    for module, role, info in _modules(inventory):
        reason, is_fp8 = exact(module), info.dtype in CODE_DTYPES
        is_exact = reason is not None
        if reason is None and (is_native or not is_fp8):
            reason = loose(module)
        if reason is not None:
            named[_kind(reason), is_fp8, is_exact].append((reason, info))
        elif not is_fp8:
            unnamed[role].append(info)
    for infos in unnamed.values():
        where, message = infos[0].where, f"is {infos[0].dtype}{_more(infos)}"
        if untried:
            message += f"; whether {printable(untried[0])!r} names it was not tried"
            yield Finding.warning("role-kept", where, message, HINT)
        else:
            message += ", but config.json does not say that it is not quantized"
            yield Finding.error("role-kept", where, message, f"an engine looks for scales; {HINT}")
    for (_, is_fp8, is_exact), alike in named.items():
        reason, infos = alike[0][0], [info for _, info in alike]
        if is_fp8:
            message = f"is FP8{_more(infos)}, but config.json names it as not quantized: {reason}"
            make = Finding.error if is_exact else Finding.warning
            tail = "" if is_exact else ", which some engines match with it"
            yield make("kept-quantized", infos[0].where, message + tail, HINT)
        elif not is_exact:
            yield Finding.note(
                "kept-loosely",
                infos[0].where,
                f"is {infos[0].dtype}{_more(infos)}, as {reason}, which not every engine matches",
                "dstools verify --engine says whether that one does",
            )


def _check_lists(inventory: Inventory, quantization: dict[str, Any]) -> Iterator[Finding]:
    """Yield where two lists differ: an error in config.json, a warning in a file beside it."""
    lists = kept_lists(quantization)
    method = quantization.get("quant_method")
    if len(lists) > 1:
        one, other = (
            loose_reading({"quant_method": method, key: list(entries)})
            for key, entries in lists.items()
        )
        message = _difference(inventory, one, other, *lists)
        if message:
            message += "; an engine reads only one of them"
            yield Finding.error("kept-lists", "config.json", message, HINT)
    exact, loose = exact_reading(quantization), loose_reading(quantization)
    for file, key, entries in kept_beside(inventory.checkpoint.folder):
        beside = loose_reading({"quant_method": "fp8", KEPT_LISTS[1]: entries})
        message = _difference(inventory, beside, lambda m: exact(m) or loose(m), key, "config.json")
        if message:
            hint = f"remove {file}; dstools quantize into another folder does not copy it"
            yield Finding.warning(
                "kept-lists", file, f"{message}; some engines read this file first", hint
            )


def _difference(inventory: Inventory, one: Reading, other: Reading, *keys: str) -> str:
    """Return which of two lists, by their keys, alone names a module; "" where they agree."""
    first, second = keys
    for module, _, _ in _modules(inventory):
        is_named = one(module) is not None
        if is_named != (other(module) is not None):
            has, lacks = (first, second) if is_named else (second, first)
            return f"{has} names {printable(module.name)} as not quantized, {lacks} does not"
    return ""


def check_kept_by(inventory: Inventory, engine: str) -> Iterator[Finding]:
    """Yield weights of which `engine`, by its reading of the list, expects another storage.

    What is wrong for every engine is not repeated: `check_kept` has it, and `check_experts` the
    layers whose experts are not alike.
    """
    quantization = inventory.checkpoint.config["quantization_config"]
    reading, loose = reading_of(engine, quantization), loose_reading(quantization)
    exact, apart = exact_reading(quantization), layers_apart(inventory, EXPERTS[0])
    wrong: defaultdict[tuple[str, bool], list[tuple[str, TensorInfo]]] = defaultdict(list)
    for module, _, info in _modules(inventory):
        parsed = inventory.names[info.name]
        if module.experts and parsed is not None and parsed.layer in apart:
            continue
        reason, is_fp8 = reading(module), info.dtype in CODE_DTYPES
        if is_fp8 and reason is not None and exact(module) is None:
            wrong[_kind(reason), is_fp8].append((reason, info))
        elif not is_fp8 and reason is None:
            reason = loose(module)
            if reason is not None:
                wrong[_kind(reason), is_fp8].append((reason, info))
    for (_, is_fp8), alike in wrong.items():
        reason, infos = alike[0][0], [info for _, info in alike]
        if is_fp8:
            message = f"takes it for not quantized: {reason}"
        else:
            message = f"takes it for FP8: {reason}, which {engine} does not match with it"
        yield Finding.error(
            "engine-kept",
            infos[0].where,
            f"is {'FP8' if is_fp8 else infos[0].dtype}{_more(infos)}, but {engine} {message}",
            HINT,
        )


def _kind(reason: str) -> str:
    """Return what entries have in common that differ in the numbers of layers and experts alone."""
    return re.sub(r"\d+", "0", reason)


def _modules(inventory: Inventory) -> Iterator[tuple[Module, Role, TensorInfo]]:
    """Yield the modules that DeepSeek ships in FP8, and their weights as they are here."""
    spelling = inventory.model.spelling
    for name, parsed in inventory.names.items():
        if parsed is None or parsed.part != "weight" or parsed.role not in QUANTIZED_ROLES:
            continue
        module = spelling.module(parsed)
        parent = module.rpartition(".")[0]
        fused = tuple(f"{parent}.{fused}" for fused in FUSED_NAMES.get(parsed.role, ()))
        experts = ""
        if parsed.role in EXPERTS[0] and parsed.layer is not None:
            experts = spelling.experts_of(parsed.layer)
        yield Module(module, fused, experts), parsed.role, inventory.tensors[name]


def _more(infos: list[TensorInfo]) -> str:
    return f" (and {len(infos) - 1} more)" if len(infos) > 1 else ""
