"""Owns the thread that makes the texts of all requests, and what passes between it and them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from rustgpt.backend import single_threaded_blas
from rustgpt.errors import ConfigError, RustGPTError
from rustgpt.generation.constraint import Constraint
from rustgpt.generation.engine import Engine
from rustgpt.generation.request import Model, Request, Token
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.serve.errors import ApiError

RETRY_AFTER: Final = "5"  # seconds
LONGEST: Final = 1e6  # seconds


class Made(NamedTuple):
    """A token of a job; `number` says of which of its texts."""

    number: int
    token: Token


class Job:
    """The texts of one request, as the event loop sees them.

    Parameters
    ----------
    prompts
        Token ids of each.
    config
        How the texts are made; `n` of each prompt, one prompt after the other.
    strip
        Whether white space around them is left out.

    Attributes
    ----------
    texts
        How many they are.
    places
        How many are made at once for them: in a beam search, as many as there are beams.
    """

    def __init__(self, prompts: Sequence[list[int]], config: SamplingConfig, strip: bool) -> None:
        self.prompts = prompts
        self.config = config
        self.strip = strip
        self.constraints: list[Constraint] | None = None  # of each prompt's answers
        self.texts = len(prompts) * config.n
        self.places = len(prompts) * max(config.n, config.num_beams)
        self.requests: list[Request] = []  # the worker's
        self.is_closed = False
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = self.texts
        self._made: list[Made] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def push(self, made: Sequence[Made]) -> None:
        """Take what was made."""
        self._made += made
        self._open -= sum(one.token.ended is not None for one in made)
        self._news.set()

    def accept(self) -> None:
        """Note that the engine has taken all of it."""
        if not self.accepted.done():
            self.accepted.set_result(None)

    def fail(self, error: Exception) -> None:
        """Take an error instead of what is still to come."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self._error = error
        self._news.set()

    def expire(self) -> None:
        """Wait for no more."""
        self._open = 0
        self._news.set()

    async def made(self) -> AsyncIterator[list[Made]]:
        """Yield what was made since the last time, until all texts have ended."""
        while self._open or self._made:
            await self._news.wait()
            self._news.clear()
            made, self._made = self._made, []
            if made:
                yield made
            if self._error is not None:
                raise self._error


