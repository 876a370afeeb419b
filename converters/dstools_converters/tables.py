"""Tables of TOML and JSON, read into frozen dataclasses; a misfit is an error by file and key.

    @dataclass(frozen=True)
    class Lora:
        rank: Positive = 16
        dropout: Share = 0.0
        targets: tuple[str, ...] = ("all-linear",)

A field without a default must be in the table. A number is finite and 0 or more, unless its field
says otherwise: `Annotated[float, Range(-1, 1)]`.
"""

import stat
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from reprlib import repr as short
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import not_utf8, strict_json

LIKE = 0.6  # least likeness of a word that is meant
MAX_COUNT = (1 << 63) - 1
MAX_BYTES = 1 << 28  # calibration.json of 671B is 25 MB
DAMAGED = "the file is damaged or of another version; make it again"
NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
Table = TypeVar("Table")


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes, both ends included."""

    low: float = 0.0
    high: float = sys.float_info.max


ANY = Range()
Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
Amount = Annotated[float, Range(0, 1e100)]  # its square is a float, too


@dataclass(frozen=True)
class Reader:
    """Reads the tables of one file.

    In TOML, which people write, an unknown key is an error and `false` stands for None. In JSON,
    which programs write, further keys are ignored and `null` stands for None.
    """

    file: str  # begins every error
    language: Literal["toml", "json"] = "toml"

    def read(self, cls: type[Table], table: Any, key: str = "") -> Table:
        """Return a dataclass filled from the table at `key`, "" for the file itself."""
        if type(table) is not dict:
            raise self.error(key, "is not a table", f"write [{key}]")
        kinds = _kinds(cls)  # type: ignore[arg-type] # a class is hashable
        if self.language == "toml":
            self.refuse_unknown(table, kinds, key)
        values = {}
        for name, (kind, is_required) in kinds.items():
            where = f"{key}.{name}" if key else name
            if name in table:
                values[name] = self.convert(table[name], kind, where)
            elif is_required:
                raise self.error(where, "is missing", f"give it {_noun(kind)}")
        return cls(**values)

    def refuse_unknown(self, table: dict[str, Any], known: Iterable[str], key: str = "") -> None:
        """Raise DstoolsError for a key of the table that is not known, naming the nearest."""
        for name in table:
            if name not in known:
                where = f"{key}.{name}" if key else name
                raise self.error(where, "no such key", nearest(name, known))

    def convert(self, value: Any, kind: Any, key: str, allowed: Range = ANY) -> Any:
        """Return a value as the type of a field."""
        origin, args = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin is Annotated:
            return self.convert(value, args[0], key, args[1])
        if origin is Literal:
            if value not in args:
                names = [name for name in args if name]
                problem = f"{short(value)} is none of {', '.join(names)}"
                raise self.error(key, problem, nearest(str(value), names))
            return value
        if origin in (Union, UnionType):  # of a type and None
            if value is (False if self.language == "toml" else None):
                return None
            return self.convert(value, args[0], key, allowed)
        if origin is tuple:
            return self._tuple(value, args, key, allowed)
        if origin is dict:
            if type(value) is not dict:
                raise self.error(key, "is not a table", f"write [{key}]")
            return {
                self._name(name, args[0], key): self.convert(item, args[1], f"{key}.{name}")
                for name, item in value.items()
            }
        if is_dataclass(kind):
            return self.read(kind, value, key)  # type: ignore[arg-type]
        return self._scalar(value, kind, key, allowed)

    def error(self, key: str, message: str, hint: str = "") -> DstoolsError:
        """Return an error that names file and key; for JSON the hint is to make the file again."""
        where = f"{printable(key)}: " if key else ""
        return DstoolsError(
            f"{self.file}: {where}{message}", DAMAGED if self.language == "json" else hint
        )

    def _tuple(self, value: Any, args: tuple[Any, ...], key: str, allowed: Range) -> Any:
        if type(value) is not list:
            of_tables = get_origin(args[0]) is dict or is_dataclass(args[0])
            hint = f"write [[{key}]]" if of_tables else "put it into [ ]"
            raise self.error(key, "is not a list", hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise self.error(
                key, f"must have {len(kinds)} items, not {len(value)}", "see the default"
            )
        return tuple(
            self.convert(item, kind, f"{key}[{number}]", allowed)
            for number, (item, kind) in enumerate(zip(value, kinds, strict=True))
        )

    def _name(self, name: str, kind: Any, key: str) -> Any:
        if kind is not int:
            return self.convert(name, kind, f"{key}.{name}")
        if not (name.isascii() and name.isdecimal() and str(int(name[:9])) == name):
            raise self.error(f"{key}.{name}", "is not a whole number")
        return int(name)

    def _scalar(self, value: Any, kind: Any, key: str, allowed: Range) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.error(key, f"{short(value)} is not {NOUNS[kind]}", f"give it {NOUNS[kind]}")
        if kind not in (int, float):
            return value
        high = min(MAX_COUNT, allowed.high) if kind is int else allowed.high
        if not allowed.low <= value <= high:  # False of NaN, too
            is_open = allowed.high == sys.float_info.max
            bounds = (
                f"{allowed.low:g} or more" if is_open else f"between {allowed.low:g} and {high:g}"
            )
            raise self.error(key, f"{short(value)} is out of range", f"it must be {bounds}")
        return kind(value)


@cache
def _kinds(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field, and whether it must be given."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        field.name: (
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
        )
        for field in fields(cls)
    }


def _noun(kind: Any) -> str:
    """Return what a field of this type takes, as a hint says it."""
    if get_origin(kind) is Annotated:
        return _noun(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return NOUNS.get(kind, "a list" if get_origin(kind) is tuple else "a table")


def nearest(
    word: str, known: Iterable[str], lead: str = "did you mean", spell: Callable[[str], str] = str
) -> str:
    """Return a hint that names the known word most like `word`, or all where none is like it.

    Known words are compared by their first characters, as many as `word` has and one more: "adamm"
    is like "adamw_torch", not "best" like "shortest".
    """
    words = list(known)

    def likeness(name: str) -> float:
        return SequenceMatcher(None, word, name[: len(word) + 1], autojunk=False).ratio()

    near = max(words, key=likeness, default="")
    if near and likeness(near) >= LIKE:
        return f"{lead} {spell(near)}"
    return f"known are {', '.join(map(spell, words))}"


def toml_table(path: Path, hint: str) -> dict[str, Any]:
    """Return the table in a TOML file; raise DstoolsError with `hint` where it cannot be read."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DstoolsError(
            f"{path}: {(error.strerror or 'cannot be read').lower()}", hint
        ) from error
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        if instead := not_utf8(raw):
            raise DstoolsError(f"{path}: {instead[0]}", instead[1]) from error
        raise DstoolsError(f"{path}: is not TOML: {error}", hint) from error


def json_table(
    path: Path, hint: str = "delete the file, or make it again"
) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no such file.

    Raises DstoolsError with `hint` where it is something else; the default is for files of ours.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise DstoolsError(f"{path}: is not a regular file, or is too large", hint)
        table = strict_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DstoolsError(f"{path}: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DstoolsError(f"{path}: is not valid JSON: {error}", hint) from error
    if not isinstance(table, dict):
        raise DstoolsError(f"{path}: is not a JSON object", hint)
    return table
