"""Tests of the API over a real socket: requests and answers are OpenAI's."""

import base64
import struct
import threading

import numpy as np
import pytest

from rustgpt.config import ModelConfig
from rustgpt.llm import LLM
from rustgpt.text.char_tokenizer import ByteTokenizer
from rustgpt.text.chat_template import RUSTGPT
from rustgpt.text.dialogue import Message

from .conftest import CHAT, TEXT, small_model


def expected(model, question="abc", n=8, **settings):
    """Return the answer that the model gives without a server."""
    ids = model.text_format.chat_prompt([Message("user", question)])
    return model.tokenizer.decode(
        list(model.stream_ids(ids, max_new_tokens=n, **settings)), after=ids
    ).strip()


def test_an_answer_has_the_form_of_openais(served):
    answer = served.chat()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    found = answer.json
    assert found.pop("id").startswith("chatcmpl-")
    assert isinstance(found.pop("created"), int)
    text = expected(served.model)
    prompt = len(served.model.text_format.chat_prompt([Message("user", "abc")]))
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    assert found == {
        "object": "chat.completion",
        "model": "small",
        "system_fingerprint": None,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8
        },
    }  # fmt: skip


def test_a_stream_is_to_the_letter(served):
    answer = served.chat(stream=True, stream_options={"include_usage": True}, n=2)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.events
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    *chunks, usage = events
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 16
    assert all(chunk["usage"] is None for chunk in chunks)
    for index in range(2):
        choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
        assert choices[-1]["delta"] == {}
        text = "".join(c["delta"].get("content", "") for c in choices)
        assert text == expected(served.model)


def test_a_stream_without_usage_has_none(served):
    assert all("usage" not in event for event in served.chat(stream=True).events)


def test_the_end_of_an_answer_is_a_stop(serve):
    model = small_model()
    bias = model.named_parameters()[list(model.named_parameters())[-1]]
    bias[model.tokenizer.end_id] = 1e3
    one = serve(model)
    choice = one.chat(logprobs=True).json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "")
    assert choice["logprobs"]["content"] == []
    assert one.chat(stream=True).events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_completion(served):
    found = served.text(["abc", "xyz"], n=2, echo=True).json
    assert found["object"] == "text_completion"
    texts = [choice["text"] for choice in found["choices"]]
    model = served.model
    alone = [p + model.generate(p, max_new_tokens=8) for p in ("abc", "xyz")]
    assert texts == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    streamed = served.text(["abc", "xyz"], n=2, echo=True, stream=True).events
    parts = [event["choices"][0] for event in streamed]
    joined = ["".join(p["text"] for p in parts if p["index"] == i) for i in range(4)]
    assert joined == texts


def test_prompts_of_token_ids(served):
    ids = served.model.prompt_ids("abc")
    assert served.text(ids).json["choices"][0]["text"] == served.text().json["choices"][0]["text"]
    assert served.text([ids, ids]).json["usage"]["prompt_tokens"] == 2 * len(ids)
    assert served.text([10**9]).error["message"].startswith("token ids must be from 0 to")


