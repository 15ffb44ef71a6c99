"""Owns the kinds of fields of requests: what each accepts, and how its description says so."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from rustgpt.serve.errors import ApiError, invalid

Schema = dict[str, Any]


class Field(Protocol):
    """A field of a request. Null is the same as none, unless it is required."""

    def read(self, name: str, value: Any) -> Any:
        """Return the value; ApiError if it is wrong."""

    def schema(self) -> Schema:
        """Return the JSON schema of the values."""


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, or above `low`."""

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def read(self, name: str, value: Any) -> Any:
        accepted = int if self.whole else (int, float)
        if isinstance(value, float) and self.whole and value.is_integer():
            value = int(value)
        is_one = isinstance(value, accepted) and not isinstance(value, bool)
        if not is_one or not self.low <= value <= self.high or (self.above and value == self.low):
            kind = "a whole number" if self.whole else "a number"
            start = "above" if self.above else "from"
            range_ = f" {start} {self.low:g} to {self.high:g}" if self.high < math.inf else ""
            raise invalid(name, f"{name} must be {kind}{range_}, got {value!r:.60}")
        return value

    def schema(self) -> Schema:
        found: Schema = {"type": "integer" if self.whole else "number"}
        found["exclusiveMinimum" if self.above else "minimum"] = self.low
        return found if self.high == math.inf else {**found, "maximum": self.high}


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, bool):
            raise invalid(name, f"{name} must be true or false, got {value!r:.60}")
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text:
    """A text of `low` to `high` characters; one of the `choices`, if there are any."""

    high: int
    low: int = 0
    choices: tuple[str, ...] = ()

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            wanted = f"one of {', '.join(self.choices)}" if self.choices else "text"
            raise invalid(name, f"{name} must be {wanted}, got {value!r:.60}")
        if len(value) > self.high:
            raise too_long(name, len(value), self.high)
        if len(value) < self.low:
            raise invalid(name, f"{name} must not be empty")
        return value

    def schema(self) -> Schema:
        if self.choices:
            return {"type": "string", "enum": [*self.choices]}
        return {"type": "string", "minLength": self.low, "maxLength": self.high}


@dataclass(frozen=True)
class Texts:
    """One text or a list of them, none of them empty."""

    most: int
    characters: int

    def read(self, name: str, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or len(texts) > self.most:
            raise invalid(name, f"{name} must be text or a list of at most {self.most} texts")
        return [Text(self.characters, 1).read(name, text) for text in texts]

    def schema(self) -> Schema:
        one = Text(self.characters, 1).schema()
        return {"anyOf": [one, {"type": "array", "items": one, "maxItems": self.most}]}


@dataclass(frozen=True)
class Object:
    """An object with these fields."""

    fields: Mapping[str, Field]

    def read(self, name: str, value: Any) -> Any:
        return read_fields(self.fields, value, name)

    def schema(self) -> Schema:
        return object_schema(self.fields)


@dataclass(frozen=True)
class Biases:
    """Numbers from -100 to 100 by token id."""

    most: int = 1024

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) > self.most:
            raise invalid(name, f"{name} must be an object of at most {self.most} token ids")
        for token, bias in value.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise invalid(name, f"{name} must have token ids as names, got {token!r:.60}")
            Number(-100, 100).read(name, bias)
        return {int(token): float(bias) for token, bias in value.items()}

    def schema(self) -> Schema:
        return {
            "type": "object",
            "maxProperties": self.most,
            "patternProperties": {"^[0-9]{1,9}$": Number(-100, 100).schema()},
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Ignored:
    """Anything, which changes nothing of what is answered."""

    def read(self, name: str, value: Any) -> Any:
        return None

    def schema(self) -> Schema:
        return {"description": "Is accepted and changes nothing."}


@dataclass(frozen=True)
class LeftOut:
    """A list of what the answer may use, and does not: whoever sends it is told so by a header."""

    def read(self, name: str, value: Any) -> bool | None:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise invalid(name, f"{name} must be a list of objects")
        return bool(value) or None

    def schema(self) -> Schema:
        return {"type": "array", "items": {"type": "object"}}


@dataclass(frozen=True)
class Refused:
    """A field of OpenAI's which a model here cannot serve; what asks for nothing is accepted."""

    nothing: tuple[Any, ...] = ()

    def read(self, name: str, value: Any) -> Any:
        if value in self.nothing:
            return None
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise invalid(name, f"{name} is not supported by this server", "unsupported_parameter")

    def schema(self) -> Schema:
        return {"enum": [*self.nothing, None]}


def read_fields(
    fields: Mapping[str, Field], body: Any, where: str = "", required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the values of a request's fields that are given and not null.

    Raises
    ------
    ApiError
        If one is unknown, wrong or missing.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(body, dict):
        raise invalid(where or None, f"{where or 'the body'} must be a JSON object")
    for name in body:
        if name not in fields:
            known = f"{prefix}{name}"[:100]
            raise invalid(known, f"unrecognized argument: {known!r}", "unknown_parameter")
    for name in required:
        if body.get(name) is None:
            missing = f"{prefix}{name}"
            raise invalid(missing, f"{missing} is missing", "missing_required_parameter")
    given = {name: value for name, value in body.items() if value is not None}
    found = {name: fields[name].read(prefix + name, value) for name, value in given.items()}
    return {name: value for name, value in found.items() if value is not None}


def object_schema(fields: Mapping[str, Field], required: tuple[str, ...] = ()) -> Schema:
    """Return the JSON schema of an object with these fields, of which null is none."""
    properties = {}
    for name, field in fields.items():
        one = field.schema()
        may_be_null = name not in required and not {"description", "enum"} & one.keys()
        properties[name] = {"anyOf": [one, {"type": "null"}]} if may_be_null else one
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": [*required]} if required else found


def too_long(name: str, length: int, most: int) -> ApiError:
    """Return the error of a text with too many characters."""
    message = f"{name} has {length:,} characters; at most {most:,} are accepted"
    return invalid(name, message, "string_above_max_length")


LONGEST_NUMBER: Final = 400  # digits


def read_json(body: bytes) -> Any:
    """Return what JSON says; ApiError if it is none, or has what JSON does not allow."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    def whole(digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            raise ValueError("a number has too many digits")
        return int(digits)

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse, parse_int=whole)
    except UnicodeError:
        raise invalid(None, "the body is not in UTF-8", "invalid_json") from None
    except ValueError as error:
        raise invalid(None, f"the body is not JSON: {error}", "invalid_json") from None
    except RecursionError:
        raise invalid(None, "the body is nested too deeply", "invalid_json") from None
