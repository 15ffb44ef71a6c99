import builtins
import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from rustgpt.cli import chat

from .conftest import one_line, start

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
ANSWER = "A small model\n"


def test_answers_line_by_line_until_the_end_of_input(process, model):
    done = process("chat", model, stdin=b"Who are you?\nHow do mountains form?")
    assert done == (0, f"{ANSWER}By folding.\n", "")


@pytest.mark.parametrize("word", [b"exit", b"EXIT\r\n", b"  Exit \n"])
def test_exit_ends_it(inside, model, word):
    done = inside("chat", model, stdin=b"Who are you?\n" + word + b"\nWho are you?\n")
    assert done == (0, ANSWER, "")


def test_no_input_at_all(inside, model):
    assert inside("chat", model) == (0, "", "")


def test_an_empty_line_is_passed_over(inside, model):
    done = inside("chat", model, stdin=b"\n  \n\nWho are you?\n")
    assert done.out == ANSWER


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x80", b"\0", b"\x1b[2J", "\u202e雨".encode(), b"</s>", b"\xed\xa0\x80"]
)
def test_any_bytes(inside, model, line):
    done = inside("chat", model, stdin=line + b"\nexit\n")
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("\n")
    assert "\x1b" not in done.out


def test_bytes_that_are_not_utf8_as_a_process(process, model):
    done = process("chat", model, stdin=b"\xc3\x28\xff\n\nWho are you?\n")
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith("\n" + ANSWER)


def test_a_prompt_that_is_too_long_does_not_end_it(inside, model):
    done = inside("chat", model, stdin=b"sun " * 200 + b"\nWho are you?\n")
    assert done.status == 0
    assert done.out == ANSWER
    assert done.err.startswith("rustgpt: error: the question has ")


def test_options(inside, model):
    def ask(*flags: str) -> str:
        return inside("chat", model, *flags, stdin=b"Who?\n").out

    short = ask("--max-new-tokens", "1")
    assert ask().startswith(short.rstrip("\n"))
    hot = ("--temperature", "5", "--seed")
    assert ask(*hot, "1") == ask(*hot, "1")
    assert ask(*hot, "1") != ask(*hot, "2")


def test_the_folder_is_by_default_that_of_the_training(inside):
    one_line(inside("chat"), 1, "rustgpt-model", "rustgpt train")


def test_without_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert chat.read_prompt() is None
    assert capsys.readouterr().out == ""


def test_on_a_terminal_it_reads_with_editing(monkeypatch, capsys):
    bad = UnicodeDecodeError("utf-8", b"sun \xff", 4, 5, "invalid start byte")
    for given, expected in (("text", "text"), (EOFError(), None), (bad, "sun \ufffd")):

        def read(prompt, given=given):
            assert prompt == "Enter prompt: "
            if isinstance(given, Exception):
                raise given
            return given

        monkeypatch.setattr(chat, "is_terminal", lambda _file: True)
        monkeypatch.setattr(builtins, "input", read)
        assert chat.read_prompt() == expected
    assert capsys.readouterr().out == "\n"


@posix
def test_a_closed_pipe_is_quiet(tmp_path, model):
    with start("chat", model, cwd=tmp_path) as child:
        child.stdout.close()
        child.stdin.write(b"Who are you?\n")
        child.stdin.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


class Terminal:
    """A process on a pseudo-terminal, and what it has written so far."""

    def __init__(self, *args, cwd, columns=0):
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.child = start(*args, cwd=cwd, env={"TERM": "dumb"}, **streams)
        os.close(slave)
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.master)

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text)[2]

    def write(self, text: bytes) -> None:
        os.write(self.master, text)


@posix
def test_a_terminal(tmp_path, model):
    with Terminal("chat", model, cwd=tmp_path) as terminal:
        terminal.read_until(b"Enter prompt: ")
        terminal.write(b"Who are you?\n")
        terminal.read_until(b"Model output: A small model")
        terminal.read_until(b"Enter prompt: ")
        terminal.write(b"\xffWho?\n")  # in the C locale readline takes the first byte for a key
        terminal.read_until(b"Model output: ")
        terminal.read_until(b"Enter prompt: ")
        terminal.write(b"exit\n")
        assert terminal.child.wait(30) == 0


@posix
def test_ctrl_d_on_a_terminal(tmp_path, model):
    with Terminal("chat", model, cwd=tmp_path) as terminal:
        terminal.read_until(b"Enter prompt: ")
        terminal.write(b"\x04")
        assert terminal.child.wait(30) == 0


@posix
def test_ctrl_c_on_a_terminal(tmp_path, model):
    with Terminal("chat", model, cwd=tmp_path) as terminal:
        terminal.read_until(b"Enter prompt: ")
        time.sleep(0.2)  # readline looks for signals only once it waits for keys
        terminal.child.send_signal(signal.SIGINT)
        for _ in range(10):  # long enough apart that none comes while Python ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert terminal.child.wait(3) == 130
                break
            terminal.child.send_signal(signal.SIGINT)
        assert os.read(terminal.master, 100).endswith(b"\n")


@posix
def test_the_whole_job_on_a_terminal_shows_a_bar(tmp_path, small):
    with Terminal(*small, cwd=tmp_path, columns=80) as terminal:
        terminal.read_until(b"pre-training |")
        terminal.read_until(b"2/2")
        terminal.read_until(b"instruction tuning |")
        terminal.read_until(b"Enter prompt: ")
        terminal.write(b"exit\n")
        assert terminal.child.wait(30) == 0
