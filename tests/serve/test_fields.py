"""Tests of what requests may have: each value within its limits, and a clear word otherwise."""

import pytest

from rustgpt.serve import requests
from rustgpt.serve.config import Limits
from rustgpt.serve.errors import ApiError
from rustgpt.serve.fields import object_schema, read_fields, read_json

LIMITS = Limits()
CHAT = requests.chat_fields(LIMITS)
TEXT = requests.completion_fields(LIMITS)
GOOD = {
    "n": [1, 4, None, 2.0], "temperature": [0, 2, 1.5], "top_p": [1, 0.01], "top_k": [0, 40],
    "stop": ["a", ["a"] * 4, "x" * 64, [], None], "seed": [-1, 0, 2**63 - 1], "logprobs": [True],
    "top_logprobs": [0, 20], "presence_penalty": [-2, 2], "logit_bias": [{"5": -100}, {}],
    "reasoning_effort": ["none"], "verbosity": ["medium"], "modalities": [["text"]],
    "stream_options": [{"include_usage": True, "include_obfuscation": False}],
    "stream": [True], "tools": [[], None, [{"type": "function"}]],
    "user": ["anybody", None], "metadata": [{"a": "b"}],
    "response_format": [{"type": "text"}], "max_tokens": [1], "tool_choice": ["none"],
    "messages": [[{"role": "user", "content": "x" * 32_000}],
                 [{"role": "assistant", "content": ""}] * 499 + [{"role": "user", "content": ""}]],
}  # fmt: skip
BAD = {
    "n": [0, 5, True, "1", 1.5, [1]], "temperature": [-0.1, 2.1, "0", True, []],
    "top_p": [0, 1.1, -1], "top_k": [-1, 0.5], "stop": ["", ["a"] * 5, "x" * 65, [1], {}],
    "seed": [2**63, 1.5, "1"], "logprobs": [1, "true"], "top_logprobs": [-1, 21],
    "presence_penalty": [-2.1, 3], "logit_bias": [{"5": 101}, {"x": 1}, {"-1": 1}, [], {"²": 1}],
    "reasoning_effort": ["high"], "verbosity": ["low"], "num_beams": [0, 65],
    "web_search_options": [{}],
    "stream_options": [{"include_obfuscation": True}, {"x": 1}], "prediction": [{}],
    "modalities": [["audio"]], "functions": [[None]], "function_call": [{"name": "x"}],
    "stream": ["true", 1], "tools": [{}, [1], "x"], "tool_choice": ["required"],
    "max_tokens": [0, -1, 2**31],
    "response_format": [{"type": "xml"}, "json", {"x": 1}], "unheard_of": [1], "audio": [{}],
    "messages": [[], {}, "hi", [{}], [{"role": "tool", "content": "x"}], [{"role": "user"}],
                 [{"role": "user", "content": "x" * 32_001}], [{"role": "user", "content": 5}],
                 [{"role": "user", "content": "x", "tool_calls": [1]}],
                 [{"role": "user", "content": "x", "y": 1}], [{"role": [], "content": "x"}],
                 [{"role": "assistant", "content": "x"}], [5],
                 [{"role": "user", "content": ""}] * 501],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_accepted(name):
    for value in GOOD[name]:
        read_fields(CHAT, {name: value})


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    for value in BAD[name]:
        with pytest.raises(ApiError) as raised:
            read_fields(CHAT, {name: value})
        error = raised.value.content()["error"]
        assert raised.value.status == 400
        assert error["param"].startswith(name)
        assert len(error["message"]) < 300


def test_what_is_missing_or_no_object():
    for body in ({}, {"model": None, "messages": []}, [], None, 5, "x"):
        with pytest.raises(ApiError):
            read_fields(CHAT, body, required=("model", "messages"))


def test_prompts():
    for value in ("", "x" * 32_000, ["a", "b"], [1, 2], [[1], [2]]):
        read_fields(TEXT, {"prompt": value})
    for value in (
        "x" * 32_001,
        ["a"] * 17,
        [],
        [[]],
        [-1],
        [True],
        [1.5],
        ["a", 1],
        5,
        ["x", 5],
    ):
        with pytest.raises(ApiError):
            read_fields(TEXT, {"prompt": value})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"NaN", b"[1e999999, -Infinity]", b"[" * 100_000, b'{"a":' * 100_000,
     b"9" * 5000, b"\xef\xbb\xbf{}", b"{}{}", b"\0"],
)  # fmt: skip
def test_what_is_no_json(body):
    with pytest.raises(ApiError) as raised:
        read_json(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


def test_the_description_knows_every_field():
    for fields in (CHAT, TEXT, requests.embedding_fields(LIMITS), requests.tokenize_fields(LIMITS)):
        assert object_schema(fields)["properties"].keys() == fields.keys()
    assert object_schema(CHAT)["properties"]["n"]["anyOf"][0] == {
        "type": "integer", "minimum": 1, "maximum": 4
    }  # fmt: skip
