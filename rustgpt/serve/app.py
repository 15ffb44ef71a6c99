"""Owns the addresses of the server, and what each does."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from rustgpt.errors import ConfigError, DataError, TokenizerError
from rustgpt.generation.continuation import shown
from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.serve import metrics, requests
from rustgpt.serve.answers import Answer, Part, TextAnswer, read_tokens
from rustgpt.serve.delivery import Gone, Made, body_of, too_long, until_gone
from rustgpt.serve.errors import invalid, json_response
from rustgpt.serve.fields import Field, read_fields, read_json
from rustgpt.serve.openapi import description
from rustgpt.serve.security import NOTICE, Guard, log_line
from rustgpt.serve.service import Service

_SCRIPT: Final = "text/javascript; charset=utf-8"
PAGE: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{f"/{name}": (name, _SCRIPT) for name in ("app.js", "api.js", "store.js", "words.js")},
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
SYSTEM_LEFT_OUT: Final = (
    "system messages were left out: the model was trained without (the server's option "
    "--system-messages)"
)
TOOLS_LEFT_OUT: Final = "tools were left out: the model calls none"
OPEN: Final = (*PAGE, "/health")  # without a key
Handler = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, port: int, log: Callable[[str], None] = log_line) -> ASGIApp:
    """Return the application of a service that listens on a port."""
    api = Api(service)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/embeddings", api.embeddings, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/openapi.json", api.openapi),
        *(Route(path, _file(name, kind)) for path, (name, kind) in PAGE.items()),
    ]
    router = Router(routes, redirect_slashes=False)
    paths = {route.path for route in routes}
    return Guard(router, service.config, port, service.metrics, paths, OPEN, log)


def _file(name: str, kind: str) -> Handler:
    content = files("rustgpt.serve").joinpath("page", name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(content, headers={"Cache-Control": "no-cache"}, media_type=kind)

    return serve


class Api:
    """What the addresses do with a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limits = service.config.limits
        self._chat = requests.chat_fields(self._limits)
        self._completion = requests.completion_fields(self._limits)
        self._embedding = requests.embedding_fields(self._limits)
        self._tokenize = requests.tokenize_fields(self._limits)

    # What is made

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        values = await self._read(request, self._chat, ("model", "messages"))
        service = self._service

        def prepare() -> tuple[list[int], bool, SamplingConfig]:
            ids, left_out = service.chat_prompt(values["messages"])
            service.check_length(ids, "messages")
            return ids, left_out, self._sampling(values, len(ids))

        ids, left_out, config = await self._prepared(prepare)
        answer = Answer(
            service.name, service.model.tokenizer, len(ids), config.logprobs is not None
        )
        notices = [SYSTEM_LEFT_OUT] if left_out else []
        notices += [TOOLS_LEFT_OUT] if "tools" in values or "functions" in values else []
        headers = {NOTICE: "; ".join(notices)} if notices else {}
        return Made(self._service, [ids], config, answer, values, headers, strip=True)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        values = await self._read(request, self._completion, ("model",))
        service = self._service

        given = values.get("prompt", [""])

        def prepare() -> tuple[list[list[int]], SamplingConfig]:
            prompts = [service.prompt(prompt) for prompt in given]
            for ids in prompts:
                service.check_length(ids, "prompt")
            return prompts, self._sampling(values, max(map(len, prompts)))

        prompts, config = await self._prepared(prepare)
        answer = TextAnswer(
            service.name,
            service.model.tokenizer,
            sum(map(len, prompts)),
            config.logprobs is not None,
        )

        async def echo() -> list[Part]:
            parts = await self._echoed(given, prompts, config.logprobs)
            return [replace(part, tokens=[]) for part in parts for _ in range(config.n)]

        wanted = echo if values.get("echo") else None
        return Made(service, prompts, config, answer, values, {}, echo=wanted)

    async def _echoed(
        self, given: list[str | list[int]], prompts: list[list[int]], top: int | None
    ) -> list[Part]:
        """Return what texts begin with that begin with their prompts."""
        service = self._service
        tokenizer, bos = service.model.tokenizer, len(service.model.text_format.bos)
        told = None if top is None else await service.told(prompts, top)

        def work() -> list[Part]:
            texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in given]
            parts = [Part(text, echoed=len(text)) for text in texts]
            for part, one, ids, about in zip(parts, given, prompts, told or (), strict=False):
                skip = bos if isinstance(one, str) else 0  # what the server has put before it
                part.read = read_tokens(tokenizer, ids, about, skip)
            return parts

        return await service.read(work)

    def _sampling(self, values: Mapping[str, Any], prompt_length: int) -> SamplingConfig:
        model, temperature = self._service.model, self._service.config.temperature
        most = requests.max_tokens(values, prompt_length, model.max_seq_len)
        return requests.sampling_of(values, most, model.tokenizer.vocab_size, temperature)

    async def _prepared(self, prepare: Callable[[], Any]) -> Any:
        """Return what preparing in another thread comes to; ApiError if the request is wrong."""
        try:
            return await self._service.read(prepare)
        except (ConfigError, TokenizerError, DataError) as error:
            raise invalid(None, str(error)) from None

    async def _read(
        self, request: Request, fields: Mapping[str, Field], required: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return the values of a request's fields."""
        body = await body_of(request, self._limits.body_bytes, self._limits.body_seconds)
        values = read_fields(fields, read_json(body), required=required)
        self._service.model  # noqa: B018  (it may be loading)
        if "model" in values:
            self._service.check_name(values["model"])
        return values

    # What is told

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        values = await self._read(request, self._embedding, ("model", "input"))
        size = self._service.model.config.embedding_dim
        if values.get("dimensions", size) != size:
            raise invalid("dimensions", f"this model's vectors have {size} dimensions")
        seconds = self._limits.generation_seconds
        try:
            async with asyncio.timeout(seconds):
                work = self._service.embed(values["input"])
                found = await until_gone(request.receive, work)
        except TimeoutError:
            raise too_long(seconds) from None
        except (TokenizerError, DataError) as error:
            raise invalid("input", str(error)) from None
        if found is None:
            return Gone()
        packed = values.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": _packed(v) if packed else v}
            for i, (v, _) in enumerate(found)
        ]
        tokens = sum(length for _, length in found)
        self._service.metrics.prompt_tokens += tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        name = self._service.name
        return json_response({"object": "list", "data": data, "model": name, "usage": usage})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize"""
        values = await self._read(request, self._tokenize, ())
        if ("prompt" in values) == ("messages" in values):
            raise invalid("prompt", "give either a prompt or messages")
        service = self._service

        def work() -> dict[str, Any]:
            if "messages" in values:
                ids, _ = service.chat_prompt(values["messages"])
            else:
                ids = service.prompt(values["prompt"][0])
            texts = [shown(service.model.tokenizer, token) for token in ids]
            context = service.model.max_seq_len
            return {
                "count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": texts
            }  # fmt: skip

        return json_response(await self._prepared(work))

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return json_response({"object": "list", "data": [self._about_model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        self._service.check_name(request.path_params["name"])
        return json_response(self._about_model())

    def _about_model(self) -> dict[str, Any]:
        model = self._service.model
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "rustgpt",
            "max_model_len": model.max_seq_len,
            "reads_system_messages": self._service.reads_system,
        }

    async def health(self, request: Request) -> Response:
        """GET /health"""
        is_ready = self._service.is_ready
        content = {"status": "ok" if is_ready else "loading"}
        return json_response(content, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics"""
        service, texts, slots = self._service, 0, 0
        if service.is_ready:
            texts, slots = service.worker.texts, service.worker.slots
        text = service.metrics.text(min(texts, slots), max(0, texts - slots), service.connections())
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json"""
        return json_response(description(self._limits))


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