class Worker:
    """A thread with an engine. The event loop and it exchange messages, and never wait for each
    other: what comes in is seen between two tokens.

    Parameters
    ----------
    model
        Makes the texts.
    slots
        How many are made at once.
    queued
        How many more may wait.
    chunk
        The most tokens of prompts that are read between two tokens of other texts.
    """

    def __init__(self, model: Model, slots: int, queued: int, chunk: int | None = None) -> None:
        self.slots = slots
        self.queued = queued
        self.texts = 0  # that are made or wait; the event loop's
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(model, slots, chunk)
        self._owners: dict[Request, tuple[Job, int]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._builder = ThreadPoolExecutor(1, "rustgpt-grammar")
        self._thread = threading.Thread(target=self._run, name="rustgpt-engine", daemon=True)
        self._thread.start()

    # The event loop's side

    @contextlib.asynccontextmanager
    async def job(
        self,
        prompts: Sequence[list[int]],
        config: SamplingConfig,
        strip: bool = False,
        seconds: float = math.inf,
    ) -> AsyncIterator[Job]:
        """Let the engine make texts, for so long; none any more when the block is left.

        Raises
        ------
        ApiError
            If too many wait.
        RustGPTError
            If the settings do not go with the model.
        """
        job = Job(prompts, config, strip)
        if self.texts + job.places > self.slots + self.queued:
            raise ApiError(
                429,
                f"{self.texts} texts are made or wait already: try again later",
                "rate_limit_exceeded",
                headers={"Retry-After": RETRY_AFTER},
            )
        self.texts += job.places
        late = self._loop.call_later(min(seconds, LONGEST), job.expire)
        try:
            if config.is_held:
                build = functools.partial(self._constraints, prompts, config)
                job.constraints = await self._loop.run_in_executor(self._builder, build)
            self._inbox.put(functools.partial(self._add, job))
            await job.accepted
            yield job
        finally:
            late.cancel()
            job.is_closed = True
            self.texts -= job.places
            self._inbox.put(functools.partial(self._drop, job))

    def stop(self) -> None:
        """End the threads; the engine's between two tokens."""
        self._builder.shutdown(cancel_futures=True)
        self._inbox.put(None)
        self._thread.join()

    # The side of the thread that prepares what answers are held to

    def _constraints(
        self, prompts: Sequence[list[int]], config: SamplingConfig
    ) -> list[Constraint] | None:
        found = self._engine.constraints(prompts, config)
        for constraint in found or ():
            constraint.prepare()
        return found

    # The engine's thread's side

    def _run(self) -> None:
        with single_threaded_blas():
            while self._heed(waits=not self._owners):
                if self._owners:
                    self._step()

    def _heed(self, waits: bool) -> bool:
        """Do what the event loop asks for; return whether to go on."""
        while True:
            try:
                message = self._inbox.get(block=waits)
            except queue.Empty:
                return True
            if message is None:
                return False
            message()
            waits = False

    def _add(self, job: Job) -> None:
        if job.is_closed:
            return
        try:
            for number, ids in enumerate(job.prompts):
                first: Request | None = None
                held = job.constraints[number] if job.constraints else None
                for sample in range(1 if job.config.num_beams > 1 else job.config.n):
                    request = self._engine.add(
                        ids, job.config, strip=job.strip, sample=sample, like=first, constraint=held
                    )
                    first = first or request
                    job.requests.append(request)
                    self._owners[request] = job, number * job.config.n + sample
        except Exception as error:
            self._drop(job)
            self._tell(job.fail, error)
            return
        self._tell(job.accept)
        # One that is to have no token has ended already.
        ended = [request for request in job.requests if request.ended is not None]
        self._deliver([Token(request, -1, ended=request.ended) for request in ended])

    def _drop(self, job: Job) -> None:
        for request in job.requests:
            if self._owners.pop(request, None) is not None:
                self._engine.drop(request)

    def _step(self) -> None:
        """Make a token of each text."""
        try:
            made = self._engine.step()
            if not made and not self._engine.requests:
                raise RuntimeError("the engine has lost a request")
        except Exception as error:
            self._failed(error)
        else:
            self._deliver(made)

    def _failed(self, error: Exception) -> None:
        """Tell the jobs that an error concerns: those whose request is gone, or else all."""
        there = set(self._engine.requests)
        gone = {
            job
            for request, (job, _) in self._owners.items()
            if request not in there and request.ended is None  # what has ended is still to be told
        }
        for job in gone or {job for job, _ in self._owners.values()}:
            self._drop(job)
            is_told = isinstance(error, ConfigError)  # of what was asked for
            self._tell(job.fail, error if is_told else EngineFailure(error))

    def _deliver(self, tokens: Sequence[Token]) -> None:
        made: dict[Job, list[Made]] = {}
        for token in tokens:
            owner = self._owners.get(token.request)
            if owner is None:
                continue
            job, number = owner
            made.setdefault(job, []).append(Made(number + token.rank, token))
        for request in {token.request for token in tokens if token.ended is not None}:
            if request in self._owners:
                job, number = self._owners.pop(request)
                made[job] += _not_found(request, job, number, made[job])
        if made:
            self._tell(_push, made)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may have ended
            self._loop.call_soon_threadsafe(call, *args)


class EngineFailure(RustGPTError):
    """The engine has failed while it made a text."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.__cause__ = cause


def _not_found(request: Request, job: Job, number: int, made: Sequence[Made]) -> list[Made]:
    """Return the ends of texts that a beam search has not found: there are no others."""
    if job.config.num_beams == 1:
        return []
    found = {one.number for one in made}
    empty = Token(request, -1, ended=request.ended)
    return [Made(i, empty) for i in range(number, number + job.config.n) if i not in found]


def _push(made: dict[Job, list[Made]]) -> None:
    for job, own in made.items():
        job.push(own)
