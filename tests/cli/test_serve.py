"""Tests of `rustgpt serve` as a process: its start, its end, and clients that people use."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import one_line, start

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
KEY = "0123456789abcdef" * 4


class Process:
    """A server as a process."""

    def __init__(self, child: Any) -> None:
        self.child = child
        self.lines: list[str] = []
        while not any(" is ready at " in line for line in self.lines):
            line = child.stderr.readline().decode()
            assert line, self.lines
            self.lines.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.lines[-1])
        assert found
        self.url = found[0]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.loads(answer.read())

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.child.send_signal(number)
        _, err = self.child.communicate(timeout=30)
        return self.child.returncode, err.decode()


@pytest.fixture
def serving(tmp_path: Path, model: str) -> Iterator[Callable[..., Process]]:
    """Start servers of a small model; they are ended afterwards."""
    children = []

    def run(*args: str, **more: Any) -> Process:
        flags = ("serve", model, "--port", "0", "--temperature", "0", *args)
        child = start(*flags, cwd=tmp_path, **more)
        children.append(child)
        return Process(child)

    yield run
    for child in children:
        child.kill()
        child.communicate()


@posix
def test_sigterm_ends_it(serving):
    one = serving()
    assert one.get("/v1/models")["data"][0]["id"] == "model"
    assert re.search(r"\(texts at once: \d+, waiting: 64\)", one.lines[-1])
    status, err = one.end()
    assert status == 0
    assert "Traceback" not in err


@posix
def test_ctrl_c_ends_it(serving):
    assert serving().end(signal.SIGINT)[0] == 130


@posix
def test_what_runs_is_finished_before_the_end(serving):
    one = serving()
    body = {"model": "model", "prompt": "", "max_tokens": 80, "n": 4, "temperature": 2,
            "logit_bias": {"0": -100}, "stream": True}  # fmt: skip
    request = urllib.request.Request(
        one.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        first = answer.readline()
        one.child.send_signal(signal.SIGTERM)
        text = first + answer.read()
    assert text.endswith(b"data: [DONE]\n\n")
    one.child.communicate(timeout=30)
    assert one.child.returncode == 0


@posix
def test_a_port_that_is_taken(serving, process, model):
    port = serving().url.rpartition(":")[2]
    one_line(process("serve", model, "--port", port), 1, "cannot listen", port, "--port")


def test_a_model_that_there_is_not(process):
    done = process("serve", "nothing", "--port", "0")
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("rustgpt: error: ")
    assert "nothing" in done.err


def test_wrong_settings(process, model, tmp_path):
    one_line(process("serve", model, "--host", "0.0.0.0"), 2, "--key-file", "openssl")
    (tmp_path / "key").write_text("secret")
    flags = ("--host", "0.0.0.0", "--key-file", "key")
    one_line(process("serve", model, *flags), 2, "32 random bytes")
    one_line(process("serve", model, "--port", "70000"), 2, "--port")
    one_line(process("serve", model, "--allow-origin", "*"), 2, "origin")


def test_the_number_of_threads_reaches_the_model(inside, model, monkeypatch):
    from rustgpt.serve import server

    served = []

    class Server:
        def __init__(self, name, load, config, say):
            served.append(load().threads)

        def run(self):
            return 0

    monkeypatch.setattr(server, "ModelServer", Server)
    assert inside("serve", model, "--threads", "3").status == 0
    assert inside("serve", model).status == 0
    assert served == [3, 0]
    one_line(inside("serve", model, "--threads", "-1"), 2, "--threads")


@posix
def test_a_key_from_the_environment(serving):
    one = serving(env={"RUSTGPT_API_KEY": KEY})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        one.get("/v1/models")
    assert one.get("/health") == {"status": "ok"}
    assert KEY not in one.end()[1]


QUESTION = "How do mountains form?"
ANSWER = "By folding."


@posix
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(serving):
    one = serving()
    body = {"model": "model", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    flags = ("-sSN", "-H", "Content-Type: application/json", "-d", json.dumps(body))
    url = one.url + "/v1/chat/completions"
    done = subprocess.run(["curl", *flags, url], capture_output=True, timeout=30, check=True)
    events = done.stdout.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = (json.loads(event[6:])["choices"][0]["delta"] for event in events[:-2])
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER


@posix
@pytest.mark.filterwarnings("ignore")
def test_the_client_of_openai(serving):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=serving().url + "/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": QUESTION}]
    more: Any = {"model": "model", "messages": messages}
    answer = client.chat.completions.create(**more, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].logprob < 0
    stream = client.chat.completions.create(
        **more, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.total_tokens == answer.usage.total_tokens
    extra = client.chat.completions.create(**more, extra_body={"top_k": 1}, temperature=1)
    assert extra.choices[0].message.content == ANSWER
    assert client.completions.create(model="model", prompt="The sun", max_tokens=2).choices[0].text
    assert len(client.embeddings.create(model="model", input="The sun").data[0].embedding) == 16
    assert [m.id for m in client.models.list()] == ["model"]
    messages[0]["content"] = "sun " * 100
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**more)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**more, "model": "other"})


@posix
@pytest.mark.skipif(shutil.which("llm") is None, reason="needs llm")
def test_llm(serving, tmp_path):
    one = serving()
    file = tmp_path / "extra-openai-models.yaml"
    file.write_text(f"- model_id: ours\n  model_name: model\n  api_base: {one.url}/v1\n")
    env = {"LLM_USER_PATH": str(tmp_path), "HOME": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [shutil.which("llm") or "llm", "-m", "ours", QUESTION]
    for flags in ([], ["--no-stream"]):
        done = subprocess.run(
            [*command, *flags], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == ANSWER, done.stderr


def test_without_the_packages_it_says_what_to_install(inside, model, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rustgpt.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    one_line(inside("serve", model), 1, "pip install 'rustgpt[serve]'")
