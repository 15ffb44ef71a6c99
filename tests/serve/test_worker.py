"""Tests of many requests at once: the same texts, a fair order, places that come free."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rustgpt.generation import byte_grammar, constraint
from rustgpt.generation.batch import CHUNK

from .conftest import CHAT, JSON, eventually, small_model


def start(one, question="abc", **fields):
    """Begin a stream and return its connection and response, of which nothing is read."""
    body = {"model": "small", "messages": [{"role": "user", "content": question}], "stream": True}
    connection = one.connect()
    connection.request("POST", CHAT, json.dumps({**body, "temperature": 0, **fields}), JSON)
    return connection, connection.getresponse()


def test_many_at_once_have_the_texts_that_each_has_alone(served):
    questions = [chr(97 + i % 8) * (1 + i % 5) for i in range(40)]
    alone = [served.chat(q).json["choices"][0]["message"]["content"] for q in questions]
    assert len(set(alone)) > 5
    with ThreadPoolExecutor(20) as threads:
        streams = [i % 2 == 0 for i in range(40)]
        answers = [*threads.map(lambda q, s: served.chat(q, stream=s), questions, streams)]
    for answer, text, is_stream in zip(answers, alone, streams, strict=True):
        if is_stream:
            found = "".join(e["choices"][0]["delta"].get("content", "") for e in answer.events)
        else:
            found = answer.json["choices"][0]["message"]["content"]
        assert found == text


def test_what_is_drawn_does_not_depend_on_others(served):
    asked = [{"seed": i, "temperature": 1.5, "n": 1 + i % 2} for i in range(20)]
    alone = [served.chat(**fields).json["choices"] for fields in asked]
    with ThreadPoolExecutor(20) as threads:
        together = threads.map(lambda fields: served.chat(**fields).json["choices"], asked)
        assert [*together] == alone


def test_they_share_the_steps(serve):
    model = small_model()
    one = serve(model, slots=8)
    model.pause = 0.02
    rows = []
    decode = one.server.service.worker._engine._batch._decode
    one.server.service.worker._engine._batch._decode = lambda r, c, s: (
        rows.append(len(r)) or decode(r, c, s)
    )
    with ThreadPoolExecutor(8) as threads:
        assert all(a.status == 200 for a in threads.map(lambda _: one.chat(), range(8)))
    assert max(rows) == 8
    assert sum(rows) == 8 * 8


def test_the_queue_has_an_end_and_an_order(serve):
    model = small_model()
    one = serve(model, slots=1, limits={"queued": 2})
    model.pause = 0.05
    order = []
    with ThreadPoolExecutor(3) as threads:
        for i in range(3):
            threads.submit(lambda i=i: (one.chat(max_tokens=4), order.append(i)))
            eventually(lambda i=i: one.server.service.worker.texts == i + 1)
        answer = one.chat()
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert answer.error["type"] == "rate_limit_error"
        assert int(answer.headers["Retry-After"]) > 0
        assert one.ask("GET", "/health").status == 200
    assert order == [0, 1, 2]
    assert one.server.service.worker.texts == 0
    assert one.chat(n=3).status == 200
    assert one.chat(n=4).status == 429


def test_each_beam_takes_a_place(serve):
    model = small_model()
    one = serve(model, slots=3, limits={"queued": 1})
    model.pause = 0.05
    worker = one.server.service.worker
    connection = one.connect()
    body = {"model": "small", "prompt": "abc", "num_beams": 3, "temperature": 0, "max_tokens": 50}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    eventually(lambda: worker.texts == 3)
    assert one.text(n=2).status == 429
    connection.close()  # in the midst of it
    eventually(lambda: worker.texts == 0 and not worker._engine.requests)
    assert len(worker._engine._batch.free) == 3
    model.pause = 0.0
    assert one.text(num_beams=3).status == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place_within_a_token(serve, stream):
    model = small_model()
    one = serve(model, slots=1)
    model.pause = 0.1
    engine = one.server.service.worker._engine
    body = {"model": "small", "messages": [{"role": "user", "content": "a"}], "stream": stream}
    with one.socket() as connection:
        text = json.dumps(body)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{one.port}\r\nContent-Type: "
        head += f"application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall((head + text).encode())
        eventually(lambda: engine.requests and engine.requests[0].made)
        request = engine.requests[0]
    made = len(request.made)
    eventually(lambda: not engine.requests)
    assert len(request.made) <= made + 2  # the one that is being made, and one on the way
    assert one.server.service.worker.texts == 0
    eventually(
        lambda: any((line.endswith(" ms") and " 499 " in line) or stream for line in one.lines)
    )
    model.pause = 0.0
    assert one.chat().status == 200


def test_one_that_waits_may_leave(serve):
    model = small_model()
    one = serve(model, slots=1)
    model.pause = 0.05
    first = start(one)
    second = start(one)
    worker = one.server.service.worker
    assert worker.texts == 2
    for connection, response in (second, first):
        response.close()
        connection.close()
    eventually(lambda: worker.texts == 0 and not worker._engine.requests)


def test_a_long_prompt_freezes_nobody(serve):
    model = small_model(max_seq_len=4 * CHUNK)
    one = serve(model)
    sizes = []
    batch = one.server.service.worker._engine._batch
    decode = batch._decode
    batch._decode = lambda r, c, s: sizes.append([len(x) for x in r]) or decode(r, c, s)
    model.pause = 0.01
    connection, response = start(one, max_tokens=300)
    eventually(lambda: len(sizes) > 3)
    before = len(sizes)
    assert one.text("a" * (3 * CHUNK), max_tokens=1).status == 200
    reading = [s for s in sizes[before - 1 :] if max(s) > 1]
    assert len(reading) >= 3
    assert all(len(s) == 2 and min(s) == 1 for s in reading)  # the other one goes on
    response.close()
    connection.close()


def test_a_common_beginning_is_read_once(serve):
    one = serve(small_model(max_seq_len=256))
    read = []
    batch = one.server.service.worker._engine._batch
    decode = batch._decode
    batch._decode = lambda r, c, s: read.append(sum(map(len, r))) or decode(r, c, s)
    prompt = "abcdefgh" * 20
    one.text(prompt + "xyz", max_tokens=1)
    one.text(prompt + "zyx", max_tokens=1)
    assert read[0] > 160
    assert read[1] <= 3


NULL = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}


@pytest.fixture
def slow_schemas(monkeypatch):
    """Let schemas be read only from when the event is set; the list has what was begun."""
    begun, may_go, real = [], threading.Event(), constraint.grammar_of

    def slow(schema):
        begun.append(schema)
        assert may_go.wait(20)
        return real(schema)

    monkeypatch.setattr(constraint, "grammar_of", slow)
    yield begun, may_go
    may_go.set()


def test_a_large_schema_keeps_nobody_waiting(serve, slow_schemas):
    begun, may_go = slow_schemas
    one = serve()
    with ThreadPoolExecutor(3) as threads:
        held = [threads.submit(one.chat, response_format=NULL, n=2) for _ in range(3)]
        eventually(lambda: begun)
        for _ in range(3):
            events = one.chat(stream=True).events
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert one.ask("POST", "/tokenize", {"prompt": "abc"}).status == 200
        assert len(begun) == 1  # the others wait for it
        assert not any(answer.done() for answer in held)
        may_go.set()
        for answer in held:
            texts = [choice["message"]["content"] for choice in answer.result().json["choices"]]
            assert texts == ["null", "null"]
    assert len(begun) == 3  # once for all texts of a request


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_leaves_too_much_open(serve, monkeypatch, stream):
    """It is refused, at once or in the midst of the text, and is nobody else's concern."""
    one = serve()
    monkeypatch.setattr(byte_grammar, "MOST_STACKS", 500)
    lengths = {"anyOf": [{"type": "string", "maxLength": i} for i in range(200)]}
    later = {"type": "object", "properties": {"a": lengths}, "required": ["a"]}
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(one.chat, max_tokens=40)
        for schema in (lengths, later):
            answer = one.text(json_schema=schema, stream=stream, max_tokens=20)
            begun = stream and schema is later
            assert answer.status == (200 if begun else 400)
            text = answer.body.decode().split("\n\n")[-2] if begun else answer.body.decode()
            error = json.loads(text.removeprefix("data: "))["error"]
            assert "leaves too much open" in error["message"]
            assert error["type"] == "invalid_request_error"
        assert other.result().status == 200


