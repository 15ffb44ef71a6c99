"""Owns the loop that makes texts, several at once: one token of each of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

from numpy.typing import NDArray

from rustgpt.backend import single_threaded_blas
from rustgpt.errors import ConfigError
from rustgpt.generation.batch import Batch, Text
from rustgpt.generation.constraint import Constraint
from rustgpt.generation.sampling import Likely, Sampler, likeliest, log_softmax
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.generation.text_writer import TextWriter
from rustgpt.layers.cache import Cache
from rustgpt.text.tokenizer import Tokenizer, token_ids

Ended = Literal["end", "stop", "length"]
SLOTS: Final = 8  # texts that are made at once, unless more are asked for


class Model(Protocol):
    """What the engine needs of a model."""

    tokenizer: Tokenizer

    @property
    def max_seq_len(self) -> int: ...
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
        The token; the end token if the model ends the text with it.
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
        The tokens so far, without the end token.
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
        self._end_id = model.tokenizer.end_id
        self._sampler = Sampler(config, self._end_id, model.tokenizer.vocab_size, sample)
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
        if token == self._end_id:
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


class Engine:
    """Makes texts from token ids, each with settings of its own.

    Requests come and go between two tokens. All that are running go through the model together;
    those for which there is no room wait in their order. One thread at a time may use an engine.

    Parameters
    ----------
    model
        An `LLM`. While it is trained, each token is made of the weights between two steps.
    slots
        How many texts are made at once; each takes the memory of a `Cache` slot.

    Examples
    --------
    Any number of prompts at once:

        engine = Engine(model)
        requests = [engine.add(ids, SamplingConfig(seed=1)) for ids in prompts]
        for token in engine.run():
            ...
    """

    def __init__(self, model: Model, slots: int = SLOTS) -> None:
        self._model = model
        self._batch = Batch(model._decode, model.max_seq_len, slots, lambda: model.weights_version)
        self._slots = slots
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._made: list[Token] = []  # by a step that has failed for another request
        self._one_thread = single_threaded_blas()

    @property
    def requests(self) -> list[Request]:
        """What is running, and what waits."""
        return [*self._running, *self._waiting]

    def add(
        self,
        ids: Sequence[int],
        config: SamplingConfig | None = None,
        *,
        text: bool = True,
        strip: bool = False,
        sample: int = 0,
        like: Request | None = None,
    ) -> Request:
        """Take a request; its first token comes with one of the next steps.

        Parameters
        ----------
        ids
            The prompt's tokens; of more than the context, the end is seen. None mean the beginning
            of a text, which is the end token.
        config
            How the text is made.
        text
            Whether the tokens are to be turned into text; stop strings need it.
        strip
            Whether white space at the text's beginning and end is left out.
        sample
            Which of several texts of the same prompt and seed this is.
        like
            A request of the same prompt, which is read once for both.

        Raises
        ------
        ConfigError
            If the settings do not go with the model's vocabulary, or with the slots.
        TokenizerError
            If an id is not in the vocabulary.
        """
        config = config or SamplingConfig()
        tokenizer = self._model.tokenizer
        prompt = token_ids(ids, tokenizer.vocab_size).tolist() or [tokenizer.end_id]
        writer = None
        if text or config.stop:
            writer = TextWriter(tokenizer.stream(after=prompt), config.stop, strip)
        request = Request(prompt, config, self._model, sample, writer)
        request.like = like
        if request.slots > self._slots:
            raise ConfigError(
                f"{request.slots} beams need as many slots, but the engine has {self._slots}"
            )
        if request.ended is None:
            self._waiting.append(request)
        return request

    def drop(self, request: Request) -> None:
        """Let a request go, wherever it is; nothing happens if it has ended."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._running:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        self._running.remove(request)
        for text in request.texts:
            self._batch.close(text)

    def step(self) -> list[Token]:
        """Make the next token of every running request; return what is made.

        None of them may have one, while long prompts are read.

        Raises
        ------
        RustGPTError
            If the model's scores are not finite.
        """
        with self._one_thread:
            return self._step()

    def run(self) -> Iterator[Token]:
        """Yield the tokens of all requests until every one has ended."""
        while self._running or self._waiting:
            yield from self.step()

    def finish(self) -> list[Token]:
        """Return the tokens of all requests when every one has ended."""
        made: list[Token] = []
        with self._one_thread:
            while self._running or self._waiting:
                made += self._step()
        return made

    def _step(self) -> list[Token]:
        if self._waiting:
            self._admit()
        running = self._running
        if len(running) == 1 and not self._made:  # the usual case, without a detour
            request = running[0]
            return self._go_on(request, self._batch.read(request.texts))
        made, self._made = self._made, []
        logits = self._batch.read([text for request in running for text in request.texts])
        error: Exception | None = None
        at = 0
        for request in [*running]:
            own = logits[at : at + len(request.texts)]
            at += len(own)
            try:
                made += self._go_on(request, own)
            except Exception as raised:  # of this one; the others have their tokens
                error = error or raised
        if error is not None:
            self._made = made
            raise error
        return made

    def _go_on(self, request: Request, logits: list[NDArray[Any] | None]) -> list[Token]:
        if logits[0] is None:  # its prompt is still being read
            return []
        try:
            made = request.go_on(logits, self._batch)  # type: ignore[arg-type]
        except Exception:
            self._leave(request)
            raise
        if request.ended is not None:
            self._leave(request)
        return made

    def _admit(self) -> None:
        """Let those that wait begin, in their order, as far as there is room."""
        room = self._slots - sum(request.slots for request in self._running)
        while self._waiting and self._waiting[0].slots <= room:
            request, like = self._waiting[0], self._waiting[0].like
            if like is not None and not like.is_read:
                return
            self._waiting.popleft()
            room -= request.slots
            self._batch.open(request.texts[0])
            self._running.append(request)
