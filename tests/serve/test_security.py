"""Tests of the server's border: each limit and header of the table."""

import contextlib
import re
import socket

import pytest

from rustgpt.serve.security import POLICY, escaped

from .conftest import CHAT, eventually, until_closed

KEY = "k9_" + "0123456789abcdefghij" * 3
POST = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{{port}}\r\nContent-Type: application/json\r\n"
SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Origin",
}


def test_every_answer_has_the_safe_headers(served):
    answers = [
        *(served.ask("GET", path) for path in ("/", "/app.js", "/health", "/x", "/metrics")),
        served.chat(), served.chat(stream=True), served.chat(n=9),
        served.ask("GET", "/health", Origin="http://evil.example"),
        served.ask("GET", "/health", Host="evil.example"),
    ]  # fmt: skip
    for answer in answers:
        assert {name: answer.headers[name] for name in SAFE} == SAFE
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-ID"])
        assert "Server" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers
    for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'",
                 "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
                 "frame-ancestors 'none'"):  # fmt: skip
        assert part in POLICY
    assert "unsafe" not in POLICY


def test_host(served, serve):
    for name in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert served.ask("GET", "/health", Host=f"{name}:{served.port}").status == 200
    for name in ("localhost", f"localhost:{served.port + 1}", "evil.example", "127.0.0.1.evil",
                 f"evil.example:{served.port}", f"localhost:{served.port}:1"):  # fmt: skip
        assert served.ask("GET", "/health", Host=name).status == 403, name
    for head in (b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.0\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"):  # fmt: skip
        assert served.raw(head).startswith(b"HTTP/1.1 400 "), head
    one = serve(hosts=("Chat.example.org", "other.example:8443"))
    for name, status in (("chat.example.org", 200), ("chat.example.org:9", 200),
                         ("other.example:8443", 200), ("other.example", 403)):  # fmt: skip
        assert one.ask("GET", "/health", Host=name).status == status


def test_origin(served, serve):
    ours = f"http://127.0.0.1:{served.port}"
    assert served.chat().status == 200
    for origin in (ours, ours.replace("http:", "https:")):
        assert served.ask("GET", "/health", Origin=origin).status == 200
    for origin in ("null", "http://evil.example", ours + "1", f"{ours}.evil.example", ""):
        answer = served.ask("POST", CHAT, b"{", Origin=origin)  # before the body is read
        assert (answer.status, answer.error["type"]) == (403, "permission_error")
    one = serve(origins=("https://chat.example.org",))
    answer = one.ask(
        "GET", "/health", Origin="https://chat.example.org", Sec_Fetch_Site="cross-site"
    )
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    answer = one.ask("OPTIONS", CHAT, Origin="https://chat.example.org")
    assert (answer.status, answer.body) == (204, b"")
    assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]
    assert one.ask("OPTIONS", CHAT, Origin="https://evil.example").status == 403


def test_pages_of_others(served):
    cross = {"Sec_Fetch_Site": "cross-site"}
    assert served.ask("POST", CHAT, b"{}", **cross).status == 403
    assert served.ask("GET", "/v1/models", **cross).status == 403
    assert served.ask("GET", "/", Sec_Fetch_Mode="navigate", **cross).status == 200  # a link
    assert served.ask("GET", "/health", Sec_Fetch_Site="same-origin").status == 200


def test_content_type(served):
    body = b'{"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
    kinds = {"application/json; charset=utf-8": 200, "Application/JSON": 200, "": 415}
    others = ("text/plain", "application/x-www-form-urlencoded", "application/jsonx")
    for kind, status in {**kinds, **dict.fromkeys(others, 415)}.items():
        assert served.ask("POST", CHAT, body, Content_Type=kind).status == status


