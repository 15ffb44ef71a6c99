"""Owns what the tests of the server share: small models behind a real socket, and requests."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rustgpt.config import ModelConfig
from rustgpt.llm import LLM
from rustgpt.text.char_tokenizer import CharTokenizer

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from rustgpt.serve.config import Limits, ServeConfig
from rustgpt.serve.server import ModelServer

JSON = {"Content-Type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class SlowModel(LLM):
    """A model whose tokens may take a while, or fail."""

    pause = 0.0
    failure: Exception | None = None

    def _decode(self, rows: Any, cache: Any, slots: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        if self.pause:
            time.sleep(self.pause)
        return super()._decode(rows, cache, slots)


def small_model(max_seq_len: int = 64, **changes: Any) -> SlowModel:
    """Return an untrained model of characters, whose answers do not end by themselves."""
    tokenizer = CharTokenizer.train(["User: Assistant: abcdefgh xyz 0123456789 <script>\n"], None)
    config = ModelConfig(
        embedding_dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_seq_len=max_seq_len, **changes
    )
    model = SlowModel(config, tokenizer)
    bias = model.named_parameters()[list(model.named_parameters())[-1]]
    bias[tokenizer.end_id] = -1e3
    bias[[len(tokenizer.name(token)) > 1 for token in range(len(bias))]] = -1e3  # bytes
    return model


class Answer:
    """The answer to a request."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events; the last one must be the end."""
        *events, last, rest = self.body.decode().split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [json.loads(event[6:]) for event in events]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class Served:
    """A model that is served in a thread."""

    def __init__(self, model: Any, **settings: Any) -> None:
        self.model = model
        self.lines: list[str] = []
        load = model if callable(model) else lambda: model
        config = ServeConfig(**{"port": 0, "name": "small", **settings})
        self.server = ModelServer("model", load, config, log=self.lines.append)
        self.port = self.server.port
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.status = self.server.run()

    def close(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def connect(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Ask, and return the whole answer."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {**(JSON if method == "POST" else {}), **given})
        try:
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def chat(self, question: str = "abc", **fields: Any) -> Answer:
        messages = [{"role": "user", "content": question}]
        body = {"model": "small", "messages": messages, "temperature": 0, "max_tokens": 8}
        return self.ask("POST", CHAT, {**body, **fields})

    def text(self, prompt: Any = "abc", **fields: Any) -> Answer:
        body = {"model": "small", "prompt": prompt, "temperature": 0, "max_tokens": 8}
        return self.ask("POST", TEXT, {**body, **fields})

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""
        with self.socket() as connection:
            connection.sendall(data)
            return until_closed(connection)

    def wait(self) -> "Served":
        """Return when the model is loaded."""
        eventually(lambda: self.server.service.is_ready)
        return self


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def eventually(check: Callable[[], Any], seconds: float = 20) -> None:
    """Assert that something comes to be true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it has not come to be true"
        time.sleep(0.005)


@pytest.fixture(scope="module")  # others look for threads that are left
def served() -> Iterator[Served]:
    """A small model that is served as by default."""
    one = Served(small_model()).wait()
    yield one
    one.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serve models with settings of their own; they are closed at the end."""
    opened: list[Served] = []

    def start(model: Any = None, limits: dict[str, Any] | None = None, **settings: Any) -> Served:
        if limits:
            settings["limits"] = Limits(**limits)
        opened.append(Served(model or small_model(), **settings))
        return opened[-1] if callable(model) and not isinstance(model, LLM) else opened[-1].wait()

    yield start
    for one in opened:
        one.close()