def test_log_probabilities(served):
    content = served.chat(logprobs=True, top_logprobs=3).json["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for one in content:
        assert one["token"] == one["top_logprobs"][0]["token"]  # greedy
        assert one["logprob"] == one["top_logprobs"][0]["logprob"] < 0
        assert bytes(one["bytes"]).decode() == one["token"]
        assert len(one["top_logprobs"]) == 3
    told = served.text(logprobs=2).json["choices"][0]
    told, text = told["logprobs"], told["text"]
    assert "".join(told["tokens"]) == text
    assert told["text_offset"] == list(range(8))
    assert [max(d.values()) for d in told["top_logprobs"]] == told["token_logprobs"]
    chunks = [e["choices"][0]["logprobs"] for e in served.text(logprobs=0, stream=True).events]
    assert [chunk["text_offset"][0] for chunk in chunks if chunk] == list(range(8))


def joined(events):
    """Return the texts and log-probabilities of a streamed completion, by the texts' numbers."""
    texts, told = {}, {}
    for choice in (event["choices"][0] for event in events):
        index = choice["index"]
        texts[index] = texts.get(index, "") + choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            told.setdefault(index, {}).setdefault(name, []).extend(values)
    return texts, told


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_is_echoed_with_its_log_probabilities(served, as_ids):
    model = served.model
    texts = ["abcabc", "xyz hg"]
    prompts = [model.prompt_ids(text) for text in texts] if as_ids else texts
    asked = {"echo": True, "logprobs": 2, "n": 2, "max_tokens": 3}
    found = served.text(prompts, **asked).json
    assert found["usage"]["completion_tokens"] == 12
    alone = {t: served.text(t, max_tokens=3, logprobs=2).json["choices"][0] for t in texts}
    for i, choice in enumerate(found["choices"]):
        text, told = texts[i // 2], choice["logprobs"]
        assert choice["text"] == text + alone[text]["text"]
        known = model.logprobs_ids(model.prompt_ids(text), 2)
        shown = ["</s>"] * as_ids + list(text)  # what the server puts before a text is not echoed
        values = [value for value, _ in known][not as_ids :]
        assert told["tokens"] == shown + alone[text]["logprobs"]["tokens"]
        made = alone[text]["logprobs"]["token_logprobs"]
        assert told["token_logprobs"] == pytest.approx(values + made, abs=1e-5)
        assert (told["token_logprobs"][0] is None) == as_ids == (told["top_logprobs"][0] is None)
        assert {len(one) for one in told["top_logprobs"][as_ids:]} == {2}
        assert told["text_offset"] == [0] * as_ids + list(range(len(choice["text"])))
    streamed, told = joined(served.text(prompts, **asked, stream=True).events)
    for i, choice in enumerate(found["choices"]):
        assert streamed[i] == choice["text"]
        assert told[i] == choice["logprobs"]
    only = served.text(prompts, **{**asked, "max_tokens": 0}).json["choices"]
    assert [one["text"] for one in only] == [text for text in texts for _ in range(2)]
    assert only[0]["logprobs"]["tokens"] == ["</s>"] * as_ids + list(texts[0])


def test_stop_strings_and_seeds(served):
    text = served.text().json["choices"][0]["text"]
    choice = served.text(stop=[text[3:5]]).json["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[:3], "stop")

    def drawn(seed):
        return served.chat(temperature=1.5, seed=seed, n=2).json["choices"]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(3)[0] != drawn(3)[1] or drawn(4)[0] != drawn(4)[1]
    assert drawn(None) != drawn(None) or drawn(None) != drawn(None)


def test_further_samplers(served):
    model = served.model
    for settings in ({"repetition_penalty": 5.0}, {"no_repeat_ngram": 1}, {"presence_penalty": 2},
                     {"frequency_penalty": 2}, {"logit_bias": {"5": 100}},
                     {"top_k": 3, "min_p": 0.1, "top_p": 0.9, "temperature": 1.0}):  # fmt: skip
        alone = model.generate("abc", max_new_tokens=8, seed=7, **settings)
        assert served.text(seed=7, **settings).json["choices"][0]["text"] == alone, settings
    error = served.text(top_k=10_000).error  # more than there are tokens
    assert (error["param"], "from 0 to" in error["message"]) == ("top_k", True)
    assert served.text(best_of=2).error["param"] == "best_of"
    assert served.text(best_of=2, n=2).status == 200
    assert served.text(choices=["yes", "no"]).json["choices"][0]["text"].strip() in ("yes", "no")


def byte_model():
    sizes = {"embedding_dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 1, "max_seq_len": 64}
    return LLM(ModelConfig(**sizes), ByteTokenizer.train([], None))


def test_texts_that_a_beam_search_does_not_find_are_empty(serve):
    one = serve(byte_model())
    for asked, texts in (({"max_tokens": 1}, ["", "", "", "a"]), ({"max_tokens": 0}, [""] * 4)):
        found = one.text(choices=["a"], num_beams=4, n=4, **asked).json["choices"]
        assert sorted(choice["text"] for choice in found) == texts  # the other one is a space
        assert {choice["finish_reason"] for choice in found} == {"length"}


def test_beam_search(served):
    model, settings = served.model, {"num_beams": 3, "length_penalty": 0.5, "n": 2}
    alone = model.samples("abc", max_new_tokens=8, **settings)
    found = served.text(["abc", "xyz"], **settings, logprobs=1).json
    assert [one["text"] for one in found["choices"][:2]] == [one.text for one in alone]
    assert len({one["text"] for one in found["choices"]}) == 4
    assert found["usage"]["completion_tokens"] == 4 * 8
    logprobs = found["choices"][0]["logprobs"]["token_logprobs"]
    assert logprobs == pytest.approx([-x for x in map(abs, logprobs)])
    assert len(logprobs) == 8
    streamed = served.text(["abc", "xyz"], **settings, stream=True).events
    assert joined(streamed)[0] == {one["index"]: one["text"] for one in found["choices"]}
    assert served.text(num_beams=2, n=2, max_tokens=0).status == 200
    for wrong, words in (({"num_beams": 2, "temperature": 1}, "needs temperature 0"),
                         ({"num_beams": 64}, "64 beams need as many slots"),
                         ({"length_penalty": 2}, "needs num_beams"),
                         ({"num_beams": 2, "n": 3}, "num_beams must be at least n")):  # fmt: skip
        answer = served.text(**wrong)
        assert answer.status == 400
        assert words in answer.error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_be_held_to_a_schema(serve, stream):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    one = serve(byte_model())
    answer = one.chat(response_format=form, stream=stream, max_tokens=30)
    if stream:
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in answer.events)
    else:
        text = answer.json["choices"][0]["message"]["content"]
    assert text.replace(" ", "") in ('{"a":1}', '{"a":2}')
    text = one.chat(response_format={"type": "json_object"}).json["choices"][0]["message"]
    assert text["content"].startswith("{")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "odd"}}}
    error = one.chat(response_format=bad, stream=stream)
    assert (error.status, error.error["type"]) == (400, "invalid_request_error")