def test_key(serve):
    one = serve(key=KEY)
    for path in ("/", "/app.js", "/health"):
        assert one.ask("GET", path).status == 200
    for value in (None, KEY, f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer é"):
        headers = {} if value is None else {"Authorization": value.encode("latin-1")}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            answer = one.ask("GET", path, **headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert one.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}").status == 200
    assert KEY not in "\n".join(one.lines)


def test_size_of_the_body(serve):
    one = serve(limits={"body_bytes": 1000})
    assert one.ask("POST", CHAT, b" " * 1000).error["code"] == "invalid_json"
    assert one.ask("POST", CHAT, b" " * 1001).status == 413
    head = POST.format(port=one.port)
    chunked = head + "Transfer-Encoding: chunked\r\n\r\n" + ("200\r\n" + "x" * 512 + "\r\n") * 2
    with one.socket() as connection:
        connection.sendall(chunked.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with one.socket() as connection:  # at once
        connection.sendall((head + "Content-Length: 99999999\r\n\r\n").encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_size_of_the_head(served):
    many = {f"X-{i}": "1" for i in range(100)}
    assert served.ask("GET", "/health", **many).status == 431
    assert served.ask("GET", "/health", **dict(list(many.items())[:90])).status == 200
    assert served.ask("GET", "/health", X="x" * 16_000).status == 200
    assert served.ask("GET", "/health", X="x" * 16_384).status in (400, 431)
    head = f"GET /health HTTP/1.1\r\nHost: localhost:{served.port}\r\nX: ".encode()
    with served.socket() as connection:  # which has no end
        connection.sendall(head + b"x" * 20_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_what_arrives_slowly_is_refused(serve):
    one = serve(limits={"head_seconds": 0.2, "body_seconds": 0.2})
    assert one.raw(b"GET /hea").startswith(b"HTTP/1.1 408 ")
    assert one.raw(b"").startswith(b"HTTP/1.1 408 ")
    head = POST.format(port=one.port)
    assert one.raw((head + "Content-Length: 10\r\n\r\n{").encode()).startswith(b"HTTP/1.1 408 ")
    with one.socket() as connection:  # the second head of a connection too
        get = f"GET /health HTTP/1.1\r\nHost: localhost:{one.port}\r\n\r\n".encode()
        connection.sendall(get)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /hea")
        assert b"HTTP/1.1 408 " in until_closed(connection)


def test_number_of_connections(serve):
    one = serve(limits={"connections": 3})
    opened = [one.socket() for _ in range(3)]
    eventually(lambda: one.server.service.connections() == 3)
    assert one.raw(b"").startswith(b"HTTP/1.1 503 ")
    for connection in opened:
        connection.close()
    eventually(lambda: one.server.service.connections() == 0)
    assert one.ask("GET", "/health").status == 200


def test_a_failure_says_nothing_of_the_inside(serve, monkeypatch):
    one = serve()
    monkeypatch.setattr(one.model, "failure", ZeroDivisionError("division"))
    answer = one.chat()
    assert (answer.status, answer.error["code"]) == (500, "internal")
    request_id = answer.headers["X-Request-ID"]
    assert request_id in answer.error["message"]
    for word in (b"Traceback", b"ZeroDivision", b"rustgpt/", b"division"):
        assert word not in answer.body
    assert any(request_id in line and "ZeroDivisionError" in line for line in one.lines)
    body = one.chat(stream=True).body
    assert b'"code":"internal"' in body
    assert b"division" not in body
    monkeypatch.undo()
    assert one.chat().status == 200


def test_the_log_has_no_prompts_and_no_control_characters(serve):
    one = serve()
    one.chat("xyzzy secret")
    one.ask("GET", "/%1b%5b2J%0a%e2%80%ae?q=xyzzy")
    eventually(lambda: len(one.lines) == 2)
    lines = "\n".join(map(escaped, one.lines))
    assert "xyzzy" not in lines
    assert "\\x1b[2J\\n\\u202e" in lines
    assert lines.isascii()


def test_a_client_that_reads_nothing_is_cut_off(serve):
    one = serve(limits={"stalled_seconds": 0.3})
    with one.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        eventually(lambda: one.server.service.connections() == 1)
        get = f"GET /app.js HTTP/1.1\r\nHost: localhost:{one.port}\r\n\r\n".encode()
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.sendall(get * 5000)  # more answers than the buffers hold
        eventually(lambda: one.server.service.connections() == 0)


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models"])
def test_get_changes_nothing(served, path):
    before = served.chat().json["choices"]
    served.ask("GET", path + "?model=x&key=y")
    assert served.chat().json["choices"] == before
