"""Owns how a request's body comes in and its texts go out, as long as the client is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rustgpt.errors import RustGPTError
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.serve.answers import Answer, Part, parts_of
from rustgpt.serve.errors import ApiError, internal, invalid, json_response, json_text
from rustgpt.serve.service import Service
from rustgpt.serve.worker import EngineFailure, Job

Result = TypeVar("Result")


class Made(Response):
    """The answer to a request for texts, whole or in chunks, while they are made."""

    def __init__(
        self,
        service: Service,
        prompts: list[list[int]],
        config: SamplingConfig,
        answer: Answer,
        values: Mapping[str, Any],
        headers: Mapping[str, str],
        strip: bool = False,
        echo: Callable[[], Awaitable[list[Part]]] | None = None,
    ) -> None:
        self._service = service
        self._prompts = prompts
        self._config = config
        self._answer = answer
        self._streams = values.get("stream", False)
        self._tells_usage = values.get("stream_options", {}).get("include_usage", False)
        self._more_headers = dict(headers)
        self._strip = strip
        self._echo = echo
        self._began = time.monotonic()
        if "stream_options" in values and not self._streams:
            raise invalid("stream_options", "stream_options needs stream to be true")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._answered(scope, receive, send))

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        seconds = service.config.limits.generation_seconds
        echoed = await self._echoed(seconds)
        work = service.worker.job(self._prompts, self._config, self._strip, seconds)
        try:
            async with work as job:
                service.metrics.prompt_tokens += sum(map(len, self._prompts))
                if self._streams:
                    await self._stream(job, echoed, scope, send)
                    return
                parts = dict(enumerate(echoed))
                async for new in self._news(job):
                    for index, part in new.items():
                        _join(parts.setdefault(index, Part()), part)
        except EngineFailure:
            raise
        except RustGPTError as error:  # the settings do not go with the model
            raise invalid(None, str(error)) from None
        if not any(part.tokens or part.ended for part in parts.values()):
            raise too_long(seconds)
        for index in range(job.texts):  # of what has come too late to begin
            parts.setdefault(index, Part())
        content = self._answer.whole(parts)
        await json_response(content, headers=self._more_headers)(scope, receive, send)

    async def _echoed(self, seconds: float) -> list[Part]:
        """Return what the texts begin with, if it is the prompt."""
        if self._echo is None:
            return []
        try:
            async with asyncio.timeout(seconds):
                return await self._echo()
        except TimeoutError:
            raise too_long(seconds) from None

    async def _news(self, job: Job) -> AsyncIterator[dict[int, Part]]:
        """Yield what is new of each text until all have ended, or the time has."""
        metrics, is_first = self._service.metrics, True
        async for made in job.made():
            if is_first:
                metrics.first_token_seconds.observe(time.monotonic() - self._began)
                is_first = False
            # What is told of each token has a chunk of its own; otherwise one has what is there.
            for some in [[one] for one in made] if self._config.logprobs is not None else [made]:
                new: dict[int, Part] = {}
                parts_of(some, new)
                metrics.made_tokens += sum(len(part.tokens) for part in new.values())
                yield new

    async def _stream(self, job: Job, echoed: list[Part], scope: Scope, send: Send) -> None:
        """Send server-sent events."""
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        kind += [(name.encode(), value.encode()) for name, value in self._more_headers.items()]
        kind += [(b"x-accel-buffering", b"no")]  # nginx passes each one on at once
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        lengths = dict.fromkeys(range(job.texts), 0)
        await self._send_chunks(send, self._answer.begin(job.texts))
        for index, part in enumerate(echoed):
            await self._send_chunks(send, self._answer.chunks(index, part))
            lengths[index] = part.echoed
        unfinished = {*range(job.texts)}
        try:
            async for new in self._news(job):
                chunks: list[dict[str, Any]] = []
                for index, part in new.items():
                    part.length = lengths[index]
                    lengths[index] += len(part.text)
                    chunks += self._answer.chunks(index, part)
                    unfinished -= {index} if part.ended else set()
                await self._send_chunks(send, chunks)
        except RustGPTError as error:
            is_ours = isinstance(error, EngineFailure)
            told = internal(scope["request_id"]) if is_ours else invalid(None, str(error))
            await _send_events(send, [told.content()])
            await _send(send, b"", more=False)
            if is_ours:
                raise
            return
        for index in sorted(unfinished):
            await self._send_chunks(send, self._answer.chunks(index, Part(ended="length")))
        if self._tells_usage:
            await _send_events(send, [self._answer.usage_chunk()])
        await _send(send, b"data: [DONE]\n\n", more=False)

    async def _send_chunks(self, send: Send, chunks: list[dict[str, Any]]) -> None:
        if self._tells_usage:
            chunks = [{**chunk, "usage": None} for chunk in chunks]
        if chunks:
            await _send_events(send, chunks)


async def _send_events(send: Send, contents: list[dict[str, Any]]) -> None:
    await _send(send, "".join(f"data: {json_text(one)}\n\n" for one in contents).encode())


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _join(part: Part, new: Part) -> None:
    part.text += new.text
    part.tokens += new.tokens
    part.ended = new.ended


def too_long(seconds: float) -> ApiError:
    """Return the error of what was not made in time."""
    return ApiError(503, f"this took longer than {seconds:g} s", "timeout")


class Gone(Response):
    """Nothing: the client has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """Return the body of a request.

    Raises
    ------
    ApiError
        If it is too large, or takes too long.
    """
    refused = ApiError(413, f"the body is too large: at most {most} bytes are accepted")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise refused
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise refused
    except TimeoutError:
        raise ApiError(
            408, f"the body took longer than {seconds:g} s", headers={"Connection": "close"}
        ) from None
    return bytes(body)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return what work comes to; if the client leaves before, end the work and return None."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait((task, gone))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
