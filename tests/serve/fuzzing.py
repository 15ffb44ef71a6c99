"""Owns requests that nobody should send, as bytes, and what must hold of the answers."""

import json
import random
import socket
from typing import Any

JSON = "application/json"
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/v1/models", "*",
    "/health", "/metrics", "/", "/app.js", "/nothing", "/%00", "/v1/models/" + "x" * 300,
)  # fmt: skip
FIELDS = ("model", "messages", "prompt", "input", "temperature", "top_p", "top_k", "n", "stop",
          "seed", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "stream",
          "stream_options", "response_format", "logit_bias", "choices", "echo", "tools", "user",
          "json_schema", "encoding_format", "dimensions", "repetition_penalty", "best_of",
          "?")  # fmt: skip
ODD = (
    "Origin: null", "Content-Length: -1", "Transfer-Encoding: x", "\0: 1", "Upgrade: h2c",
    "Transfer-Encoding: chunked", "Expect: 100-continue", "Cookie: " + "x" * 17_000,
    "Content-Length: 99",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.5, 1e308, -(2**63), 2**64, "", "small", "abc", "\ud800", "\0",
    "</s>", "雨" * 50, "x" * 40_000, [], {}, [[]], [1], ["a", "b"], [[1, 2]], [None], {"a": {}},
    {"5": 1}, {"type": "json_object"}, {"include_usage": True}, [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "a"},
     {"role": "user", "content": [{"type": "text", "text": ""}]}],
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
)  # fmt: skip


def body(random_: random.Random) -> bytes:
    """Return the body of a request: nearly right, or anything."""
    kind = random_.random()
    if kind < 0.1:
        return random_.randbytes(random_.randrange(200))
    fields: dict[str, Any] = {"model": "small", "max_tokens": 3}
    fields[random_.choice(("messages", "prompt", "input"))] = random_.choice(VALUES[-6:])
    for _ in range(random_.randrange(5)):
        fields[random_.choice(FIELDS)] = random_.choice(VALUES)
    text = json.dumps(fields).encode()
    if kind < 0.2:
        at = random_.randrange(len(text))
        return text[:at] + random_.randbytes(2) + text[at + 1 :]
    return text


def request(random_: random.Random, port: int) -> bytes:
    """Return a request; its connection ends with the answer."""
    kind = random_.random()
    if kind < 0.05:
        return random_.randbytes(random_.randrange(1, 300)) + b"\r\n\r\n"
    method = random_.choice(("POST",) * 8 + ("GET", "GET", "PUT", "OPTIONS", "HEAD", "get", "X Y"))
    path = random_.choice(PATHS[:4] if method == "POST" and kind < 0.8 else PATHS)
    content = body(random_) if method in ("POST", "PUT") else b""
    length = len(content)
    lines = [
        f"{method} {path} HTTP/1.1",
        random_.choice((f"Host: localhost:{port}",) * 12 + ("Host: evil", "Host:", "X: y")),
        random_.choice((f"Content-Type: {JSON}",) * 12 + ("Content-Type: text/plain", "A: b")),
        "Connection: close",
    ]  # fmt: skip
    if content:
        lines.append(f"Content-Length: {length if kind < 0.9 else random_.randrange(length + 1)}")
    if kind > 0.95:
        lines.append(random_.choice(ODD))
    data = "\r\n".join([*lines, "", ""]).encode() + content
    return data if kind < 0.97 else data[: random_.randrange(1, len(data))]


def status_of(data: bytes, port: int, seconds: float = 20) -> int:
    """Send bytes and no more; return the status of the answer, 0 for none."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        found = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return int(found[9:12]) if found.startswith(b"HTTP/1.1 ") else 0
