"""JSON that anybody may have written, taken value by value: what is not as it must be is named."""

import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dstools_converters.errors import DstoolsError, printable
from dstools_converters.files import strict_json

MAX_BYTES = 1 << 28  # calibration.json of 671B is 25 MB
MAX_COUNT = 1 << 63
MAX_NUMBER = 1e100  # its square is a float too


class Fields:
    """A JSON object in `path`; `where` is the way to it: "tensors.model.norm.weight.".

    Each method returns the value of a key, or raises DstoolsError naming file and key where it is
    missing or of another kind.
    """

    def __init__(self, path: Path, values: dict[str, Any], where: str = "") -> None:
        self.path = path
        self.values = values
        self.where = where

    def error(self, key: str, message: str) -> DstoolsError:
        """Return an error that names the file and the key."""
        return DstoolsError(
            f"{self.path}: {printable(self.where + key)} {message}",
            "the file is damaged or of another version; make it again",
        )

    def get(self, key: str) -> Any:
        """Return what is there, unchecked."""
        if key not in self.values:
            raise self.error(key, "is missing")
        return self.values[key]

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if type(value) is not str:
            raise self.error(key, "is no text")
        return value

    def text_or_none(self, key: str) -> str | None:
        """Return a text, or None where the file says null."""
        return None if self.get(key) is None else self.text(key)

    def count(self, key: str) -> int:
        """Return a whole number that is not negative."""
        return self.check_count(key, self.get(key))

    def choice(self, key: str, choices: Collection[str]) -> str:
        """Return a text that is one of `choices`."""
        value = self.text(key)
        if value not in choices:
            raise self.error(key, f"is none of {', '.join(choices)}")
        return value

    def check_count(self, key: str, value: Any) -> int:
        """Return `value` if it is a count."""
        if type(value) is not int or not 0 <= value < MAX_COUNT:
            raise self.error(key, "is no count")
        return value

    def number(self, key: str, largest: float = MAX_NUMBER) -> float:
        """Return a finite number that is not negative."""
        return self.check_number(key, self.get(key), largest)

    def number_or_none(self, key: str, largest: float = MAX_NUMBER) -> float | None:
        """Return a number, or None where the file says null: nothing was measured."""
        return None if self.get(key) is None else self.number(key, largest)

    def finite_or_none(self, key: str) -> float | None:
        """Return a number that may be below 0, as rounding makes of a KL of 0; None for null."""
        value = self.get(key)
        if value is None:
            return None
        is_negative = type(value) is float and value < 0
        return -self.check_number(key, -value) if is_negative else self.number(key)

    def share_or_none(self, key: str) -> float | None:
        """Return a number from 0 to 1, or None where the file says null."""
        value = self.number_or_none(key)
        if value is not None and value > 1:
            raise self.error(key, "is more than 1, and no share")
        return value

    def check_number(self, key: str, value: Any, largest: float = MAX_NUMBER) -> float:
        """Return `value` if it is finite and not negative."""
        if type(value) not in (int, float) or not 0 <= value <= largest:
            raise self.error(key, "is no number from 0 up")
        return float(value)

    def items(self, key: str) -> list[Any]:
        """Return a list, its items unchecked."""
        value = self.get(key)
        if type(value) is not list:
            raise self.error(key, "is no list")
        return value

    def fields(self, key: str) -> "Fields":
        """Return the object at `key`."""
        return self.check_fields(key, self.get(key))

    def check_fields(self, key: str, value: Any) -> "Fields":
        """Return `value` as fields if it is an object."""
        if type(value) is not dict:
            raise self.error(key, "is no object")
        return Fields(self.path, value, f"{self.where}{key}.")

    def fields_or_none(self, key: str) -> "Fields | None":
        """Return the object at `key`, or None where the file says null."""
        return None if self.get(key) is None else self.fields(key)

    def by_layer(self, layers: int) -> Iterator[tuple[int, str]]:
        """Yield every key of this object as the number of a layer, and as it is spelled."""
        for key in self.values:
            is_natural = key.isascii() and key.isdecimal() and len(key) < 7
            if not is_natural or str(int(key)) != key or int(key) >= layers:
                raise self.error(key, f"is none of the model's {layers} layers")
            yield int(key), key


def read_fields(path: Path) -> Fields | None:
    """Return the JSON object in a file, None where there is no such file.

    Raises DstoolsError where it is something else.
    """
    hint = "delete the file, or make it again"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise DstoolsError(f"{path}: is no regular file of a sane size", hint)
        found = strict_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DstoolsError(f"{path}: is no JSON: {error}", hint) from error
    if not isinstance(found, dict):
        raise DstoolsError(f"{path}: is no JSON object", hint)
    return Fields(path, found)
