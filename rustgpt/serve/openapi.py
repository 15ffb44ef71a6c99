"""Owns the description of the API in OpenAPI's form, made of the fields that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rustgpt import __version__
from rustgpt.serve import requests
from rustgpt.serve.config import Limits
from rustgpt.serve.fields import Field, object_schema

# What may be answered instead, beside 200.
REFUSALS = {
    "400": "The request is wrong.",
    "401": "The key is missing or wrong.",
    "403": "The Host or the Origin is refused.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The Content-Type is not application/json.",
    "429": "Too many wait.",
    "431": "The head is too large.",
    "500": "The server failed.",
    "503": "The model is being loaded, or the answer took too long.",
}


def description(limits: Limits) -> dict[str, Any]:
    """Return the description of all addresses."""
    chat = requests.chat_fields(limits)
    paths = {
        "/v1/chat/completions": _post("Answer a dialogue.", chat, ("model", "messages"), True),
        "/v1/completions": _post(
            "Continue a text.", requests.completion_fields(limits), ("model",), True
        ),
        "/v1/embeddings": _post(
            "Return vectors of texts.", requests.embedding_fields(limits), ("model", "input")
        ),
        "/tokenize": _post("Turn text into tokens.", requests.tokenize_fields(limits), ()),
        "/v1/models": _get("Name the model."),
        "/v1/models/{name}": _get("Describe the model.", "name", {"404": "There is no such."}),
        "/health": _get("Tell whether the model is loaded."),
        "/metrics": _get("Counts and times.", kind="text/plain"),
    }
    error = {
        "type": "object",
        "properties": {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        },
        "required": ["message", "type", "param", "code"],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "rustgpt", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object", "properties": {"error": error}, "required": ["error"]
                }
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }  # fmt: skip


def _answers(more: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status, text in {**REFUSALS, **more}.items():
        found[status] = {"description": text, "content": error}
    return found


def _post(
    text: str, fields: Mapping[str, Field], required: tuple[str, ...], streams: bool = False
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"application/json": {"schema": object_schema(fields, required)}}
    answers = _answers({"404": "There is no such model."}, content)
    request = {"required": True, "content": body}
    return {"post": {"summary": text, "requestBody": request, "responses": answers}}


def _get(
    text: str,
    parameter: str = "",
    more: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": text, "responses": _answers(more or {}, {kind: {}})}
    if parameter:
        found["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return {"get": found}
