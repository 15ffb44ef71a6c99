"""Owns beam search: several texts are followed at once, to find the likeliest as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.generation.batch import Batch, Text
from rustgpt.generation.constraint import Constraint
from rustgpt.generation.request import Ended, Model, Request, Token, told
from rustgpt.generation.sampling import Likely, log_softmax
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.generation.text_writer import TextWriter

Told = tuple[int, float | None, Likely]  # a token, its log-probability, the likeliest


@dataclass(frozen=True)
class Beam:
    """A text that is followed, or has ended.

    Attributes
    ----------
    text
        What the model reads.
    score
        The sum of its tokens' log-probabilities, with what the settings add to them.
    made
        Its tokens; the last may be the end token.
    ended
        Why it ended, if it has.
    """

    text: Text
    constraint: Constraint | None
    score: float = 0.0
    made: tuple[Told, ...] = field(default=())
    ended: Ended | None = None


class BeamRequest(Request):
    """A text that is asked for as the likeliest of all, as far as `num_beams` texts tell.

    Each step keeps the best continuations of all beams (Lowerre 1976). Those that end are put
    aside, and compared by their log-probability divided by their number of new tokens to the power
    of `length_penalty` (Wu et al. 2016). The search ends when no text that goes on can become
    better than the `num_beams` best of these. Then all tokens come at once.
    """

    def __init__(
        self,
        ids: list[int],
        config: SamplingConfig,
        model: Model,
        writer: Callable[[], TextWriter],
        constraint: Constraint | None = None,
    ) -> None:
        super().__init__(ids, config, model)
        self.slots = config.num_beams
        self._new_writer = writer
        self._max_seq_len = model.max_seq_len
        self._beams = [Beam(self.texts[0], constraint)]
        self._found: list[Beam] = []

    @property
    def made(self) -> list[int]:
        best = (self._found or self._beams)[0]
        return [token for token, _, _ in best.made if token not in self._end_ids]

    def go_on(self, logits: list[NDArray[Any]], batch: Batch) -> list[Token]:
        going_on: list[Beam] = []
        for rank, (beam, token) in enumerate(self._best(logits)):
            ended = self._ended(beam, token)
            grown = replace(beam, ended=ended)
            if ended is None:
                going_on.append(grown)
            elif ended != "end" or rank < self.slots:  # one of the best must have ended
                self._found.append(grown)
            if len(going_on) == self.slots:
                break
        if not going_on and not self._found:  # the settings leave no token
            self._found = [replace(beam, ended="end") for beam in self._beams]
        self._found.sort(key=self._value, reverse=True)  # of equals, what was found first
        del self._found[self.slots :]
        if not going_on or self._is_settled(going_on):
            return self._told()
        self._follow(going_on, batch)
        return []

    def _best(self, logits: list[NDArray[Any]]) -> list[tuple[Beam, int]]:
        """Return twice as many continuations of the beams as there are beams, the best first."""
        candidates: list[tuple[float, int, int]] = []
        for i, (beam, row) in enumerate(zip(self._beams, logits, strict=True)):
            logprobs = log_softmax(row)
            changed = self._sampler.scores(beam.text.ids, row, beam.constraint)
            # The change is added: what a constraint rules out makes the others no likelier.
            values = beam.score + (logprobs + (changed - row))
            for token in np.argsort(-values, kind="stable")[: 2 * self.slots].tolist():
                if values[token] > -math.inf:
                    candidates.append((-float(values[token]), i, token))
        candidates.sort()
        return [
            (self._grown(self._beams[i], token, -value, logits[i]), token)
            for value, i, token in candidates[: 2 * self.slots]
        ]

    def _grown(self, beam: Beam, token: int, score: float, logits: NDArray[Any]) -> Beam:
        """Return a beam with one more token."""
        logprob: float | None = None
        best: Likely = ()
        if self.config.logprobs is not None:
            logprob, best = told(logits, token, self.config.logprobs)
        return replace(beam, score=score, made=(*beam.made, (token, logprob, best)))

    def _ended(self, beam: Beam, token: int) -> Ended | None:
        if token in self._end_ids:
            return "end"
        if self.config.stop:
            writer = self._new_writer()
            for made, _, _ in beam.made:
                writer.push(made)
            if writer.stopped:
                return "stop"
        return "length" if len(beam.made) >= self.config.max_new_tokens else None

    def _value(self, beam: Beam, length: int = 0) -> float:
        """Return what a beam is compared by, as if it had a length."""
        tokens = float(max(1, length or len(beam.made)))
        return beam.score / math.pow(tokens, self.config.length_penalty)

    def _is_settled(self, going_on: list[Beam]) -> bool:
        """Whether none that goes on can become better than the worst that is found."""
        if len(self._found) < self.slots:
            return False
        # Scores only fall (unless settings add to them); a longer text may be worth more.
        length = self.config.max_new_tokens if self.config.length_penalty > 0 else 0
        best = max(self._value(beam, length) for beam in going_on)
        return best <= self._value(self._found[-1])

    def _follow(self, going_on: list[Beam], batch: Batch) -> None:
        """Go on with these beams: the first child of a text has its slot, others get a copy."""
        before = {id(text): list(text.ids) for text in self.texts}
        parents = {id(beam.text) for beam in going_on}
        spare = [text for text in self.texts if id(text) not in parents]
        taken: set[int] = set()
        self._beams = []
        for beam in going_on:
            text, ids = beam.text, before[id(beam.text)]
            if id(text) in taken:
                text = spare.pop() if spare else Text([], self._max_seq_len)
                batch.fork(beam.text, text)
            taken.add(id(beam.text))
            token = beam.made[-1][0]
            text.ids = [*ids, token]
            constraint = beam.constraint and beam.constraint.after(token)
            self._beams.append(replace(beam, text=text, constraint=constraint))
        for text in spare:
            batch.close(text)
        self.texts = [beam.text for beam in self._beams]

    def _told(self) -> list[Token]:
        """Return the tokens of the best texts, one text after the other."""
        self.ended = self._found[0].ended
        tokens: list[Token] = []
        for rank, beam in enumerate(self._found[: self.config.n]):
            writer = self._new_writer()
            for i, (token, logprob, best) in enumerate(beam.made, 1):
                text = writer.push(token) if token not in self._end_ids else ""
                is_last = i == len(beam.made)
                text += writer.finish() if is_last else ""
                ended = beam.ended if is_last else None
                tokens.append(Token(self, token, text, logprob, best, ended, rank))
        return tokens
