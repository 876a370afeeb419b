"""How engines read the lists of kept modules in `quantization_config`: which entry names what.

Each engine matches in its own way. Sources, in the installed packages: vLLM 0.32, quant_utils.py
(is_layer_skipped) and compressed_tensors/utils.py; SGLang 0.5.23, quantization/utils.py, fp8.py and
compressed_tensors/utils.py; transformers 5.23, quantizers_utils.py (should_convert_module);
compressed-tensors 0.20, utils/match.py. TensorRT-LLM's exclude_modules are shell patterns on whole
names (read on its main branch, 2026).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from dstools_converters.checkpoint.scheme import KEPT_LISTS
from dstools_converters.errors import printable

GLOB = re.compile(r"[*?\[]")
PLAIN = re.compile(r"[\w.-]+")


class Module(NamedTuple):
    """A module whose weight may be quantized, under the names that engines know it by."""

    name: str  # model.layers.1.mlp.experts.7.gate_proj
    fused: tuple[str, ...]  # ...self_attn.qkv_proj of a q_proj
    experts: str  # model.layers.1.mlp.experts of a routed expert, else ""


# Why config.json takes a module for not quantized, None where it takes it for quantized.
Reading = Callable[[Module], str | None]


def kept_lists(quantization: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the lists that are not empty, by their keys, in the order in which vLLM looks."""
    is_native = quantization.get("quant_method") != "compressed-tensors"
    keys = KEPT_LISTS if is_native else ("ignore",)
    lists = {key: _strings(quantization.get(key)) for key in keys}
    return {key: entries for key, entries in lists.items() if entries}


def reading_of(engine: str, quantization: dict[str, Any]) -> Reading:
    """Return how `engine` reads this `quantization_config`."""
    if quantization.get("quant_method") == "compressed-tensors":
        return _compressed_tensors(quantization, engine)
    lists = kept_lists(quantization)
    if engine in ("transformers", "trtllm"):
        lists.pop("ignored_layers", None)
    if engine == "sglang" and "ignored_layers" in quantization:  # even if it is empty
        lists.pop("modules_to_not_convert", None)
    for key, entries in lists.items():  # the first that is not empty
        match engine:
            case "vllm":
                return _vllm(key, entries)
            case "sglang":
                return _sglang(key, entries)
            case "transformers":
                return _transformers(key, entries)
            case _:
                return _tensorrt_llm(key, entries)
    return lambda module: None


def exact_reading(quantization: dict[str, Any]) -> Reading:
    """Return what every reader agrees on: whole names; patterns and targets of compressed-tensors.

    The name of the module that holds all experts of a layer is a whole name of each of them.
    """
    if quantization.get("quant_method") == "compressed-tensors":
        return _compressed_tensors(quantization, "transformers")
    reasons = {entry: _reason(key, entry) for key, entry in _entries(quantization)}

    def read(module: Module) -> str | None:
        return reasons.get(module.name) or reasons.get(module.experts)

    return read


def loose_reading(quantization: dict[str, Any]) -> Reading:
    """Return what some reader or release means: parts of names, fused names and patterns."""
    reasons: dict[str, str] = {}
    globs, patterns = [], []
    for key, entry in _entries(quantization):
        if entry.startswith("re:"):
            patterns.append((_pattern(entry.removeprefix("re:")), _reason(key, entry)))
        elif GLOB.search(entry):
            globs += [(glob, _reason(key, entry)) for glob in (entry, f"{entry}.*")]
        reasons[entry.strip(".")] = _reason(key, entry)
    counts = _counts(reasons)

    def read(module: Module) -> str | None:
        for name in (module.name, *module.fused):
            for part in _runs(name, counts):
                if part in reasons:
                    return reasons[part]
        for pattern, reason in patterns:
            if pattern is not None and pattern.match(module.name):
                return reason
        return next((reason for glob, reason in globs if fnmatchcase(module.name, glob)), None)

    return read


def broken_patterns(quantization: dict[str, Any]) -> list[str]:
    """Return the `re:` entries that are broken, or may be too slow to be tried."""
    patterns = [entry for _, entry in _entries(quantization) if entry.startswith("re:")]
    return [entry for entry in patterns if _pattern(entry.removeprefix("re:")) is None]


# ---------------------------------------------------------------------------------------- engines


def _vllm(key: str, entries: tuple[str, ...]) -> Reading:
    """Whole names, fused or not; a layer's experts by any entry that holds their path."""
    texts = frozenset(entries)
    with_path = _holding(entries)

    def read(module: Module) -> str | None:
        if module.experts:
            entry = with_path(module.experts)
        else:
            names = (name for name in (*module.fused, module.name) if name in texts)
            entry = next(names, None)
            if entry is None and "experts" in module.name and not module.fused:
                entry = with_path(module.name)
        return None if entry is None else _reason(key, entry)

    return read


