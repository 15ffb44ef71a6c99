"""Owns which fields each kind of request has, and the settings that they make of a text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rustgpt.generation.sampling_config import SamplingConfig
from rustgpt.serve.config import Limits
from rustgpt.serve.errors import invalid
from rustgpt.serve.fields import (
    Biases,
    Field,
    Flag,
    Ignored,
    LeftOut,
    Number,
    Object,
    Refused,
    Schema,
    Text,
    Texts,
    too_long,
)
from rustgpt.serve.prompts import Messages, Prompts

LONGEST_NAME: Final = 256
MOST_BEAMS: Final = 64
# Fields of OpenAI's which tell the server something that it does not need to know.
IGNORED: Final = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
)  # fmt: skip


@dataclass(frozen=True)
class AnySchema:
    """A JSON schema, of a limited length."""

    limits: Limits

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, dict):
            raise invalid(name, f"{name} must be an object")
        length = len(json.dumps(value))
        if length > self.limits.characters:
            raise too_long(name, length, self.limits.characters)
        return value

    def schema(self) -> Schema:
        return {"type": "object"}


def sampling_fields(limits: Limits) -> dict[str, Field]:
    """Return the fields that say how a text is made, of every kind of request."""
    options: dict[str, Field] = {
        "include_usage": Flag(), "include_obfuscation": Refused((False,))
    }  # fmt: skip
    return {
        "model": Text(LONGEST_NAME, 1),
        "stream": Flag(),
        "stream_options": Object(options),
        "max_tokens": Number(0, 2**31 - 1, whole=True),
        "n": Number(1, limits.n, whole=True),
        "stop": Texts(limits.stops, limits.stop_characters),
        "seed": Number(-(2**63), 2**63 - 1, whole=True),
        "temperature": Number(0, 2),
        "top_p": Number(0, 1, above=True),
        "presence_penalty": Number(-2, 2),
        "frequency_penalty": Number(-2, 2),
        "logit_bias": Biases(),
        # Of rustgpt alone.
        "top_k": Number(0, 2**31 - 1, whole=True),
        "min_p": Number(0, 1),
        "repetition_penalty": Number(1e-3, 1e3),
        "no_repeat_ngram": Number(0, 2**31 - 1, whole=True),
        "choices": Texts(limits.messages, limits.characters),
        "num_beams": Number(1, MOST_BEAMS, whole=True),
        "length_penalty": Number(-10, 10),
        **dict.fromkeys(IGNORED, Ignored()),
    }


def chat_fields(limits: Limits) -> dict[str, Field]:
    """Return the fields of /v1/chat/completions."""
    named: dict[str, Field] = {
        "name": Text(LONGEST_NAME),
        "description": Text(limits.characters),
        "strict": Flag(),
    }
    form: dict[str, Field] = {
        "type": Text(20, choices=("text", "json_object", "json_schema")),
        "json_schema": Object({**named, "schema": AnySchema(limits)}),
    }
    return {
        **sampling_fields(limits),
        "messages": Messages(limits),
        "max_tokens": Number(1, 2**31 - 1, whole=True),
        "max_completion_tokens": Number(1, 2**31 - 1, whole=True),
        "logprobs": Flag(),
        "top_logprobs": Number(0, limits.logprobs, whole=True),
        "response_format": Object(form),
        "tools": LeftOut(),
        "tool_choice": Refused(("none", "auto")),
        "functions": LeftOut(),
        "function_call": Refused(("none", "auto")),
        "modalities": Refused((["text"],)),
        "audio": Refused(),
        "prediction": Refused(),
        "web_search_options": Refused(),
        "reasoning_effort": Refused(("none",)),
        "verbosity": Refused(("medium",)),
    }


def completion_fields(limits: Limits) -> dict[str, Field]:
    """Return the fields of /v1/completions."""
    return {
        **sampling_fields(limits),
        "prompt": Prompts(limits, limits.n * 4),
        "logprobs": Number(0, limits.logprobs, whole=True),
        "json_schema": AnySchema(limits),
        "echo": Flag(),
        "best_of": Number(1, limits.n, whole=True),
        "suffix": Refused(("",)),
    }


def embedding_fields(limits: Limits) -> dict[str, Field]:
    """Return the fields of /v1/embeddings."""
    return {
        "model": Text(LONGEST_NAME, 1),
        "input": Prompts(limits, limits.messages),
        "encoding_format": Text(10, choices=("float", "base64")),
        "dimensions": Number(1, 2**31 - 1, whole=True),
        **dict.fromkeys(IGNORED[:1], Ignored()),
    }


def tokenize_fields(limits: Limits) -> dict[str, Field]:
    """Return the fields of /tokenize."""
    return {
        "model": Text(LONGEST_NAME, 1),
        "prompt": Prompts(limits, 1),
        "messages": Messages(limits),
    }


def max_tokens(values: Mapping[str, Any], prompt_length: int, context: int) -> int:
    """Return how many tokens a request asks for; by default what the context has room for."""
    name = "max_tokens"
    if "max_completion_tokens" in values:
        if "max_tokens" in values:
            message = "max_tokens and max_completion_tokens cannot both be given"
            raise invalid("max_tokens", message)
        name = "max_completion_tokens"
    wanted = values.get(name)
    if wanted is None:
        return max(1, context - prompt_length)
    if wanted > context:
        raise invalid(
            name, f"{name} is too large: {wanted}. This model makes at most {context} tokens"
        )
    return int(wanted)


def sampling_of(
    values: Mapping[str, Any], most: int, vocab_size: int, temperature: float
) -> SamplingConfig:
    """Return the settings that a request makes; ConfigError if they contradict each other.

    Parameters
    ----------
    values
        Of its fields.
    most
        The most tokens to make.
    vocab_size
        V
    temperature
        Where the request names none.
    """
    if values.get("top_k", 0) > vocab_size:
        raise invalid("top_k", f"top_k must be from 0 to {vocab_size}, got {values['top_k']}")
    if values.get("best_of", values.get("n", 1)) != values.get("n", 1):
        raise invalid("best_of", "best_of must be n: this server returns all that it makes")
    if "length_penalty" in values and values.get("num_beams", 1) == 1:
        raise invalid("length_penalty", "length_penalty needs num_beams above 1")
    same = (
        "n", "stop", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "no_repeat_ngram", "logit_bias", "choices", "num_beams",
        "length_penalty",
    )  # fmt: skip
    given = {name: values[name] for name in same if name in values}
    seed = values.get("seed")
    return SamplingConfig(
        max_new_tokens=most,
        temperature=values.get("temperature", temperature),
        seed=int.from_bytes(os.urandom(7), "big") if seed is None else seed % 2**63,
        logprobs=_likely(values),
        json_schema=_json_schema(values),
        **given,
    )


def _likely(values: Mapping[str, Any]) -> int | None:
    """Return how many likely tokens are to be told of; None for not even the one that is made."""
    wanted = values.get("logprobs")
    if "top_logprobs" in values:
        if not wanted:
            raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
        return int(values["top_logprobs"])
    if isinstance(wanted, bool):
        return 0 if wanted else None
    return wanted


def _json_schema(values: Mapping[str, Any]) -> Any:
    form = values.get("response_format", {})
    kind = form.get("type")
    if form and kind is None:
        raise invalid("response_format.type", "response_format.type is missing")
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        schema = form.get("json_schema", {}).get("schema")
        if schema is None:
            raise invalid("response_format.json_schema", "it must have a schema")
        return schema
    return values.get("json_schema")
