"""Owns a text that is asked for: how it goes on by a token, and why it ends."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from numpy.typing import NDArray

from rustgpt.generation.batch import Batch, Text
from rustgpt.generation.constraint import Constraint
from rustgpt.generation.sampling import Likely, Sampler, likeliest, log_softmax
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.generation.text_writer import TextWriter
from rustgpt.layers.cache import Cache
from rustgpt.text.tokenizer import Tokenizer

Ended = Literal["end", "stop", "length"]


class Model(Protocol):
    """What the engine needs of a model."""

    tokenizer: Tokenizer

    @property
    def max_seq_len(self) -> int: ...
    @property
    def end_ids(self) -> tuple[int, ...]: ...
    @property
    def weights_version(self) -> int: ...
    def _decode(self, rows: list[NDArray[Any]], cache: Cache, slots: list[int]) -> NDArray[Any]: ...


class Token(NamedTuple):
    """One token of a text that is made.

    Attributes
    ----------
    request
        Whose it is.
    id
        The token; also one with which the model ends the text.
    text
        What is now certain of the text; "" if the request wants none.
    logprob
        The token's log-probability as the model gives it; None unless they are asked for.
    likeliest
        The likeliest tokens in its place, with their log-probabilities.
    ended
        Why it is the last one: "end" (the model ends the text), "stop" (a stop string) or "length"
        (enough tokens are made); None if more follow.
    rank
        Which of several texts of a beam search it belongs to; 0 for the best.
    """

    request: Request
    id: int
    text: str = ""
    logprob: float | None = None
    likeliest: Likely = ()
    ended: Ended | None = None
    rank: int = 0


class Request:
    """A text that is asked for.

    Attributes
    ----------
    config
        How it is made.
    made
        The tokens so far, without one that ended the text.
    ended
        Why it ended; None while it goes on.
    prompt_length
        How many tokens the prompt has.
    """

    slots = 1

    def __init__(
        self,
        ids: list[int],
        config: SamplingConfig,
        model: Model,
        sample: int = 0,
        writer: TextWriter | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.config = config
        self.ended: Ended | None = None if config.max_new_tokens else "length"
        self.like: Request | None = None
        self.prompt_length = len(ids)
        self._end_ids = model.end_ids
        self._sampler = Sampler(config, self._end_ids, model.tokenizer.vocab_size, sample)
        self._writer = writer
        self._constraint = constraint
        self.texts = [Text(ids, model.max_seq_len)]

    @property
    def made(self) -> list[int]:
        return self.texts[0].ids[self.prompt_length :]

    @property
    def is_read(self) -> bool:
        """Whether the model has read the prompt."""
        text = self.texts[0]
        return self.ended is not None or text.start + text.read >= self.prompt_length

    def go_on(self, logits: list[NDArray[Any]], batch: Batch) -> list[Token]:
        """Choose a token from the logits (V,) of its text; return what is now certain."""
        ids = self.texts[0].ids
        token = self._sampler.choose(ids, logits[0], self._constraint)
        logprob: float | None = None
        best: Likely = ()
        if self.config.logprobs is not None:
            logprob, best = told(logits[0], token, self.config.logprobs)
        return [Token(self, token, self._append(token), logprob, best, self.ended)]

    def _append(self, token: int) -> str:
        """Append a token, see whether it is the last, and return the text that is now certain."""
        writer, ids, text = self._writer, self.texts[0].ids, ""
        if token in self._end_ids:
            self.ended = "end"
        else:
            ids.append(token)
            if writer is not None:
                text = writer.push(token)
                if writer.stopped:
                    self.ended = "stop"
                    return text
            if self._constraint is not None:
                self._constraint = self._constraint.after(token)
            if len(ids) - self.prompt_length >= self.config.max_new_tokens:
                self.ended = "length"
        if self.ended is not None and writer is not None:
            text += writer.finish()
            if writer.stopped:
                self.ended = "stop"
        return text


def told(logits: NDArray[Any], token: int, n: int) -> tuple[float, Likely]:
    """Return the log-probability of a token, and those of the n likeliest."""
    logprobs = log_softmax(logits)
    return float(logprobs[token]), likeliest(logprobs, n)
