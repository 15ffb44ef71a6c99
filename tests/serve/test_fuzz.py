"""Tests with requests that nobody should send: no failure, no hang, nothing that stays."""

import json
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import TEXT, eventually, small_model
from .fuzzing import request, status_of

COUNT = 1500


@pytest.mark.slow
def test_no_request_makes_the_server_fail(serve):
    one = serve(limits={"connections": 500})
    before = one.text().json["choices"]
    random_ = random.Random(5)
    requests = [request(random_, one.port) for _ in range(COUNT)]
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda data: status_of(data, one.port), requests)]
    failed = {status for status in found if status >= 500}
    assert not failed, [r for r, s in zip(requests, found, strict=True) if s >= 500][:3]
    assert {200, 400, 403, 404, 405, 415} <= set(found), Counter(found)
    assert found.count(200) > COUNT / 20, Counter(found)
    assert one.text().json["choices"] == before
    eventually(lambda: one.server.service.worker.texts == 0)
    assert not [line for line in one.lines if "Traceback" in line]


@pytest.mark.slow
def test_clients_that_leave_take_nothing_with_them(serve):
    model = small_model()
    one = serve(model, slots=4, limits={"connections": 500})
    model.pause = 0.002
    body = json.dumps({"model": "small", "prompt": "abc", "n": 2, "stream": True}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost:{one.port}\r\nContent-Type: "
    head += f"application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    random_ = random.Random(6)

    def leave(seconds: float) -> None:
        with one.socket() as connection:
            data = head.encode() + body
            connection.sendall(data[: random_.randrange(1, len(data) * 4)])
            connection.settimeout(seconds)
            try:
                while connection.recv(512):
                    pass
            except TimeoutError:
                pass

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) if os.path.isdir("/proc/self/fd") else 0

    leave(0.01)
    eventually(lambda: one.server.service.connections() == 0)
    threads_before, files_before = threading.active_count(), open_files()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(leave, [random_.random() * 0.05 for _ in range(150)]))
    worker = one.server.service.worker
    eventually(lambda: worker.texts == 0 and not worker._engine.requests and not worker._owners)
    eventually(lambda: one.server.service.connections() == 0)
    assert threading.active_count() <= threads_before + 1  # a second one that reads
    assert open_files() <= files_before
    assert len(worker._engine._batch.free) == 4
    assert one.chat().status == 200
