"""Owns which texts follow a JSON schema, as a grammar over bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rustgpt.errors import ConfigError
from rustgpt.generation.byte_grammar import (
    NOTHING,
    Chain,
    Either,
    Later,
    Node,
    OneOf,
    Repeat,
    literal,
)

TYPES: Final = ("string", "integer", "number", "boolean", "null", "array", "object")
KEYWORDS: Final = (
    "type", "enum", "const", "anyOf", "$ref", "properties", "required", "additionalProperties",
    "items", "minItems", "maxItems", "minLength", "maxLength",
)  # fmt: skip
# What says nothing of which texts follow the schema.
REMARKS: Final = (
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "deprecated", "readOnly", "writeOnly", "format",
)  # fmt: skip
DIGITS: Final = 15  # the most of a number before or behind the point, which a float can hold

_SPACE: Final = Either(NOTHING, literal(" "))
_COMMA: Final = Chain(literal(","), _SPACE)
_COLON: Final = Chain(literal(":"), _SPACE)


def _range(first: int, last: int) -> OneOf:
    return OneOf(range(first, last + 1))


_MORE: Final = _range(0x80, 0xBF)
_HEX: Final = OneOf(b"0123456789abcdefABCDEF")
# One character of a string: UTF-8 (Unicode 15, table 3-7), or escaped, but for halves of pairs.
_CHARACTER: Final = Either(
    OneOf({*range(0x20, 0x80)} - {*b'"\\'}),
    Chain(_range(0xC2, 0xDF), _MORE),
    Chain(literal(b"\xe0"), _range(0xA0, 0xBF), _MORE),
    Chain(OneOf({*range(0xE1, 0xF0)} - {0xED}), _MORE, _MORE),
    Chain(literal(b"\xed"), _range(0x80, 0x9F), _MORE),
    Chain(literal(b"\xf0"), _range(0x90, 0xBF), _MORE, _MORE),
    Chain(_range(0xF1, 0xF3), _MORE, _MORE, _MORE),
    Chain(literal(b"\xf4"), _range(0x80, 0x8F), _MORE, _MORE),
    Chain(literal("\\"), OneOf(b'"\\/bfnrt')),
    Chain(literal("\\u"), OneOf(b"0123456789abcefABCEF"), _HEX, _HEX, _HEX),
    Chain(literal("\\u"), OneOf(b"dD"), OneOf(b"01234567"), _HEX, _HEX),
)
_DIGIT: Final = OneOf(b"0123456789")
_INTEGER: Final = Chain(
    Either(NOTHING, literal("-")),
    Either(literal("0"), Chain(OneOf(b"123456789"), Repeat(_DIGIT, 0, DIGITS - 1))),
)
_NUMBER: Final = Chain(_INTEGER, Either(NOTHING, Chain(literal("."), Repeat(_DIGIT, 1, DIGITS))))


def grammar_of(schema: Mapping[str, Any] | bool) -> Node:
    """Return the grammar of what follows a schema, in the order of its properties.

    Of white space there is one space at most, behind a comma or a colon.

    Raises
    ------
    ConfigError
        If the schema has what is not known here, or is none.
    """
    try:
        return _Schema(schema).node(schema, "#")
    except RecursionError:
        raise ConfigError("the json_schema is nested too deeply") from None


class _Schema:
    """Makes grammars of the parts of a schema."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._references: dict[str, Later] = {}
        self._any: Later | None = None

    def node(self, schema: Any, where: str) -> Node:
        """Return the grammar of a part of the schema."""
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, dict):
            raise ConfigError(f"the json_schema must be an object at {where}, got {schema!r:.60}")
        for key in schema:
            if key not in KEYWORDS and key not in REMARKS:
                raise ConfigError(
                    f"the json_schema has {key!r:.60} at {where}, which is not supported; "
                    f"supported are {', '.join(KEYWORDS)}"
                )
        alone = [key for key in ("$ref", "const", "enum", "anyOf") if key in schema]
        with_type = alone in (["const"], ["enum"])  # of which the type leaves some values
        more = [key for key in schema if key in KEYWORDS and not (with_type and key == "type")]
        if alone and len(more) > 1:
            raise ConfigError(
                f"the json_schema has {' and '.join(more)} at {where}; {alone[0]} must stand alone"
            )
        if "$ref" in schema:
            return self._reference(schema["$ref"], where)
        if with_type:
            values = [schema["const"]] if "const" in schema else _listed(schema, "enum", where)
            found = [value for value in values if _is_of(value, self._types(schema, where))]
            if not found:
                raise ConfigError(f"the json_schema has no {alone[0]} of its type at {where}")
            return _values(found)
        if "anyOf" in schema:
            options = _listed(schema, "anyOf", where)
            made = (self.node(o, f"{where}/anyOf/{i}") for i, o in enumerate(options))
            return Either(*made)
        return self._typed(schema, where)

    def _typed(self, schema: dict[str, Any], where: str) -> Node:
        """Return the grammar of values of some types."""
        return Either(
            *(getattr(self, f"_{name}")(schema, where) for name in self._types(schema, where))
        )

    def _types(self, schema: dict[str, Any], where: str) -> list[str]:
        """Return the types that a part of the schema allows."""
        types = schema.get("type")
        if types is None:
            guess = {"properties": "object", "items": "array"}
            types = [guess[key] for key in guess if key in schema] or list(TYPES)
        types = types if isinstance(types, list) else [types]
        for name in types:
            if not isinstance(name, str) or name not in TYPES:
                raise ConfigError(
                    f"the json_schema has the type {name!r:.60} at {where}; there are "
                    f"{', '.join(TYPES)}"
                )
        return types

    def _string(self, schema: dict[str, Any], where: str) -> Node:
        limits = _limits(schema, "Length", where)
        return Chain(literal('"'), Repeat(_CHARACTER, *limits), literal('"'))

    def _integer(self, schema: dict[str, Any], where: str) -> Node:
        return _INTEGER

    def _number(self, schema: dict[str, Any], where: str) -> Node:
        return _NUMBER

    def _boolean(self, schema: dict[str, Any], where: str) -> Node:
        return _values([True, False])

    def _null(self, schema: dict[str, Any], where: str) -> Node:
        return _values([None])

    def _array(self, schema: dict[str, Any], where: str) -> Node:
        least, most = _limits(schema, "Items", where)
        item = self.node(schema.get("items", True), f"{where}/items")
        return Chain(literal("["), _separated(item, least, most), literal("]"))

    def _object(self, schema: dict[str, Any], where: str) -> Node:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        named = isinstance(required, list) and all(isinstance(name, str) for name in required)
        if not isinstance(properties, dict) or not named:
            raise ConfigError(
                f"the json_schema must have an object of properties and a list of required ones "
                f"at {where}"
            )
        more = schema.get("additionalProperties", True)
        all_of_them = {**properties, **{name: more for name in required if name not in properties}}
        if not all_of_them:
            if more is False:
                return literal("{}")
            value = self.node(more, f"{where}/additionalProperties")
            pair = Chain(self._string({}, where), _COLON, value)
            return Chain(literal("{"), _separated(pair, 0, None), literal("}"))
        # From the last on: what may follow a property, and what may follow where none was yet.
        others: Node = NOTHING
        first: Node = NOTHING
        for name, part in reversed(all_of_them.items()):
            value = self.node(part, f"{where}/properties/{name}")
            pair = Chain(literal(json.dumps(name, ensure_ascii=False)), _COLON, value, others)
            if name in required:
                first, others = pair, Chain(_COMMA, pair)
            else:
                first, others = Either(pair, first), Either(Chain(_COMMA, pair), others)
        return Chain(literal("{"), first, literal("}"))

    def _reference(self, name: Any, where: str) -> Node:
        """Return the grammar of a part that is named, such as "#/$defs/point"."""
        if not isinstance(name, str):
            raise ConfigError(f"the json_schema must have text in '$ref' at {where}")
        if name not in self._references:
            part = self._root
            for key in name.removeprefix("#").split("/")[1:]:
                key = key.replace("~1", "/").replace("~0", "~")
                part = part.get(key) if isinstance(part, dict) else None
            if not name.startswith("#") or part is None:
                raise ConfigError(f"the json_schema has no {name!r:.60}, which it names at {where}")
            later = self._references[name] = Later()
            later.part = self.node(part, name)
        return self._references[name]

    def _anything(self) -> Node:
        if self._any is None:
            self._any = Later()
            self._any.part = self._typed({"type": list(TYPES)}, "#")
        return self._any


