import re
import subprocess
import sys

import pytest

import rustgpt
from rustgpt import cli
from rustgpt.cli import chat, info, main
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError, DataError

from .conftest import one_line, start, start_script

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_shows_an_example(inside, command):
    done = inside(*filter(None, [command]), "--help")
    assert (done.status, done.err) == (0, "")
    assert f"example:\n  rustgpt {command}" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_help_names_the_commands_and_every_setting_with_its_default(inside):
    text = inside("--help").out
    for command in cli.COMMANDS:
        assert f"\n  {command} " in text
    plain = " ".join(text.split())
    assert re.search(rf"--n-layers N [^(]*\(default: {ModelConfig.n_layers}\)", plain)
    assert re.search(rf"--tune-join X [^(]*\(default: {TrainConfig.tune_join}\)", plain)
    assert "--no-attention-projection" in text


def test_version(process):
    assert process("--version") == (0, f"rustgpt {rustgpt.__version__}\n", "")
    assert process("chat", "--version").out == f"rustgpt {rustgpt.__version__}\n"


def test_help_is_quick_for_it_loads_no_arrays(tmp_path):
    script = (
        "import sys; from rustgpt.cli import main; main(['--help']); "
        "sys.exit(' '.join({'numpy', 'scipy', 'tqdm', 'safetensors'} & {*sys.modules}) or 0)"
    )
    paths = repr([*sys.path, str(rustgpt.__path__[0]).removesuffix("rustgpt")])
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {paths}; {script}"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], ["'fly'", "train", "chat", "rustgpt --help"]),
        (["--fly"], ["--fly"]),
        (["--n-lay", "2"], ["'--n-lay'"]),  # no abbreviations: they would break with new flags
        (["--n-layers", "2", "train"], ["rustgpt train [options]"]),
        (["chat", "a", "b"], ["b"]),
        (["generate"], ["MODEL"]),
        (["generate", "", "text"], ["MODEL", "''"]),
        (["chat", ""], ["MODEL", "''"]),
        (["info", " "], ["MODEL"]),
    ],
)
def test_wrong_usage(inside, args, words):
    one_line(inside(*args), 2, *words)


def test_wrong_usage_as_a_process(process):
    one_line(process("--n-layers", "x"), 2, "--n-layers", "'x'")


@pytest.mark.parametrize("args", [["--debug", "chat", "x"], ["chat", "x", "--debug"]])
def test_debug_shows_the_traceback(inside, args):
    done = inside(*args)
    assert done.status == 1
    assert done.err.startswith("Traceback")
    assert "rustgpt: error: " in done.err.splitlines()[-1]


def test_debug_as_a_process(process):
    done = process("--debug", "train", "--n-heads", "3")
    assert done.status == 2
    assert "ConfigError" in done.err
    assert done.err.splitlines()[-1].startswith("rustgpt: error: n_heads")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DataError("bad data"), 1, "bad data"),
        (ConfigError("bad setting"), 2, "bad setting"),
        (MemoryError(), 1, "not enough memory"),
        (OSError(5, "Input/output error"), 1, "Input/output error"),
        (ValueError("oops"), 1, "mistake in rustgpt, please report it: ValueError: oops (--debug"),
    ],
)
def test_errors_become_one_line_and_a_status(inside, monkeypatch, error, status, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(chat, "read_prompt", fail)
    monkeypatch.setattr(info, "machine", fail)
    one_line(inside("info"), status, words)


@pytest.mark.parametrize("wrapped", [False, True])
def test_ctrl_c_anywhere_is_130(monkeypatch, capsys, wrapped):
    def fail():
        if wrapped:  # as Python does it while a class is made, in an import say
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "machine", fail)
    assert main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_quiet_inside(monkeypatch, capsys):
    def fail():
        raise BrokenPipeError

    monkeypatch.setattr(info, "machine", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr() == ("", "")


@posix
@pytest.mark.parametrize("args", [["--help"], ["info"], ["--version"]])
def test_a_closed_pipe_is_quiet(tmp_path, args):
    with start(*args, cwd=tmp_path) as child:
        child.stdout.close()  # before anything is written
        assert child.stderr.read() == b""
    assert child.returncode == 1


@posix
def test_a_full_disk_behind_standard_output(process):
    with open("/dev/full", "wb") as full:
        for args in (["--help"], ["info"]):
            one_line(process(*args, stdout=full), 1, "standard output", "No space left")


def test_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--help"]) == 0


def test_a_failing_flush_is_a_failure(monkeypatch):
    class Full:
        def write(self, text):
            pass

        def flush(self):
            raise OSError(28, "No space left on device")

        def fileno(self):
            raise OSError

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["--version"]) == 1


def test_a_full_disk_that_shows_only_at_the_end(monkeypatch):
    class Full:
        """The last flush fails, those before it do not."""

        encoding = "utf-8"
        flushes = 0

        def write(self, text):
            pass

        def flush(self):
            self.flushes += 1
            if self.flushes > 1:
                raise OSError(28, "No space left on device")

        def fileno(self):
            raise OSError

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["--version"]) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lr", "3e-4"], ["'--lr'", "did you mean --pretrain-rate or --tune-rate?"]),
        (["train", "--lr=1"], ["did you mean --pretrain-rate or --tune-rate?"]),
        (["train", "--epochs", "3"], ["did you mean --pretrain-epochs or --tune-epochs?"]),
        (["train", "--n-layer", "2"], ["did you mean --n-layers?"]),
        (["train", "--n_layers", "2"], ["did you mean --n-layers?"]),
        (["train", "--dropout-rate", "0.1"], ["did you mean --dropout?"]),
        (["generate", "m", "t", "--temprature", "1"], ["did you mean --temperature?"]),
        (["chat", "m", "--max-tokens", "1"], ["did you mean --max-new-tokens?"]),
    ],
)
def test_a_likely_flag_is_named(inside, args, words):
    one_line(inside(*args), 2, *words)


def test_an_unlikely_flag_gets_no_guess(inside):
    done = inside("chat", "--lr", "1")  # which `chat` has not, nor what it is called here
    one_line(done, 2, "'--lr'")
    assert "did you mean" not in done.err
    assert "did you mean" not in inside("--qqqq").err


@pytest.mark.slow
@posix
def test_ctrl_c_at_any_moment_is_130_without_a_word(tmp_path):
    """From the first line of ours to the last: Python's own start is not in our hands."""
    script = (
        "import os, signal, sys, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import rustgpt.__main__ as program\n"
        "delay = float(sys.argv.pop(1))\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "timer = threading.Timer(delay, kill)\n"
        "timer.daemon = True\n"
        "timer.start()\n"
        "program.main()\n"
    )
    seen = set()
    for i in range(6):
        with start_script(script, str(0.01 + i * 0.06), "info", cwd=tmp_path) as child:
            out, err = child.communicate(timeout=60)
        assert child.returncode in (0, 130), (out, err)
        assert err == b"", (out, err)
        seen.add(child.returncode)
    assert 130 in seen
