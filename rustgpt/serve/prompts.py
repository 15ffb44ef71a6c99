"""Owns what requests give a model to read: messages, texts, token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rustgpt.serve.config import Limits
from rustgpt.serve.errors import invalid
from rustgpt.serve.fields import Schema, too_long
from rustgpt.text.dialogue import Message, Role

ROLES: Final[dict[str, Role]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip
OTHERS: Final = ("name", "refusal", "annotations", "audio", "tool_calls", "function_call")


@dataclass(frozen=True)
class Messages:
    """A dialogue, which ends with a message of the user."""

    limits: Limits

    def read(self, name: str, value: Any) -> list[Message]:
        most = self.limits.messages
        if not isinstance(value, list) or not 0 < len(value) <= most:
            raise invalid(name, f"{name} must be a list of 1 to {most} messages")
        messages = [self._message(f"{name}[{i}]", one) for i, one in enumerate(value)]
        check_characters(name, (one.content for one in messages), self.limits)
        if messages[-1].role != "user":
            raise invalid(name, f"the last of the {name} must be of the role user")
        return messages

    def _message(self, where: str, value: Any) -> Message:
        if not isinstance(value, dict):
            raise invalid(where, f"{where} must be an object with role and content")
        role = value.get("role")
        if not isinstance(role, str) or role not in ROLES:
            message = f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.60}"
            raise invalid(f"{where}.role", message)
        for key in value:
            if key not in ("role", "content", *OTHERS):
                key = f"{where}.{key}"[:100]
                raise invalid(key, f"unrecognized argument: {key!r}", "unknown_parameter")
        for key in OTHERS[3:]:
            if value.get(key):
                raise invalid(f"{where}.{key}", f"{where}.{key} is not supported by this server")
        return Message(ROLES[role], self._content(f"{where}.content", value.get("content")))

    def _content(self, where: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or len(value) > self.limits.messages:
            raise invalid(where, f"{where} must be text, or a list of parts of the type text")
        parts = []
        for i, part in enumerate(value):
            is_text = isinstance(part, dict) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                at = f"{where}[{i}]"
                raise invalid(at, f"{at} must be of the type text: this model reads only text")
            parts.append(part["text"])
        return "".join(parts)

    def schema(self) -> Schema:
        text = {"type": "string", "maxLength": self.limits.characters}
        part = {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": text},
            "required": ["type", "text"],
        }
        message = {
            "type": "object",
            "properties": {
                "role": {"enum": [*ROLES]},
                "content": {"anyOf": [text, {"type": "array", "items": part}]},
                "name": {"type": "string"},
            },
            "required": ["role", "content"],
            "additionalProperties": False,
        }
        return {
            "type": "array", "items": message, "minItems": 1, "maxItems": self.limits.messages
        }  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """One prompt or several, each a text or token ids."""

    limits: Limits
    most: int

    def read(self, name: str, value: Any) -> list[str | list[int]]:
        if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
            value = [value]
        if not isinstance(value, list) or not 0 < len(value) <= self.most:
            wanted = f"text, token ids, or a list of 1 to {self.most} of one of them"
            raise invalid(name, f"{name} must be {wanted}")
        for one in value:
            is_ids = isinstance(one, list) and one and all(map(_is_id, one))
            if not isinstance(one, str) and not is_ids:
                raise invalid(name, f"{name} must be text or token ids, got {one!r:.60}")
        check_characters(name, value, self.limits)
        return value

    def schema(self) -> Schema:
        text = {"type": "string", "maxLength": self.limits.characters}
        ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        lists = [
            {"type": "array", "items": one, "minItems": 1, "maxItems": self.most}
            for one in (text, ids)
        ]
        return {"anyOf": [text, ids, *lists]}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_characters(name: str, texts: Any, limits: Limits) -> None:
    """Raise ApiError if texts, or lists of ids, are too long together."""
    length = sum(map(len, texts))
    if length > limits.characters:
        raise too_long(name, length, limits.characters)
