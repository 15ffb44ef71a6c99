"""Owns what a dialogue consists of, and its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rustgpt.errors import DataError
from rustgpt.text.vocab import END

Role = Literal["system", "user", "assistant"]

NAMES: Final[dict[Role, str]] = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
_ROLES: Final[dict[str, Role]] = {name: role for role, name in NAMES.items()}
_NAME: Final = re.compile(rf"(?:^|(?<=\s)|(?<={END}))(?:{'|'.join(_ROLES)})")
# Who may speak next. A system message may also come where a line begins.
_NEXT: Final[dict[Role | None, tuple[Role, ...]]] = {
    None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """What one side says; `role` is "system", "user" or "assistant"."""

    role: Role
    content: str

    def __str__(self) -> str:
        return f"{NAMES[self.role]} {self.content}"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages in their order, the last of them the assistant's."""

    messages: tuple[Message, ...]

    def text(self) -> str:
        """Write it as a model reads it: ``System: S User: q Assistant: a </s> User: ... </s>``."""
        return " ".join(f"{' '.join(map(str, turn))} {END}" for turn in self.turns())

    @property
    def question(self) -> str:
        """What the user asks first."""
        return next(one.content for one in self.messages if one.role == "user")

    def turns(self) -> list[tuple[Message, ...]]:
        """Divide it behind each message of the assistant, which is where the model stops."""
        turns: list[tuple[Message, ...]] = []
        begun: list[Message] = []
        for message in self.messages:
            begun.append(message)
            if message.role == "assistant":
                turns.append(tuple(begun))
                begun = []
        return turns

    @classmethod
    def parse(cls, text: str) -> Dialogue:
        """Read one dialogue ``User: ... Assistant: ...``, of any number of turns and lines.

        A system message may come first. ``</s>`` may end each answer.

        Raises
        ------
        DataError
            The text is not of this form, or a question or an answer is empty.
        """
        found: list[tuple[Role, int, int]] = []
        for match in _NAME.finditer(text := text.strip()):
            role, last = _ROLES[match[0]], found[-1][0] if found else None
            # "The solar System: ..." within an answer is no message.
            before = text[max(0, match.start() - 40) : match.start()].rstrip(" ")
            begins = role == "system" and before.endswith(("\n", END))
            if role in _NEXT[last] or (last == "assistant" and begins):
                found.append((role, *match.span()))
        while found and found[-1][0] != "assistant":  # a name within the last answer
            found.pop()
        ends = [start for _, start, _ in found[1:]] + [len(text)]
        messages = tuple(
            Message(role, text[start:end].strip().removesuffix(END).strip())
            for (role, _, start), end in zip(found, ends, strict=False)
        )
        whole = found and found[0][1] == 0 and all(one.content for one in messages)
        if not whole or "user" not in {one.role for one in messages}:
            raise DataError(f"a dialogue must be 'User: ... Assistant: ...', not {text!r:.80}")
        return cls(messages)


def split_chat(text: str) -> tuple[str, str]:
    """Return the first question and its answer; DataError if the text is no dialogue."""
    dialogue = Dialogue.parse(text)
    return dialogue.question, dialogue.turns()[0][-1].content