def _separated(part: Node, least: int, most: int | None) -> Node:
    """Return a part from `least` to `most` times, with commas between."""
    if most is not None and most <= 0:
        return NOTHING
    others = Repeat(Chain(_COMMA, part), max(0, least - 1), None if most is None else most - 1)
    some = Chain(part, others)
    return some if least else Either(NOTHING, some)


def _is_of(value: Any, types: list[str]) -> bool:
    """Whether a value is of one of some types."""
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, (int, float)):
        return "number" in types or ("integer" in types and value % 1 == 0)
    kinds: dict[type, str] = {str: "string", list: "array", dict: "object", type(None): "null"}
    return kinds.get(type(value)) in types


def _values(values: list[Any]) -> Node:
    return Either(*map(_value, values))


def _value(value: Any) -> Node:
    """Return the grammar of one value."""
    if isinstance(value, list):
        return Chain(literal("["), *_listed_with_commas(map(_value, value)), literal("]"))
    if isinstance(value, dict):
        pairs = (Chain(_value(key), _COLON, _value(part)) for key, part in value.items())
        return Chain(literal("{"), *_listed_with_commas(pairs), literal("}"))
    return literal(json.dumps(value, ensure_ascii=False))


def _listed_with_commas(parts: Iterable[Node]) -> list[Node]:
    return [node for part in parts for node in (_COMMA, part)][1:]


def _listed(schema: dict[str, Any], key: str, where: str) -> list[Any]:
    found = schema[key]
    if not isinstance(found, list) or not found:
        raise ConfigError(f"the json_schema must have a list in {key!r} at {where}")
    return found


def _limits(schema: dict[str, Any], what: str, where: str) -> tuple[int, int | None]:
    """Return the least and the most, as of minItems and maxItems."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    for value in (least, 0 if most is None else most):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(
                f"the json_schema must have whole numbers for min{what} and max{what} at {where}"
            )
    if most is not None and most < least:
        raise ConfigError(f"the json_schema has max{what} below min{what} at {where}")
    return least, most