def test_max_tokens(served):
    prompt = served.chat().json["usage"]["prompt_tokens"]
    for fields in ({"max_tokens": None}, {"max_tokens": None, "max_completion_tokens": None}):
        assert served.chat(**fields).json["usage"]["completion_tokens"] == 64 - prompt
    found = served.chat(max_tokens=None, max_completion_tokens=5).json
    assert found["usage"]["completion_tokens"] == 5
    assert served.chat(max_completion_tokens=5).error["param"] == "max_tokens"  # both
    assert served.chat(max_tokens=64).status == 200
    assert "at most 64" in served.chat(max_tokens=65).error["message"]
    assert served.text(max_tokens=0, echo=True).json["choices"][0]["text"] == "abc"


@pytest.mark.parametrize("ask", ["chat", "text"])
def test_a_prompt_longer_than_the_context(served, ask):
    frame = len(served.model.text_format.chat_prompt([Message("user", "")]))
    frame = frame if ask == "chat" else len(served.model.prompt_ids(""))
    assert getattr(served, ask)("a" * (63 - frame), max_tokens=None).status == 200
    answer = getattr(served, ask)("a" * (64 - frame), max_tokens=None)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 64 tokens" in answer.error["message"]


def test_a_system_message_to_a_model_without(served, serve):
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": "abc"}]
    answer = served.chat(messages=messages)
    assert "system messages were left out" in answer.headers["X-RustGPT-Notice"]
    assert answer.json["choices"][0]["message"]["content"] == expected(served.model)
    assert "X-RustGPT-Notice" in served.chat(messages=messages, stream=True).headers
    assert "X-RustGPT-Notice" not in served.chat().headers
    one = serve(served.model, system_messages="use")
    answer = one.chat(messages=messages)
    assert "X-RustGPT-Notice" not in answer.headers
    usage = answer.json["usage"]["prompt_tokens"]
    assert usage > served.chat(messages=messages).json["usage"]["prompt_tokens"]


def test_tools_are_left_out(served):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    for fields in ({"tools": tools, "tool_choice": "auto"}, {"functions": [{"name": "look"}]}):
        for stream in (False, True):
            answer = served.chat(**fields, stream=stream)
            assert answer.headers["X-RustGPT-Notice"] == "tools were left out: the model calls none"
        answer = served.chat(**fields)
        assert answer.json["choices"][0]["message"]["content"] == expected(served.model)
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": "abc"}]
    assert served.chat(messages=messages, tools=tools).headers["X-RustGPT-Notice"].count(";") == 1
    assert served.chat(tools=tools, tool_choice="required").error["param"] == "tool_choice"
    assert "X-RustGPT-Notice" not in served.chat(tools=[]).headers


def test_what_a_model_was_trained_with_shows(serve):
    from rustgpt.text.word_tokenizer import WordTokenizer

    assert small_model().config.chat_template == RUSTGPT
    for text, reads in (("User: a Assistant: b", False), ("System: x User: a Assistant: b", True)):
        model = small_model()
        model.tokenizer = WordTokenizer.train([text] * 5, None)
        model = type(model)(model.config, model.tokenizer)
        one = serve(model)
        assert one.ask("GET", "/v1/models/small").json["reads_system_messages"] is reads