def test_who_leaves_while_the_schema_is_read_frees_the_place(serve, slow_schemas):
    begun, may_go = slow_schemas
    one = serve()
    body = {"model": "small", "messages": [{"role": "user", "content": "a"}]}
    for _ in range(2):  # one whose schema is being read, and one that waits
        connection = one.connect()
        connection.request("POST", CHAT, json.dumps({**body, "response_format": NULL}), JSON)
        eventually(lambda: one.server.service.worker.texts == 1)
        connection.close()
        eventually(lambda: one.server.service.worker.texts == 0)
    may_go.set()
    assert one.chat(response_format=NULL).status == 200
    assert len(begun) == 2  # the one that waited was not begun


def test_an_answer_that_takes_too_long_is_cut(serve):
    model = small_model()
    one = serve(model, limits={"generation_seconds": 0.5})
    model.pause = 0.1
    choice = one.chat(max_tokens=60).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert 0 < len(choice["message"]["content"]) < 20
    assert (
        one.chat(max_tokens=60, stream=True).events[-1]["choices"][0]["finish_reason"] == "length"
    )
    model.pause = 1.0
    answer = one.chat()
    assert (answer.status, answer.error["code"]) == (503, "timeout")


def test_a_failure_of_one_leaves_the_others(serve):
    """A schema that the engine refuses concerns its own request alone."""
    model = small_model()
    one = serve(model)
    model.pause = 0.01
    with ThreadPoolExecutor(8) as threads:
        good = threads.submit(one.chat, max_tokens=40)
        bad = [threads.submit(one.chat, logit_bias={"99999": 1}) for _ in range(5)]
        assert [b.result().status for b in bad] == [400] * 5
        assert good.result().status == 200


def test_the_event_loop_never_waits_for_arithmetic(serve):
    model = small_model()
    one = serve(model)
    model.pause = 2.0  # of each token
    connection, response = start(one)
    for _ in range(5):  # all within one token
        assert one.ask("GET", "/health").status == 200
    assert not one.server.service.worker._engine.requests[0].made
    response.close()
    connection.close()


def test_the_end_leaves_no_thread(serve):
    before = {thread.ident for thread in threading.enumerate()}
    one = serve()
    one.chat()
    one.ask("POST", "/v1/embeddings", {"model": "small", "input": "abc"})
    one.close()
    assert one.status == 0
    assert {t.ident for t in threading.enumerate()} <= before
