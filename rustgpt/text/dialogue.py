"""Owns the form of a dialogue: its messages, its text, its token ids and where the loss counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.rows import Row
from rustgpt.text.tokenizer import Tokenizer
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


def chat_prompt(question: str) -> str:
    """Return what a model reads before it answers this question."""
    return f"{NAMES['user']} {question} {NAMES['assistant']}"


def split_chat(text: str) -> tuple[str, str]:
    """Return the first question and its answer; DataError if the text is no dialogue."""
    dialogue = Dialogue.parse(text)
    return dialogue.question, dialogue.turns()[0][-1].content


def encode_dialogue(
    tokenizer: Tokenizer, dialogue: Dialogue, loss_on: str = "assistant", bos: bool = False
) -> Row:
    """Turn a dialogue into token ids, and mark what is to be learned.

    Only the end of each answer becomes the end token; ``</s>`` within a message is ordinary text.

    Parameters
    ----------
    tokenizer
        Of any kind: the answer begins where the tokens of the whole turn part from those of its
        beginning up to ``Assistant:``.
    dialogue
        What is said.
    loss_on
        "assistant" if its words and the end token behind them count, "all" if all does.
    bos
        Whether it begins with the end token; the other turns do in any case.
    """
    if loss_on not in ("assistant", "all"):
        raise ConfigError(f"the loss must be on assistant or all, not on {loss_on!r:.60}")
    ids = [tokenizer.end_id] * bos
    learned = [False] * bos
    for turn in dialogue.turns():
        before = " ".join([*map(str, turn[:-1]), NAMES["assistant"]])
        head, whole = tokenizer.encode(before), tokenizer.encode(f"{before} {turn[-1].content}")
        differ = (i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b)
        start = next(differ, min(len(head), len(whole)))
        ids += [*whole, tokenizer.end_id]
        learned += [False] * start + [True] * (len(whole) - start + 1)
    counted = np.array(learned[1:], np.bool_) if loss_on == "assistant" else None
    return Row(np.array(ids, np.int32), counted)
