"""Owns how a dialogue is written for a model: what stands before and behind each message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rustgpt.text.dialogue import NAMES, Message, Role
from rustgpt.text.vocab import END


class Special(str):
    """The name of a special token; ``</s>`` is the one that ends a text, whatever its name."""

    __slots__ = ()


Parts = tuple[str, ...]  # texts, and special tokens


@dataclass(frozen=True)
class ChatTemplate:
    """How a dialogue is written.

    Attributes
    ----------
    before, behind
        What stands there, of a message of each role. A special token must end an answer.
    gap
        What stands between that and the message's own text, which is the model's to write.
    begin
        What a dialogue begins with.
    begins_as_texts
        Whether a dialogue begins as any text of the model does, and not with `begin`.
    default_system
        What the system says where a dialogue has no message of it.
    trims
        Whether white space around a message's text is left out.
    """

    before: Mapping[Role, Parts]
    behind: Mapping[Role, Parts]
    gap: str = ""
    begin: Parts = ()
    begins_as_texts: bool = False
    default_system: str = ""
    trims: bool = False

    @property
    def end(self) -> Special:
        """The special token that ends an answer."""
        return next(part for part in self.behind["assistant"] if isinstance(part, Special))

    def parts(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Yield the parts of a dialogue, each with whether it is the assistant's own.

        Where the user speaks last, what the model is to continue ends them.
        """
        if self.default_system and messages[0].role != "system":
            messages = [Message("system", self.default_system), *messages]
        yield from ((part, False) for part in self.begin)
        for message in messages:
            is_answer = message.role == "assistant"
            yield from ((part, False) for part in self.before[message.role])
            text = message.content.strip() if self.trims else message.content
            yield self.gap + text, is_answer
            for part in self.behind[message.role]:
                yield part, is_answer
                is_answer = is_answer and not isinstance(part, Special)
        if messages[-1].role == "user":
            yield from ((part, False) for part in self.before["assistant"])


def _marked(begin: str, end: str, default_system: str = "") -> ChatTemplate:
    """Return a template of the form "<begin>role\\ntext<end>\\n"."""
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    return ChatTemplate(
        before={role: (Special(begin), f"{role}\n") for role in roles},
        behind=dict.fromkeys(roles, (Special(end), "\n")),
        default_system=default_system,
    )


def _lined(end: str) -> ChatTemplate:
    """Return a template of the form "<|role|>\\ntext<end>\\n", where only the end is a token."""
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    return ChatTemplate(
        before={role: (f"<|{role}|>\n",) for role in roles},
        behind=dict.fromkeys(roles, (Special(end), "\n")),
    )


def _headed() -> ChatTemplate:
    """Return the template of Llama 3."""
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    first, last = Special("<|start_header_id|>"), Special("<|end_header_id|>")
    return ChatTemplate(
        before={role: (first, role, last, "\n\n") for role in roles},
        behind=dict.fromkeys(roles, (Special("<|eot_id|>"),)),
        begin=(Special("<|begin_of_text|>"),),
        trims=True,
    )


RUSTGPT: Final = "rustgpt"
UNKNOWN: Final = "unknown"  # of a model of others, whose template is not one of these
# The names are those that `ModelConfig.chat_template` may have.
TEMPLATES: Final[Mapping[str, ChatTemplate]] = {
    RUSTGPT: ChatTemplate(
        before={role: (name,) for role, name in NAMES.items()},
        behind={"system": (" ",), "user": (" ",), "assistant": (Special(END),)},
        gap=" ",
        begins_as_texts=True,
    ),
    "chatml": _marked("<|im_start|>", "<|im_end|>"),
    "smollm2": _marked(
        "<|im_start|>",
        "<|im_end|>",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    "qwen2.5": _marked(
        "<|im_start|>",
        "<|im_end|>",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    "llama3": _headed(),
    "zephyr": _lined(END),
}
