"""Owns how the texts and dialogues of a model become its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rustgpt.errors import ConfigError, TokenizerError
from rustgpt.text.chat_template import RUSTGPT, TEMPLATES, UNKNOWN, ChatTemplate, Special
from rustgpt.text.dialogue import Dialogue, Message
from rustgpt.text.rows import Row
from rustgpt.text.tokenizer import Tokenizer
from rustgpt.text.vocab import END

Marked = tuple[list[int], list[bool]]  # token ids, and whether each is the assistant's own


@dataclass(frozen=True)
class TextFormat:
    """A tokenizer, and what a model's texts and dialogues have around their words.

    Parameters
    ----------
    tokenizer
        Of any kind.
    bos_id
        The token with which each text begins; None for none.
    template
        The name of the form of dialogues, one of `TEMPLATES`.
    """

    tokenizer: Tokenizer
    bos_id: int | None = None
    template: str = RUSTGPT

    @property
    def bos(self) -> list[int]:
        """The token with which a text begins, if there is one."""
        return [] if self.bos_id is None else [self.bos_id]

    def described(self) -> list[object]:
        """Return plain values that are the same for the same format only."""
        return [self.tokenizer.to_json(), self.bos_id, self.template]

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a text that is to be continued."""
        return self.bos + self.tokenizer.encode(text)

    def text(self, text: str) -> list[int]:
        """Return the ids of a text to learn, in which ``</s>`` is the end token."""
        ids = self.tokenizer.encode(text, True)
        return ids if ids in ([], [self.tokenizer.end_id]) else self.bos + ids

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a dialogue of which the assistant is to say the next message.

        Raises
        ------
        ConfigError
            If the model's template is not known.
        TokenizerError
            If the template has a special token that the tokenizer lacks.
        """
        ids, _ = self._encoded(messages)
        return ids

    def dialogue(self, dialogue: Dialogue, loss_on: str = "assistant") -> Row:
        """Return the ids of a dialogue to learn, marked with what counts.

        Only what ends each answer becomes the end token; ``</s>`` within a message, and the name
        of any special token, is ordinary text.

        Parameters
        ----------
        loss_on
            "assistant" if its words and the token behind them count, "all" if all does.

        Raises
        ------
        ConfigError, TokenizerError
            As `chat_prompt`.
        """
        if loss_on not in ("assistant", "all"):
            raise ConfigError(f"the loss must be on assistant or all, not on {loss_on!r:.60}")
        ids, learned = self._encoded(dialogue.messages)
        counted = np.array(learned[1:], np.bool_) if loss_on == "assistant" else None
        return Row(np.array(ids, np.int32), counted)

    def _encoded(self, messages: Sequence[Message]) -> Marked:
        template = self._template()
        ids = self.bos if template.begins_as_texts else []
        learned = [False] * len(ids)
        for head, own, special in _between_specials(template.parts(messages)):
            text_ids, text_learned = self._joined(head, own)
            ids += text_ids
            learned += text_learned
            if special is not None:
                ids.append(self.special_id(special))
                learned.append(bool(own))
        return ids, learned

    def _template(self) -> ChatTemplate:
        if self.template == UNKNOWN:
            raise ConfigError(
                "the chat template of this model is not known here: name the one to use with "
                f"--template, one of {', '.join(TEMPLATES)}"
            )
        return TEMPLATES[self.template]

    def _joined(self, head: str, own: str) -> Marked:
        """Return the ids of an answer behind other text.

        It begins where the tokens of both part from those of the other text by itself.
        """
        before = self.tokenizer.encode(head) if head else []
        if not own:
            return before, [False] * len(before)
        ids = self.tokenizer.encode(head + own)
        differ = (i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b)
        start = next(differ, min(len(before), len(ids)))
        return ids, [False] * start + [True] * (len(ids) - start)

    def special_id(self, name: str) -> int:
        """Return the id of a special token; TokenizerError if the tokenizer has none of the name.

        ``</s>`` is the token that ends a text, whatever its name.
        """
        if name == END:
            return self.tokenizer.end_id
        specials = getattr(self.tokenizer, "special_ids", {})
        if name not in specials:
            raise TokenizerError(
                f"the chat template {self.template} needs the special token {name}, which the "
                "tokenizer lacks: choose another template"
            )
        found: int = specials[name]
        return found

    def ends(self, end_ids: Iterable[int] = ()) -> tuple[int, ...]:
        """Return the tokens that end what the model writes, each once.

        They are `end_ids`, or the tokenizer's own; and the one that ends an answer in the template.
        """
        found = list(end_ids) or [self.tokenizer.end_id]
        if self.template not in (RUSTGPT, UNKNOWN):
            found.append(self.special_id(TEMPLATES[self.template].end))
        return tuple(dict.fromkeys(found))


def _between_specials(
    parts: Iterable[tuple[str, bool]],
) -> Iterator[tuple[str, str, Special | None]]:
    """Yield what is no answer and the answer's text, up to each special token, and that token."""
    head, own = "", ""
    for part, is_own in parts:
        if isinstance(part, Special):
            yield head, own, part
            head, own = "", ""
        elif is_own:
            own += part
        else:
            head += part
    if head or own:
        yield head, own, None
