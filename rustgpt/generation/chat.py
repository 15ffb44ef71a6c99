"""Owns the chat: a question in, the answer alone out, and what was said before."""

from __future__ import annotations

from typing import Final, Protocol

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.generation.continuation import Continuation
from rustgpt.generation.engine import Engine
from rustgpt.generation.request import Model
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.text.dialogue import Message
from rustgpt.text.text_format import TextFormat

FOR_THE_ANSWER: Final = 3  # a third of the context, at most, is kept free for it


class Answerer(Model, Protocol):
    """What a chat needs of a model."""

    @property
    def text_format(self) -> TextFormat: ...


class Chat:
    """A conversation with a model, of which each question is read after those before it.

    What does not fit into the context any more leaves, the oldest questions first. The model reads
    only what it has not read yet.

    Parameters
    ----------
    model
        Who answers.
    sampling
        How answers are made.
    system
        What the model is told before all questions; "" for nothing.
    remembers
        Whether a question is read after those before it, or by itself.

    Attributes
    ----------
    sampling, system, remembers
        May be changed; they count from the next question on.
    forgotten : int
        How many questions with their answers had to leave for the last one.

    Raises
    ------
    ConfigError
        If the settings ask for several texts.
    TokenizerError
        If `system` is not text.
    """

    def __init__(
        self,
        model: Answerer,
        sampling: SamplingConfig | None = None,
        system: str = "",
        remembers: bool = True,
    ) -> None:
        self.sampling = sampling or SamplingConfig()
        self.system = _text("a system message", system)
        self.remembers = remembers
        self.forgotten = 0
        self._model = model
        self._turns: list[tuple[Message, Message]] = []
        self._asked = 0
        self._unanswered: str | None = None  # the last question, if nothing was said to it
        self._engine = Engine(model, 1)
        self._slots = 1
        self._open: Continuation | None = None
        self._check_one()

    def _check_one(self) -> None:
        if self.sampling.n > 1:
            raise ConfigError(f"a chat makes one answer at a time, not n={self.sampling.n}")

    @property
    def max_seq_len(self) -> int:
        """The most tokens that the model sees at once."""
        return self._model.max_seq_len

    @property
    def history(self) -> list[Message]:
        """What was asked and answered, as far as it is remembered."""
        return [message for turn in self._turns for message in turn]

    def reset(self) -> None:
        """Forget all that was said."""
        self._stop()
        self._turns.clear()
        self._unanswered = None
        self._asked = self.forgotten = 0

    def undo(self) -> str | None:
        """Forget the last question and its answer; return the question, None if there is none."""
        self._stop()
        question, self._unanswered = self._unanswered, None
        if question is None and self._turns:
            question = self._turns.pop()[0].content
        return question

    def send(self, question: str) -> str:
        """Ask, and return the answer: no prompt, no "Assistant:", no end mark.

        Raises
        ------
        DataError
            If the question leaves no room for an answer in the model's context.
        TokenizerError
            If it is not text.
        """
        return "".join(self.stream(question))

    def stream(self, question: str) -> Continuation:
        """Ask, and return an iterator of the answer's text; see `send`.

        What was made of it is remembered, also if it is stopped; but no question without an answer.
        """
        question = _text("a question", question).strip()
        self._check_one()
        self._stop()
        ids = self._prompt(question)
        if self._slots != self.sampling.num_beams:
            self._slots = self.sampling.num_beams
            self._engine = Engine(self._model, self._slots)
        request = self._engine.add(ids, self.sampling, strip=True, sample=self._asked)
        self._asked += 1

        def at_end(answer: Continuation) -> None:
            self._open = None
            self._unanswered = None if answer.text else question
            if answer.text:
                said = Message("user", question), Message("assistant", answer.text)
                self._turns.append(said)

        self._open = Continuation(self._engine, request, self._model.tokenizer, at_end)
        return self._open

    def _stop(self) -> None:
        if self._open is not None:
            self._open.stop()
        for request in self._engine.requests:  # of a question that was interrupted as it began
            self._engine.drop(request)

    def _prompt(self, question: str) -> list[int]:
        """Return the tokens of a question behind those that are remembered and fit before it."""
        if not self.remembers:
            self._turns.clear()
        most = self._model.max_seq_len
        ids = self._ids([], question)
        if len(ids) >= most:
            raise DataError(
                f"the question has {len(ids)} tokens with its frame, but the model sees {most} at "
                "once: ask a shorter one"
            )
        room = most - min(self.sampling.max_new_tokens, most // FOR_THE_ANSWER)
        self.forgotten = 0
        while self._turns:
            with_turns = self._ids(self._turns, question)
            if len(with_turns) <= room:
                return with_turns
            del self._turns[0]
            self.forgotten += 1
        return ids

    def _ids(self, turns: list[tuple[Message, Message]], question: str) -> list[int]:
        """Return the tokens of turns and a question, as those of a dialogue to be learned."""
        messages = [message for turn in turns for message in turn]
        if self.system:
            messages.insert(0, Message("system", self.system))
        return self._model.text_format.chat_prompt([*messages, Message("user", question)])


def _text(what: str, text: str) -> str:
    if not isinstance(text, str):
        raise TokenizerError(f"{what} must be text, not {type(text).__name__}")
    return text
