"""Owns the model that is served: how it is loaded, and what is done with it off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from rustgpt.generation.sampling import Likely
from rustgpt.llm import LLM
from rustgpt.serve.config import ServeConfig, chunk_for, slots_for
from rustgpt.serve.errors import ApiError, invalid
from rustgpt.serve.metrics import Metrics
from rustgpt.serve.worker import RETRY_AFTER, Worker
from rustgpt.text.chat_template import RUSTGPT
from rustgpt.text.dialogue import NAMES, Message

Result = TypeVar("Result")
Given = TypeVar("Given")
READERS: Final = 2  # threads that turn texts into tokens


class Service:
    """A model, its worker, and threads for the rest that takes time.

    Parameters
    ----------
    config
        How it is served.
    name
        What the model is called.
    load
        Returns the model; is called in a thread.
    """

    def __init__(self, config: ServeConfig, name: str, load: Callable[[], LLM]) -> None:
        self.config = config
        self.name = config.name or name
        self.metrics = Metrics()
        self.connections: Callable[[], int] = lambda: 0
        self.created = 0
        self._load = load
        self._model: LLM | None = None
        self._worker: Worker | None = None
        self._readers = ThreadPoolExecutor(READERS, "rustgpt-reader")
        self._passes = ThreadPoolExecutor(1, "rustgpt-passes")
        self._passing = 0

    async def start(self) -> None:
        """Load the model and begin to serve it."""
        model = await self.read(self._load)
        slots = self.config.slots or slots_for(model.config)
        self._worker = Worker(
            model, slots, self.config.limits.queued, chunk_for(model.n_parameters)
        )
        self.reads_system = self._reads_system(model)
        self._model = model

    def stop(self) -> None:
        """End all threads."""
        if self._worker is not None:
            self._worker.stop()
        for threads in (self._readers, self._passes):
            threads.shutdown(cancel_futures=True)

    @property
    def is_ready(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> LLM:
        """The model; ApiError while it is loaded."""
        if self._model is None:
            headers = {"Retry-After": RETRY_AFTER}
            raise ApiError(503, "the model is being loaded", "loading", headers=headers)
        return self._model

    @property
    def worker(self) -> Worker:
        self.model  # noqa: B018  (it may be loading)
        assert self._worker is not None
        return self._worker

    def _reads_system(self, model: LLM) -> bool:
        """Tell whether the model was trained with system messages, as far as it shows.

        Those of others were. Ours has learned what its vocabulary has.
        """
        if self.config.system_messages != "auto":
            return self.config.system_messages == "use"
        if model.config.chat_template != RUSTGPT:
            return True
        vocab = getattr(model.tokenizer, "vocab", None)
        return vocab is not None and NAMES["system"].removesuffix(":") in vocab.tokens

    def check_name(self, name: str) -> None:
        """Raise ApiError if a request is for another model."""
        if name != self.name:
            message = f"the model {name!r:.60} does not exist; this server has {self.name!r}"
            raise ApiError(404, message, "model_not_found", "model")

    async def read(self, work: Callable[[], Result]) -> Result:
        """Return what work in a reader's thread comes to."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def chat_prompt(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Return the tokens of a dialogue, and whether system messages were left out of it."""
        kept = [m for m in messages if self.reads_system or m.role != "system"]
        return self.model.text_format.chat_prompt(kept), len(kept) < len(messages)

    def prompt(self, prompt: str | list[int]) -> list[int]:
        """Return the tokens of a text, or those that are given."""
        if isinstance(prompt, str):
            return self.model.prompt_ids(prompt)
        if max(prompt) >= self.model.tokenizer.vocab_size:
            most = self.model.tokenizer.vocab_size - 1
            raise invalid(None, f"token ids must be from 0 to {most}, got {max(prompt)}")
        return prompt

    def check_length(self, ids: list[int], param: str) -> None:
        """Raise ApiError if a prompt leaves no room for an answer."""
        context = self.model.max_seq_len
        if len(ids) > context - 1:
            raise invalid(
                param,
                f"this model's maximum context length is {context} tokens, of which the answer "
                f"needs one at least. However, your {param} resulted in {len(ids)} tokens. "
                f"Please reduce the length of the {param}.",
                "context_length_exceeded",
            )

    async def embed(self, texts: Sequence[str | list[int]]) -> list[tuple[list[float], int]]:
        """Return a vector of each text, and how many tokens it has.

        Raises
        ------
        ApiError
            If too many wait.
        """
        model = self.model

        def one(text: str | list[int]) -> tuple[list[float], int]:
            ids = self.prompt(text)
            if not ids:
                raise invalid("input", "an empty input has no vector")
            return model.embed_ids(ids).tolist(), len(ids)

        return await self._passed(one, texts)

    async def told(
        self, prompts: Sequence[list[int]], top: int
    ) -> list[list[tuple[float | None, Likely]]]:
        """Return the log-probability of each token of prompts, and the likeliest in its place.

        Raises
        ------
        ApiError
            If too many wait.
        """
        model = self.model
        return await self._passed(lambda ids: model.logprobs_ids(ids, top), prompts)

    async def _passed(self, one: Callable[[Given], Result], texts: Sequence[Given]) -> list[Result]:
        """Return what one comes to of each text, in the thread of passes over whole texts."""
        if self._passing >= self.config.limits.queued:
            message = "too many embeddings or prompts' log-probabilities are made: try again later"
            headers = {"Retry-After": RETRY_AFTER}
            raise ApiError(429, message, "rate_limit_exceeded", headers=headers)
        is_wanted = True

        def work() -> list[Result]:
            return [one(text) for text in texts if is_wanted]

        self._passing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._passes, work)
        finally:
            is_wanted = False
            self._passing -= 1
