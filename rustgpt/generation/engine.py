"""Owns the loop that makes texts, several at once: one token of each of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from rustgpt.backend import single_threaded_blas
from rustgpt.errors import ConfigError
from rustgpt.generation.batch import Batch
from rustgpt.generation.beam_search import BeamRequest
from rustgpt.generation.constraint import Constraint, constraints_of
from rustgpt.generation.request import Model, Request, Token
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.generation.text_writer import TextWriter
from rustgpt.text.tokenizer import token_ids

SLOTS: Final = 8  # texts that are made at once, unless more are asked for


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
    chunk
        The most tokens of prompts that are read between two tokens of other texts; by default 512.

    Examples
    --------
    Any number of prompts at once:

        engine = Engine(model)
        requests = [engine.add(ids, SamplingConfig(seed=1)) for ids in prompts]
        for token in engine.run():
            ...
    """

    def __init__(self, model: Model, slots: int = SLOTS, chunk: int | None = None) -> None:
        self._model = model
        self._batch = Batch(
            model._decode, model.max_seq_len, slots, lambda: model.weights_version, chunk
        )
        self._slots = slots
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._made: list[Token] = []  # by a step that has failed for another request
        self._one_thread = single_threaded_blas()

    @property
    def requests(self) -> list[Request]:
        """What is running, and what waits."""
        return [*self._running, *self._waiting]

    def constraints(
        self, prompts: Sequence[Sequence[int]], config: SamplingConfig
    ) -> list[Constraint] | None:
        """Return what the answers to prompts are held to, for `add`; None for nothing.

        Any thread may call it, while another uses the engine: a large schema takes its time.

        Raises
        ------
        ConfigError
            If no answer follows the settings, or if they need another tokenizer.
        """
        tokenizer, end_ids = self._model.tokenizer, self._model.end_ids
        return constraints_of(config, tokenizer, [*map(self._prompt, prompts)], end_ids)

    def _prompt(self, ids: Sequence[int]) -> list[int]:
        tokenizer = self._model.tokenizer
        return token_ids(ids, tokenizer.vocab_size).tolist() or [tokenizer.end_id]

    def add(
        self,
        ids: Sequence[int],
        config: SamplingConfig | None = None,
        *,
        text: bool = True,
        strip: bool = False,
        sample: int = 0,
        like: Request | None = None,
        constraint: Constraint | None = None,
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
            Whether white space at the text's beginning and end is left out, as it is where the text
            is held to choices or a schema.
        sample
            Which of several texts of the same prompt and seed this is.
        like
            A request of the same prompt, which is read once for both.
        constraint
            What the answer is held to by these settings, if `constraints` has made it before.

        Raises
        ------
        ConfigError
            If the settings do not go with the model's vocabulary, or with the slots.
        TokenizerError
            If an id is not in the vocabulary.
        """
        config = config or SamplingConfig()
        prompt = self._prompt(ids)
        if config.num_beams > self._slots:
            raise ConfigError(
                f"{config.num_beams} beams need as many slots, but the engine has {self._slots}"
            )
        if constraint is None and (held := self.constraints([prompt], config)):
            constraint = held[0]
        strip = strip or constraint is not None  # for the space that it may begin with
        model, begin = self._model, tuple(prompt)

        def writer() -> TextWriter:
            return TextWriter(model.tokenizer.stream(after=begin), config.stop, strip)

        if config.num_beams > 1:
            return self._queued(BeamRequest(prompt, config, model, writer, constraint))
        own = writer() if text or config.stop else None
        return self._queued(Request(prompt, config, model, sample, own, constraint), like)

    def _queued(self, request: Request, like: Request | None = None) -> Request:
        request.like = like
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
        return self._step()

    def run(self) -> Iterator[Token]:
        """Yield the tokens of all requests until every one has ended."""
        while self._running or self._waiting or self._made:
            yield from self.step()

    def finish(self) -> list[Token]:
        """Return the tokens of all requests when every one has ended."""
        made: list[Token] = []
        with self._one_thread:
            while self._running or self._waiting or self._made:
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
        if logits[-1] is None or (len(logits) > 1 and any(row is None for row in logits)):
            return []  # it is still being read
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
            request = self._waiting[0]
            like = request.like
            if like in self._running and not like.is_read:
                return
            self._waiting.popleft()
            room -= request.slots
            self._batch.open(request.texts[0])
            self._running.append(request)
