import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rustgpt
from rustgpt.cli.interrupts import Interrupts

from .conftest import start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def _ctrl_c_is_not_ignored():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_first_signal_stops_gently_and_the_third_at_once(monkeypatch, capfd, number, status):
    stops, ends = [], []
    monkeypatch.setattr(os, "_exit", ends.append)
    before = signal.getsignal(number)
    with Interrupts(lambda: stops.append(True)) as interrupts:
        assert interrupts.status == 0
        os.kill(os.getpid(), number)
        assert interrupts.status == status
        assert "stopping after this step" in capfd.readouterr().err
        os.kill(os.getpid(), number)
        assert "a third time quits at once" in capfd.readouterr().err
        assert (stops, ends) == ([True], [])
        os.kill(os.getpid(), number)
        assert ends == [status]
    assert signal.getsignal(number) is before


def test_nothing_is_written_where_standard_error_is_closed(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    with Interrupts(lambda: None) as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.status == 130
    assert capfd.readouterr().err == ""


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts(lambda: None) as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert interrupts.status == 0


def test_other_threads_may_not_handle_signals_and_do_not_try():
    done = []

    def work() -> None:
        with Interrupts(lambda: None):
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def has_learned(model):
    """Return whether a model is another than it was before its training."""
    untrained = rustgpt.LLM(model.config, model.tokenizer)
    return bool((model.parameters != untrained.parameters).mean() > 0.5)


def test_the_third_signal_ends_the_process():
    script = (
        "import os, signal\nfrom rustgpt.cli.interrupts import Interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with Interrupts(lambda: None):\n"
        "    for _ in range(3): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(rustgpt.__file__).parent.parent)}
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)
@pytest.mark.parametrize("command", [["train"], []])
def test_a_stopped_training_is_saved(tmp_path, small, command, numbers, status):
    flags = ("--pretrain-epochs", "1000000", "--sample-every", "20")
    with start(*command, *small, *flags, cwd=tmp_path) as child:
        child.stdin.close()
        assert any(b"pre-training, step 20, sample:" in line for line in child.stderr)
        child.send_signal(numbers[0])
        err = ""
        for line in child.stderr:
            err += line.decode()
            if "stopping" in err:  # of two signals at once, the lower number is handled first
                break
        for number in numbers[1:]:
            child.send_signal(number)
        out, rest = child.stdout.read().decode(), child.stderr.read().decode()
        err += rest
    assert child.returncode == status
    assert "Traceback" not in err
    assert err.count("rustgpt: stopping after this step, then saving the model") == 1
    assert "instruction tuning:" not in err
    assert re.search(r"stopped; rustgpt-model holds a good model, saved (at|after) the", err)
    assert "The model is saved" not in out
    assert "AFTER TRAINING" not in out
    assert "CHAT" not in out
    assert has_learned(rustgpt.LLM.load(tmp_path / "rustgpt-model"))


def test_a_closed_terminal_does_not_lose_the_model(tmp_path, small):
    """The terminal goes away, with everything that is connected to it."""
    import pty
    import termios

    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))  # a size, so that the progress is shown as it goes
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    flags = ("--pretrain-epochs", "1000000", "--save-every", "0")
    saved, shown = tmp_path / "rustgpt-model" / "config.json", b""
    with start("train", *small, *flags, cwd=tmp_path, start_new_session=True, **streams) as child:
        os.close(slave)
        while not re.search(rb"\| *[1-9]\d*/1000000 ", shown):  # an epoch has ended
            shown += os.read(master, 4096)
        assert not saved.exists()
        os.close(master)
        child.send_signal(signal.SIGHUP)
        assert child.wait(60) == 129
    assert has_learned(rustgpt.LLM.load(saved.parent))
