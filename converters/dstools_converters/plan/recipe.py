"""Rules for which weights are quantized: the first match counts, DeepSeek's own come last.

A recipe file is TOML:

    format = "native"                      # or "compressed-tensors"
    scale_fmt = "ue8m0"                    # or "float32"

    [[rule]]
    role = ["o_proj", "dense_down"]        # any of these roles
    layers = "0-3"                         # and in these layers: "7", "0-3", "0-3,60"
    scheme = "keep"                        # or "fp8-block"

    [[rule]]
    name = "model.layers.*.self_attn.*"    # a glob on the tensor's name
    scheme = "keep"
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from dstools_converters.checkpoint.scheme import QUANTIZED_ROLES, Format
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.tables import Reader, nearest, toml_table
from dstools_kernels.fp8 import ScaleFormat

Scheme = Literal["fp8-block", "keep"]


@dataclass(frozen=True)
class Rule:
    """One `[[rule]]`: every key of it must match. A role means its weight, never its bias."""

    label: str  # "fp8.toml, rule 2"
    scheme: Scheme
    roles: tuple[str, ...] = ()
    layers: tuple[tuple[int, int], ...] = ()  # first and last, both included
    name: str = ""

    def matches(self, name: str, parsed: TensorName | None) -> bool:
        """Return whether the rule matches this tensor."""
        if self.roles and (
            parsed is None or parsed.role not in self.roles or parsed.part == "bias"
        ):
            return False
        if self.layers:
            layer = None if parsed is None else parsed.layer
            if layer is None or not any(first <= layer <= last for first, last in self.layers):
                return False
        return not self.name or fnmatchcase(name, self.name)


@dataclass(frozen=True)
class Recipe:
    """The rules of a file, before DeepSeek's own. None: the command line decides."""

    rules: tuple[Rule, ...] = ()
    format: Format | None = None
    scale_format: ScaleFormat | None = None

    def decide(self, name: str, parsed: TensorName | None) -> Rule:
        """Return the first rule that matches; DeepSeek's own match every tensor."""
        for rule in self.rules:
            if rule.matches(name, parsed):
                return rule
        if parsed is None or parsed.part != "weight":
            return KEEP
        return QUANTIZE if parsed.role in QUANTIZED_ROLES else KEEP

    def check_all_match(self, names: Iterable[tuple[str, TensorName | None]]) -> None:
        """Raise DstoolsError for a rule that matches no tensor, naming the nearest name."""
        there = list(names) if self.rules else []
        for rule in self.rules:
            if any(rule.matches(name, parsed) for name, parsed in there):
                continue
            roles = sorted({parsed.role for _, parsed in there if parsed is not None})
            if rule.name:
                # one name of each kind, so that the search stays short in a checkpoint of 90,000
                kinds = {re.sub(r"\d+", "0", name): name for name, _ in there}
                pattern = re.sub(r"\*|\?|\d+", "0", rule.name)
                hint = nearest(pattern, kinds, "the nearest tensor is", kinds.__getitem__)
            elif rule.roles and not set(rule.roles) & set(roles):
                hint = nearest(rule.roles[0], roles, "the nearest role in this checkpoint is")
            else:
                last = max(
                    (p.layer for _, p in there if p is not None and p.layer is not None), default=0
                )
                hint = f"the layers of this checkpoint are 0-{last}"
            raise DstoolsError(f"{rule.label}: matches no tensor", hint)


QUANTIZE = Rule("DeepSeek's own", "fp8-block")
KEEP = Rule("DeepSeek's own", "keep")


@dataclass(frozen=True)
class _Rule:
    """The keys of a `[[rule]]`."""

    scheme: Scheme
    role: tuple[Role, ...] = ()
    layers: Any = None  # a number, or text: "0-3,60"
    name: str = ""


@dataclass(frozen=True)
class _File:
    """The keys of a recipe."""

    format: Format | None = None
    scale_fmt: ScaleFormat | None = None
    rule: tuple[dict[str, Any], ...] = ()


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file.

    Raises DstoolsError by file and key for what is not known, naming the nearest that is.
    """
    table = toml_table(path, "a recipe is TOML; see docs/quantization.md")
    file = Reader(str(path)).read(_File, table)
    rules = (_read_rule(rule, f"{path.name}, rule {n}") for n, rule in enumerate(file.rule, 1))
    return Recipe(tuple(rules), file.format, file.scale_fmt)


def _read_rule(table: dict[str, Any], label: str) -> Rule:
    role = table.get("role")
    one = {"role": [role]} if isinstance(role, str) else {}
    rule = Reader(label).read(_Rule, table | one)
    layers = _read_layers(rule.layers, label)
    if not (rule.role or layers or rule.name):
        raise DstoolsError(f"{label}: names no tensors", "add role, layers or name")
    return Rule(label, rule.scheme, rule.role, layers, rule.name)


def _read_layers(value: Any, label: str) -> tuple[tuple[int, int], ...]:
    """Return the first and last layer of each span, both included."""
    if value is None:
        return ()
    if type(value) is int and value >= 0:
        return ((value, value),)
    parts = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else [""]
    spans = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part) for part in parts]
    if not all(spans):
        raise DstoolsError(
            f"{label}: layers: {short(value)} does not name layers", 'as in layers = "0-3,60"'
        )
    return tuple((int(span[1]), int(span[2] or span[1])) for span in spans if span is not None)
