"""YAML that every reader takes for the same: a strict loader, and a writer that quotes by it.

The Hub's parser, js-yaml, follows YAML 1.2; PyYAML, with which clients read cards, 1.1. Where the
two differ, such as 1e3 (a number in 1.2) and no (a boolean in 1.1), an unquoted word is not text
here, and text is written in quotes. Aliases and merge keys are refused: a few lines of them stand
for gigabytes.
"""

import re
from collections.abc import Hashable
from math import inf
from typing import Any

import yaml  # type: ignore[import-untyped]

from dstools_converters.errors import DstoolsError, printable

MAX_BYTES = 256 << 10  # of front matter; PyYAML reads about 0.1 MB a second
KINDS = ("null", "bool", "int", "float", "timestamp", "str", "seq", "map")
NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$")  # YAML 1.2, core schema

BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # without types, all is Any
    """SafeLoader without aliases, merge keys, keys given twice, and tags of other types."""

    yaml_constructors = {  # noqa: RUF012 # as PyYAML declares it
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in KINDS
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias (*name); write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key_node, _ in node.value:
            mark = key_node.start_mark
            if key_node.tag == "tag:yaml.org,2002:merge":
                problem = "a merge key (<<); write its keys out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in keys:
                problem = f"{key_node.value} is given twice; remove one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            if isinstance(key, Hashable):
                keys.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """SafeDumper that writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> Any:
    style = '"' if BREAKS.search(text) else None  # PyYAML's other styles lose them
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def load(text: str, where: str, first_line: int = 1) -> Any:
    """Return the value of a YAML document: dicts, lists, str, int, float, bool, None and dates.

    Raises DstoolsError, naming `where` and the line, counted from `first_line`.
    """
    if len(text) > MAX_BYTES:
        message = f"{where}: {len(text):,} characters of YAML, more than {MAX_BYTES:,}"
        raise DstoolsError(message, "move most of it into the text, or into another file")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + first_line}: " if error.problem_mark else ""
        problem = printable(" ".join(str(error.problem).split()))
        hint = "write spaces instead of tabs" if "'\\t'" in problem else "correct that line"
        raise DstoolsError(f"{where}: {line}{problem}", hint) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = printable(" ".join(str(error).split()))
        raise DstoolsError(f"{where}: is not valid YAML: {problem}", "correct it") from error
    except RecursionError as error:
        raise DstoolsError(f"{where}: is nested too deeply", "write it flat") from error


def dump(value: Any) -> str:
    """Return `value` as a YAML document, mappings in their order, one item to a line."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=inf,
    )
    return text