def _sglang(key: str, entries: tuple[str, ...]) -> Reading:
    """Any run of whole parts of a name, with or without `model.`; never a fused name."""
    reasons = {}
    for entry in entries:
        bare = entry.removeprefix("model.").rstrip(".")
        reasons[bare] = reasons[f"model.{bare}"] = _reason(key, entry)
    counts = _counts(reasons)
    with_path = _holding(entries)

    def read(module: Module) -> str | None:
        name = module.experts or module.name
        for part in _runs(name, counts):
            if part in reasons:
                return reasons[part]
        entry = with_path(name) if "experts" in name else None
        return None if entry is None else _reason(key, entry)

    return read


def _transformers(key: str, entries: tuple[str, ...]) -> Reading:
    """Regular expressions at the start, up to the end of a part, and any text at the end."""
    plain = {entry: _reason(key, entry) for entry in entries if PLAIN.fullmatch(entry)}
    lengths = {len(entry) for entry in plain}
    patterns = [
        (_pattern(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))"), _reason(key, entry))
        for entry in entries
        if not PLAIN.fullmatch(entry)
    ]

    def read(module: Module) -> str | None:
        name = module.experts or module.name
        for length in lengths:
            start, follows = name[:length], name[length : length + 1]
            if start in plain and (follows in ("", ".") or start.endswith(".")):
                return plain[start]
            if name[-length:] in plain:
                return plain[name[-length:]]
        matches = (reason for p, reason in patterns if p is not None and p.match(name))
        return next(matches, None)

    return read


def _tensorrt_llm(key: str, entries: tuple[str, ...]) -> Reading:
    """Shell patterns on whole names, fused or not."""
    texts = frozenset(entries)
    globs = [entry for entry in entries if GLOB.search(entry)]

    def read(module: Module) -> str | None:
        for name in (module.experts or module.name, *module.fused):
            if name in texts:
                return _reason(key, name)
            for glob in globs:
                if fnmatchcase(name, glob):
                    return _reason(key, glob)
        return None

    return read


def _compressed_tensors(quantization: dict[str, Any], engine: str) -> Reading:
    """Whole names and patterns: ignored, or no target.

    vLLM and SGLang match fused names, too, and SGLang the ends of names.
    """
    ignored = _Names("ignore", _strings(quantization.get("ignore")), engine)
    groups = quantization.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else ()
    targets = [text for group in groups for text in _strings(group.get("targets"))]
    targeted = _Names("targets", targets, engine)
    has_all = not targets or "Linear" in targets

    def read(module: Module) -> str | None:
        reason = ignored.find(module)
        if reason is None and not has_all and targeted.find(module) is None:
            return "no target of config_groups names it"
        return reason

    return read


class _Names:
    """Entries of compressed-tensors: names and `re:` patterns."""

    def __init__(self, key: str, entries: Iterable[str], engine: str) -> None:
        self.reasons = {entry: _reason(key, entry) for entry in entries}
        self.patterns = [
            (_pattern(entry.removeprefix("re:")), reason)
            for entry, reason in self.reasons.items()
            if entry.startswith("re:")
        ]
        self.counts = _counts(self.reasons) if engine == "sglang" else frozenset[int]()
        self.has_fused = engine != "transformers"

    def find(self, module: Module) -> str | None:
        for name in (module.name, *(module.fused if self.has_fused else ())):
            parts = name.split(".")
            suffixes = (".".join(parts[-count:]) for count in self.counts if count <= len(parts))
            for text in (name, *suffixes):
                if text in self.reasons:
                    return self.reasons[text]
            for pattern, reason in self.patterns:
                if pattern is not None and pattern.match(name):
                    return reason
        return None


# ------------------------------------------------------------------------------------------ parts

MAX_REPEATED = 3  # repetitions of a pattern


@cache
def _pattern(text: str) -> re.Pattern[str] | None:
    """Return a pattern compiled, None for one that is broken or may be too slow.

    It comes from the checkpoint: a repeated group, or many repetitions, can take exponential time.
    """
    text = text.removesuffix(".*")  # which only ends what has matched
    if re.search(r"\)[*+?{]", text) or sum(map(text.count, "*+{")) > MAX_REPEATED:
        return None
    try:
        return re.compile(text)
    except re.error:
        return None


def _entries(quantization: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, entry) of all lists."""
    for key, entries in kept_lists(quantization).items():
        for entry in entries:
            yield key, entry


def _reason(key: str, entry: str) -> str:
    return f"{key} has {printable(entry)!r}"


def _holding(entries: tuple[str, ...]) -> Callable[[str], str | None]:
    """Return a search for the first entry of experts that holds a path."""
    experts = [entry for entry in entries if "experts" in entry]

    @cache
    def find(path: str) -> str | None:
        return next((entry for entry in experts if path in entry), None)

    return find


def _runs(name: str, counts: Iterable[int]) -> Iterator[str]:
    """Yield the runs of parts of a name between dots, of these numbers of parts."""
    parts = name.split(".")
    for count in counts:
        for start in range(len(parts) - count + 1):
            yield ".".join(parts[start : start + count])


def _counts(names: Iterable[str]) -> frozenset[int]:
    return frozenset(name.count(".") + 1 for name in names)


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
