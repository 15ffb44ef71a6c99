"""Owns a text that is given out while it is made, and what is told of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rustgpt.generation.engine import Engine
from rustgpt.generation.request import Ended, Request, Token
from rustgpt.generation.sampling import Likely
from rustgpt.text.tokenizer import Tokenizer


class ScoredToken(NamedTuple):
    """A token of a text.

    Attributes
    ----------
    id, text
        The token, and how it is shown.
    logprob
        Its log-probability given those before; None if it is not known, as of a first token.
    likeliest
        (text, log-probability) of the likeliest tokens in its place.
    """

    id: int
    text: str
    logprob: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One text that a model has made of a prompt.

    Attributes
    ----------
    text
        What follows the prompt.
    tokens
        One by one; the end token is the last if the model has ended the text.
    ended
        Why it ended: "end" (by the model), "stop" (a stop string) or "length" (enough tokens).
    """

    text: str
    tokens: tuple[ScoredToken, ...]
    ended: Ended


def shown(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token as it is shown to people."""
    name = getattr(tokenizer, "name", None)
    return name(token_id) if name else tokenizer.decode([token_id], skip_special=False)


def scored(
    tokenizer: Tokenizer, token_id: int, logprob: float | None, likeliest: Likely = ()
) -> ScoredToken:
    """Return what is told of a token."""
    others = tuple((shown(tokenizer, other), value) for other, value in likeliest)
    return ScoredToken(token_id, shown(tokenizer, token_id), logprob, others)


class Continuation(Iterator[str]):
    """The text that follows a prompt, piece by piece, while it is made.

    Each piece is whole characters, never a stop string or a part of one. What was held back comes
    at the end. `stop` ends it early.

    Attributes
    ----------
    text
        All pieces so far.
    tokens
        The tokens so far.
    ended
        Why it ended; None while it goes on, or if it was stopped.
    prompt_length
        How many tokens the prompt has.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        tokenizer: Tokenizer,
        at_end: Callable[[Continuation], None] = lambda _: None,
    ) -> None:
        self.text = ""
        self.tokens: list[ScoredToken] = []
        self._engine = engine
        self._request = request
        self._tokenizer = tokenizer
        self._at_end = at_end
        self._is_open = True

    @property
    def ended(self) -> Ended | None:
        return self._request.ended

    @property
    def prompt_length(self) -> int:
        return self._request.prompt_length

    def __next__(self) -> str:
        while (piece := self.step()) is not None:
            if piece:
                return piece
        raise StopIteration

    def step(self) -> str | None:
        """Go on by a token, or by a part of the prompt, and return what is now certain of the text.

        It may be "". None if the text has ended.
        """
        if not self._is_open:
            return None
        if self.ended is not None:
            self.stop()
            return None
        try:
            return "".join([self._take(token) for token in self._engine.step()])
        except BaseException:
            self.stop()
            raise

    def _take(self, token: Token) -> str:
        self.tokens.append(scored(self._tokenizer, token.id, token.logprob, token.likeliest))
        self.text += token.text
        return token.text

    def stop(self) -> None:
        """Make no more of the text."""
        if self._is_open:
            self._is_open = False
            self._engine.drop(self._request)
            self._at_end(self)