def test_content_in_parts(served):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]
    for role in ("user",):
        answer = served.chat(messages=[{"role": role, "content": parts, "name": "me"}])
        assert answer.json["choices"][0]["message"]["content"] == expected(served.model)
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert served.chat(messages=[{"role": "user", "content": image}]).status == 400


def test_embeddings(served):
    body = {"model": "small", "input": ["abc", "xyz"]}
    found = served.ask("POST", "/v1/embeddings", body).json
    model = served.model
    for text, one in zip(("abc", "xyz"), found["data"], strict=True):
        np.testing.assert_allclose(one["embedding"], model.embed(text), rtol=1e-6)
    n = len(model.prompt_ids("abc")) * 2
    assert found["usage"] == {"prompt_tokens": n, "total_tokens": n}
    packed = served.ask("POST", "/v1/embeddings", {**body, "encoding_format": "base64"}).json
    vector = struct.unpack("<16f", base64.b64decode(packed["data"][1]["embedding"]))
    np.testing.assert_array_equal(np.float32(vector), model.embed("xyz"))
    ids = {"model": "small", "input": model.prompt_ids("abc")}
    one = served.ask("POST", "/v1/embeddings", ids).json["data"][0]
    np.testing.assert_allclose(one["embedding"], model.embed("abc"), rtol=1e-6)
    assert served.ask("POST", "/v1/embeddings", {**body, "dimensions": 3}).status == 400


def test_tokenize(served):
    found = served.ask("POST", "/tokenize", {"prompt": "abc"}).json
    ids = served.model.prompt_ids("abc")
    assert found["tokens"] == ids
    assert (found["count"], found["max_model_len"]) == (len(ids), 64)
    assert found["token_strs"][-3:] == ["a", "b", "c"]
    messages = [{"role": "user", "content": "abc"}]
    found = served.ask("POST", "/tokenize", {"messages": messages}).json
    assert found["count"] == served.chat().json["usage"]["prompt_tokens"]
    assert served.ask("POST", "/tokenize", {}).status == 400


def test_models_health_and_description(served):
    found = served.ask("GET", "/v1/models").json
    assert found["object"] == "list"
    assert found["data"][0]["id"] == "small"
    assert served.ask("GET", "/v1/models/small").json == found["data"][0]
    answer = served.ask("GET", "/v1/models/other")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert served.ask("GET", "/health").json == {"status": "ok"}
    paths = served.ask("GET", "/openapi.json").json["paths"]
    assert {CHAT, TEXT, "/v1/embeddings", "/tokenize"} <= paths.keys()


def test_while_the_model_is_loaded(serve):
    may_load = threading.Event()
    model = small_model()
    one = serve(lambda: may_load.wait(20) and model)
    answer = one.ask("GET", "/health")
    assert (answer.status, answer.json) == (503, {"status": "loading"})
    answer = one.chat()
    assert (answer.status, answer.error["code"]) == (503, "loading")
    assert answer.headers["Retry-After"]
    assert one.ask("GET", "/").status == 200
    may_load.set()
    one.wait()
    assert one.chat().status == 200


def test_metrics(serve):
    one = serve()
    one.chat()
    one.chat(stream=True)
    one.ask("GET", '/nothing/like"it')
    answer = one.ask("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values[f'rustgpt_requests_total{{path="{CHAT}",status="200"}}'] == "2"
    assert values['rustgpt_requests_total{path="other",status="404"}'] == "1"
    assert values["rustgpt_generated_tokens_total"] == "16"
    assert values["rustgpt_first_token_seconds_count"] == "2"
    assert values['rustgpt_request_seconds_bucket{le="+Inf"}'] == "3"
    assert values["rustgpt_texts_running"] == values["rustgpt_texts_waiting"] == "0"


def test_wrong_addresses_and_methods(served):
    for method, path, status in (("GET", "/x", 404), ("GET", CHAT, 405), ("PUT", "/health", 405),
                                 ("GET", "/..%2f..%2fetc/passwd", 404),
                                 ("GET", "/app.js/", 404)):  # fmt: skip
        answer = served.ask(method, path)
        assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")
    assert served.ask("GET", CHAT).headers["Allow"] == "POST"
