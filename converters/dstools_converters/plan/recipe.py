"""Which weights are quantized: ordered rules, the first that matches decides, DeepSeek's own come last.

A recipe file is TOML:

    format = "native"                      # or "compressed-tensors"
    scale_fmt = "ue8m0"                    # or "float32"

    [[rule]]
    role = ["routed_down", "shared_down"]  # any of these roles
    layers = "0-3"                         # and in these layers: "7", "0-3", "0-3,60"
    scheme = "keep"                        # or "fp8-block"

    [[rule]]
    name = "model.layers.*.self_attn.*"    # a glob on the tensor's name
    scheme = "keep"
"""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from dstools_converters.checkpoint.scheme import FORMATS, QUANTIZED_ROLES, SCALE_FORMATS, Format
from dstools_converters.errors import DstoolsError, printable
from dstools_converters.families.names import ROLES, TensorName
from dstools_kernels.fp8 import ScaleFormat

Scheme = Literal["fp8-block", "keep"]
Choice = TypeVar("Choice", bound=str)
KEYS = ("format", "scale_fmt", "rule")
RULE_KEYS = ("role", "layers", "name", "scheme")


@dataclass(frozen=True)
class Rule:
    """One `[[rule]]`: all that it names must match. A role is its weight, never its bias."""

    label: str  # "fp8.toml, rule 2"
    scheme: Scheme
    roles: tuple[str, ...] = ()
    layers: tuple[tuple[int, int], ...] = ()  # first and last, both included
    name: str = ""

    def matches(self, name: str, parsed: TensorName | None) -> bool:
        """Tell whether the rule speaks of this tensor."""
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
    """The rules of a file, before DeepSeek's own. None: the file leaves it to the command line."""

    rules: tuple[Rule, ...] = ()
    format: Format | None = None
    scale_format: ScaleFormat | None = None

    def decide(self, name: str, parsed: TensorName | None) -> Rule:
        """Return the first rule that matches; there always is one."""
        for rule in self.rules:
            if rule.matches(name, parsed):
                return rule
        if parsed is None or parsed.part != "weight":
            return KEEP
        return QUANTIZE if parsed.role in QUANTIZED_ROLES else KEEP

    def check_all_match(self, names: Iterable[tuple[str, TensorName | None]]) -> None:
        """Raise DstoolsError for a rule that speaks of no tensor, naming the nearest that is there."""
        there = list(names) if self.rules else []
        for rule in self.rules:
            if any(rule.matches(name, parsed) for name, parsed in there):
                continue
            roles = sorted({parsed.role for _, parsed in there if parsed is not None})
            if rule.name:
                # one name of each kind, so that the search stays short in a checkpoint of 90,000
                kinds = {re.sub(r"\d+", "0", name): name for name, _ in there}
                pattern = re.sub(r"\*|\?|\d+", "0", rule.name)
                hint = _nearest(pattern, kinds, "the nearest tensor is", kinds.__getitem__)
            elif rule.roles and not set(rule.roles) & set(roles):
                hint = _nearest(rule.roles[0], roles, "the nearest role in this checkpoint is")
            else:
                last = max(
                    (p.layer for _, p in there if p is not None and p.layer is not None), default=0
                )
                hint = f"the layers of this checkpoint are 0-{last}"
            raise DstoolsError(f"{rule.label}: matches no tensor", hint)


QUANTIZE = Rule("DeepSeek's own", "fp8-block")
KEEP = Rule("DeepSeek's own", "keep")


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file.

    Raises DstoolsError for what it does not understand, naming the nearest that it does.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DstoolsError(f"{path}: {error}", "a recipe is TOML; see README, Recipes") from error
    _refuse_unknown(found, KEYS, str(path))
    rules = found.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise DstoolsError(f"{path}: rule is no table", "each rule begins with a line [[rule]]")
    return Recipe(
        rules=tuple(_read_rule(rule, f"{path.name}, rule {i}") for i, rule in enumerate(rules, 1)),
        format=_choice(found.get("format"), FORMATS, f"{path}: format"),
        scale_format=_choice(found.get("scale_fmt"), SCALE_FORMATS, f"{path}: scale_fmt"),
    )


def _read_rule(found: dict[str, Any], label: str) -> Rule:
    _refuse_unknown(found, RULE_KEYS, label)
    schemes: tuple[Scheme, ...] = ("fp8-block", "keep")
    scheme = _choice(found.get("scheme"), schemes, f"{label}: scheme")
    if scheme is None:
        raise DstoolsError(f"{label}: has no scheme", 'add scheme = "keep" or scheme = "fp8-block"')
    roles = found.get("role", [])
    roles = [roles] if isinstance(roles, str) else roles
    for role in roles if isinstance(roles, list) else [roles]:
        _choice(role, ROLES, f"{label}: role")
    name = found.get("name", "")
    if not isinstance(name, str):
        raise DstoolsError(f"{label}: name {name!r} is no text", 'as in name = "model.layers.0.*"')
    layers = _read_layers(found.get("layers"), label)
    if not (roles or layers or name):
        raise DstoolsError(f"{label}: names no tensors", "add role, layers or name")
    return Rule(label, scheme, tuple(roles), layers, name)


def _read_layers(value: Any, label: str) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    if type(value) is int and value >= 0:
        return ((value, value),)
    parts = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else [""]
    spans = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part) for part in parts]
    if not all(spans):
        raise DstoolsError(f"{label}: layers {value!r} are no layers", 'as in layers = "0-3,60"')
    return tuple((int(span[1]), int(span[2] or span[1])) for span in spans if span is not None)


def _refuse_unknown(found: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            raise DstoolsError(
                f"{where}: unknown key {printable(key)!r}", _nearest(key, known, "did you mean")
            )


def _choice(value: Any, known: tuple[Choice, ...], where: str) -> Choice | None:
    if value is None:
        return None
    for choice in known:
        if value == choice:
            return choice
    raise DstoolsError(f"{where} {value!r} is unknown", _nearest(str(value), known, "did you mean"))


def _nearest(word: str, known: Iterable[str], lead: str, spell: Callable[[str], str] = str) -> str:
    words = list(known)
    near = get_close_matches(word, words, n=1, cutoff=0.5)
    return f"{lead} {spell(near[0])}" if near else f"known are {', '.join(map(spell, words))}"
