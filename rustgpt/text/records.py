"""Owns what one record means: a string or an object by its keys becomes a text or a dialogue."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, Literal

from rustgpt.errors import DataError
from rustgpt.text.dialogue import Dialogue, Message, Role
from rustgpt.text.plain import ended
from rustgpt.text.vocab import END

# What a file is read for: texts, dialogues, or whichever each record is.
Kind = Literal["auto", "texts", "dialogues"]
Item = str | Dialogue

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_ROLES: Final[dict[str, Role]] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), "assistant"),
}  # fmt: skip
_KINDS: Final = {dict: "an object", list: "a list", bool: "true or false", str: "text"}


class Unusable(Exception):
    """Why a record cannot be used."""


class Twice(dict[str, Any]):
    """An object of JSON in which a key stands twice."""


@dataclass(frozen=True)
class Form:
    """A form of records that are objects: the keys that it needs, those that it may have."""

    needs: tuple[str, ...]
    may: tuple[str, ...]
    read: Callable[[dict[str, Any], Counter[str]], Item | None]


def read_record(
    value: object, ignored: Counter[str], kind: Kind = "auto", only: str | None = None
) -> Item | None:
    """Return what a record holds; None if that is nothing.

    Parameters
    ----------
    value
        As JSON has it.
    ignored
        Keys that were not read are counted here.
    kind
        A string is a dialogue if it has the form of one, but not among texts. Where dialogues are
        asked for, a string of another form is left as it is.
    only
        The name of the only form that an object may have; by default it is found by its keys.

    Raises
    ------
    Unusable
        With the reason.
    """
    if isinstance(value, dict):
        item = _read_object(value, ignored, only)
    elif isinstance(value, list) and value and all(map(is_message, value)):
        item = FORMS["messages"].read({"messages": value}, ignored)
    else:
        item = ended(_string(value, "it"))
    if kind == "texts":
        return item.text() if isinstance(item, Dialogue) else item
    if isinstance(item, str) and item.startswith(("User:", "System:")):
        try:
            return Dialogue.parse(item)
        except DataError as error:
            if kind == "auto" and item.startswith("User:"):
                raise Unusable(str(error)) from None
    return item


def form_of(keys: AbstractSet[str]) -> str | None:
    """Return the first form that has all its keys among these."""
    return next((name for name in FORMS if keys >= {*FORMS[name].needs}), None)


def _read_object(row: dict[str, Any], ignored: Counter[str], only: str | None) -> Item | None:
    if isinstance(row, Twice):
        raise Unusable("a key stands twice in it")
    # A null is as good as no key where there is another form without one.
    name = only or form_of({key for key in row if row[key] is not None}) or form_of(row.keys())
    if name is None:
        likely = next((name for name in FORMS if not row.keys().isdisjoint(FORMS[name].needs)), "")
        wanted = [FORMS[likely]] if likely else FORMS.values()
        forms = " or ".join("{" + ", ".join(form.needs) + "}" for form in wanted)
        raise Unusable(f"its keys are {_listed(row)}, but must be {forms}")
    form = FORMS[name]
    if missing := [key for key in form.needs if key not in row]:
        raise Unusable(f"{missing[0]!r} is missing")
    used = {*form.needs, *form.may}
    ignored.update(key for key in row if key not in used)
    return form.read(row, ignored)


def _listed(keys: Collection[str]) -> str:
    shown = ", ".join(f"{key!r:.40}" for key in [*keys][:5])
    return f"{shown}, ..." if len(keys) > 5 else shown or "none"


def _string(value: object, what: str) -> str:
    """Return a string that is text."""
    if not isinstance(value, str):
        kind = "null" if value is None else _KINDS.get(type(value), "a number")
        raise Unusable(f"{what} is {kind}, not text")
    if _SURROGATE.search(value):
        raise Unusable(rf"{what} is text with half of a character (\ud800 to \udfff)")
    return value


def _message(role: Role, value: object, what: str) -> Message:
    """Return a message that says something; its content may come in parts."""
    if isinstance(value, list):
        parts = []
        for part in value:
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise Unusable(f"{what} has a part that is no text: {part.get('type')!r:.40}")
            parts.append(_string(part.get("text") if isinstance(part, dict) else part, what))
        value = "".join(parts)
    content = _string(value, what).strip().removesuffix(END).strip()
    if not content:
        raise Unusable(f"{what} is empty")
    return Message(role, content)


def _dialogue(row: dict[str, Any], messages: list[Message]) -> Dialogue:
    """Return a dialogue, behind a system message of its own, up to the last answer."""
    system = row.get("system")
    if system is not None and system != "":
        messages.insert(0, _message("system", system, "'system'"))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not any(message.role == "user" for message in messages):
        raise Unusable("it has no question of a user with an answer behind it")
    return Dialogue(tuple(messages))


def _read_text(row: dict[str, Any], _: Counter[str]) -> Item | None:
    return ended(_string(row["text"], "'text'"))


def _pair(question: str, answer: str, *more: str) -> Form:
    """Return the form of one question and its answer; more of the question may follow it."""

    def read(row: dict[str, Any], _: Counter[str]) -> Item:
        asked = [_message("user", row[question], repr(question))]
        asked += [_message("user", row[key], repr(key)) for key in more if _given(row, key)]
        content = "\n".join(message.content for message in asked)
        answered = _message("assistant", row[answer], repr(answer))
        return _dialogue(row, [Message("user", content), answered])

    return Form((question, answer), (*more, "system"), read)


def _given(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    return value is not None and not (isinstance(value, str) and not value.strip())


def is_message(value: object) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"role", "from"})


def _either(message: dict[str, Any], *keys: str) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _read_messages(key: str) -> Callable[[dict[str, Any], Counter[str]], Item]:
    """Return what reads messages under a key, each with role and content, or from and value."""

    def read(row: dict[str, Any], ignored: Counter[str]) -> Item:
        if not isinstance(row[key], list):
            raise Unusable(f"{key!r} is no list")
        messages, others = [], set[str]()
        for i, value in enumerate(row[key], 1):
            if not isinstance(value, dict) or isinstance(value, Twice):
                raise Unusable(f"message {i} is no object with a role and a content")
            said = _either(value, "role", "from")
            role = _ROLES.get(said.lower()) if isinstance(said, str) else None
            if role is None:
                raise Unusable(f"message {i} is of {said!r:.40}, not of system, user or assistant")
            messages.append(_message(role, _either(value, "content", "value"), f"message {i}"))
            others |= value.keys() - {"role", "content", "from", "value"}
        ignored.update(others)
        return _dialogue(row, messages)

    return read


def _messages(key: str) -> Form:
    return Form((key,), ("system",), _read_messages(key))


# By the name that --format has for it. The first whose keys are all there is taken: data in the
# form of dialogues often have their whole text beside.
FORMS: Final = {
    "messages": _messages("messages"),
    "conversations": _messages("conversations"),
    "instruction": _pair("instruction", "output", "input"),
    "prompt": _pair("prompt", "completion"),
    "question": _pair("question", "answer"),
    "text-key": Form(("text",), (), _read_text),
}
