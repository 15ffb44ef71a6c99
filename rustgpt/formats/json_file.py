"""Owns reading the JSON files of others: small enough, an object, and each value of its type."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from rustgpt.errors import RustGPTError
from rustgpt.file_set import LARGEST_JSON, reason


def read_object(
    path: Path, error: type[RustGPTError], missing: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the object that a file holds.

    Parameters
    ----------
    error
        What is raised if it cannot be read, or holds anything else.
    missing
        What is returned if there is no file; without, that is an error too.
    """
    text = read_text(path, error, "" if missing is not None else None)
    if not text and missing is not None:
        return missing
    try:
        content = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as damage:
        raise error(f"{path} is damaged: {reason(damage)}") from None
    if not isinstance(content, dict):
        raise error(f"{path} must hold an object, not a {type(content).__name__}")
    return content


def read_text(path: Path, error: type[RustGPTError], missing: str | None = None) -> str:
    """Return the text of a file in UTF-8; see `read_object`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could keep one waiting
            raise error(f"{path} is no file")
        with open(path, "rb") as file:
            data = file.read(LARGEST_JSON + 1)
        if len(data) > LARGEST_JSON:
            raise error(f"{path} has more than {LARGEST_JSON:,} bytes: it is no model's")
        return data.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if missing is None:
            raise error(f"{path} is missing") from None
        return missing
    except (OSError, ValueError, MemoryError) as damage:
        raise error(f"{path} cannot be read: {reason(damage)}") from None


class Fields:
    """The fields of a JSON file, as they are asked for by type.

    Parameters
    ----------
    path
        Of the file, for messages.
    values
        What is in it.
    error
        What is raised for a value that cannot be.
    """

    def __init__(self, path: Path, values: dict[str, Any], error: type[RustGPTError]) -> None:
        self.path, self.values, self.error = path, values, error

    def get(self, kind: type, names: str, default: Any) -> Any:
        """Return a field's value; it may have several names, and null is the default."""
        found = [(name, self.values.get(name)) for name in names.split()]
        found = [(name, value) for name, value in found if value is not None]
        if not found:
            return default
        name, value = found[0]
        for other, also in found[1:]:
            if also != value:
                self.refuse(f"{other} is {also!r:.40}, but {name} is {value!r:.40}")
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            self.refuse(f"{name} must be of type {kind.__name__}, not {value!r:.60}")
        return value

    def filled(self, defaults: dict[str, Any]) -> Fields:
        """Return the same fields with values for those that are absent or null."""
        given = {name: value for name, value in self.values.items() if value is not None}
        return Fields(self.path, {**self.values, **defaults, **given}, self.error)

    def must_be(self, name: str, needed: object, why: str) -> None:
        """Raise the error unless a field is absent, null, or of this value."""
        value = self.values.get(name)
        if value is not None and (type(value) is not type(needed) or value != needed):
            self.refuse(f"{name} is {value!r:.60}: {why}")

    def refuse(self, why: str) -> NoReturn:
        """Raise the error."""
        raise self.error(f"{self.path}: {why}")
