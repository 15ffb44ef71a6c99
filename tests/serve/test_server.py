"""Tests of the server's end: what runs is finished, but not for ever, and nothing new begins."""

import http.client
import time

import pytest

from .conftest import eventually, small_model, until_closed
from .test_worker import start


def test_what_does_not_end_in_time_is_cut(serve):
    model = small_model()
    one = serve(model, limits={"drain_seconds": 1})
    model.pause = 0.3
    connection, response = start(one)  # takes 19 s
    assert response.readline().startswith(b"data: ")
    began = time.monotonic()
    one.server.stop()
    one.thread.join(20)
    assert 0.5 < time.monotonic() - began < 10
    assert one.status == 0
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    assert not [line for line in one.lines if "Traceback" in line]


def test_nothing_new_begins_when_it_is_asked_to_end(serve):
    model = small_model()
    one = serve(model)
    idle = one.socket()
    idle.sendall(f"GET /health HTTP/1.1\r\nHost: localhost:{one.port}\r\n\r\n".encode())
    found = b""
    while not found.endswith(b"}"):
        found += idle.recv(65536)
    model.pause = 0.2
    connection, response = start(one, max_tokens=10)
    one.server.stop()
    assert until_closed(idle) == b""  # one that was open is closed
    idle.close()
    eventually(lambda: _refused(one))
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    one.thread.join(20)
    assert one.status == 0


def _refused(one):
    try:
        one.socket().close()
    except OSError:
        return True
    return False
