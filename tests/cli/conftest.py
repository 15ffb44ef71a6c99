"""Owns what the tests of the command line share: a way to run it, small data, a small model."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rustgpt
from rustgpt.cli import main

STATEMENTS = ["The sun rises in the east", "Water is wet </s>", "雨下得很大"]
DIALOGUES = [
    "User: How do mountains form? Assistant: By folding. </s>",
    "User: Who are you? Assistant: A small model </s>",
]
SMALL = ("--embedding-dim", "16", "--hidden-dim", "16", "--n-layers", "1", "--threads", "1")


HANDLED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Done(NamedTuple):
    """How a run ended."""

    status: int
    out: str
    err: str


def _default_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job


def start(*args: str, cwd: Path, **more: Any) -> "subprocess.Popen[bytes]":
    """Start `python -m rustgpt` as a process."""
    return start_python("-m", "rustgpt", *args, cwd=cwd, **more)


def start_script(script: str, *args: str, cwd: Path) -> "subprocess.Popen[bytes]":
    """Start a script of Python as a process."""
    return start_python("-c", script, *args, cwd=cwd)


def start_python(*args: str, cwd: Path, **more: Any) -> "subprocess.Popen[bytes]":
    package = str(Path(rustgpt.__file__).parent.parent)
    env = {"PYTHONIOENCODING": "", "PYTHONUTF8": "1", **os.environ, **more.pop("env", {})}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package, env.get("PYTHONPATH")]))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    if os.name == "posix":
        more.setdefault("preexec_fn", _default_ctrl_c)
    return subprocess.Popen([sys.executable, *args], cwd=cwd, env=env, **{**streams, **more})


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Done]:
    """Run the command line as a process in a folder of its own."""

    def run(*args: str, stdin: bytes = b"", **more: Any) -> Done:
        with start(*args, **{"cwd": tmp_path, **more}) as child:
            out, err = child.communicate(stdin, timeout=60)
        done = Done(child.returncode, (out or b"").decode(), (err or b"").decode())
        assert "Traceback" not in done.err or "--debug" in args
        return done

    return run


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(list(args))
        done = Done(status, *capsys.readouterr())
        assert "Traceback" not in done.err or "--debug" in args
        return done

    before = [signal.getsignal(number) for number in HANDLED]
    yield run
    assert before == [signal.getsignal(number) for number in HANDLED]


def write_data(folder: Path) -> tuple[str, ...]:
    """Write small data and return the flags that make a small training of them."""
    for name, texts in (("facts", STATEMENTS), ("chat", DIALOGUES)):
        (folder / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
    data = ("--pretrain", str(folder / "facts.json"), "--chat", str(folder / "chat.json"))
    return (*data, *SMALL, "--pretrain-epochs", "2", "--tune-epochs", "2")


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """The flags of a training that takes no time."""
    return write_data(tmp_path)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that knows its dialogues."""
    folder = tmp_path_factory.mktemp("trained")
    flags = (*write_data(folder), "--tune-epochs", "80", "--tune-rate", "0.01")
    assert main(["train", *flags, "--out", str(folder / "model")]) == 0
    return str(folder / "model")


@pytest.fixture
def endless(tmp_path: Path, model: str) -> str:
    """The folder of a model that never ends what it writes."""
    loaded = rustgpt.LLM.load(model)
    loaded.named_parameters()["layers.2.bias"][loaded.tokenizer.end_id] = -1e3
    loaded.save(tmp_path / "endless")
    return str(tmp_path / "endless")


def replaced(flags: tuple[str, ...], name: str, value: str) -> tuple[str, ...]:
    """Return flags of which one has another value."""
    place = flags.index(name) + 1
    return (*flags[:place], value, *flags[place + 1 :])


def one_line(done: Done, status: int, *words: str) -> None:
    """Assert that a run ended with one line on standard error that holds these words."""
    assert done.status == status, done
    assert done.err.startswith("rustgpt: error: "), done
    assert done.err.count("\n") == 1, done
    assert done.out == ""
    for word in words:
        assert word in done.err
