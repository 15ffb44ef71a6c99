import builtins
import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import pytest

from rustgpt.cli import chat, chat_commands
from rustgpt.generation.continuation import ScoredToken

from .conftest import one_line, start

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
ANSWER = "A small model\n"


def test_answers_line_by_line_until_the_end_of_input(process, model):
    questions = b"Who are you?\nHow do mountains form?"
    done = process("chat", model, "--no-history", stdin=questions)
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
    done = process("chat", model, "--no-history", stdin=b"\xc3\x28\xff\n\nWho are you?\n")
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
        monkeypatch.setenv("NO_COLOR", "1")
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

    def __init__(self, *args, cwd, columns=0, env=None):
        import fcntl
        import pty
        import struct
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.child = start(*args, cwd=cwd, env=env or {"TERM": "dumb"}, **streams)
        os.close(slave)
        self.seen = self.before = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.master)

    def read_until(self, text: bytes) -> None:
        assert self.has_read(text, 30), self.seen

    def has_read(self, text: bytes, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > end:
                return False
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)
        self.before, _, self.seen = self.seen.partition(text)
        return True

    def interrupt_until(self, text: bytes) -> None:
        """Press Ctrl-C until a text comes: readline looks for it only once it waits for keys."""
        for _ in range(10):
            time.sleep(0.2)
            self.child.send_signal(signal.SIGINT)
            if self.has_read(text, 3):
                return
        raise AssertionError(self.seen)

    def write(self, text: bytes) -> None:
        os.write(self.master, text)

    def ask(self, question: bytes) -> None:
        self.read_until(b"Enter prompt: ")
        self.write(question + b"\n")

    def leave(self) -> None:
        self.ask(b"/exit")
        assert self.child.wait(30) == 0


@posix
def test_a_terminal(tmp_path, model):
    with Terminal("chat", model, cwd=tmp_path) as terminal:
        terminal.ask(b"Who are you?")
        terminal.read_until(b"Model output: A small model")
        terminal.ask(b"\xffWho?")  # in the C locale readline takes the first byte for a key
        terminal.read_until(b"Model output: ")
        terminal.leave()


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
        terminal.interrupt_until(b"Ctrl-C once more")
        terminal.ask(b"Who are you?")
        terminal.read_until(b"Model output: A small model")
        terminal.read_until(b"Enter prompt: ")
        terminal.interrupt_until(b"Ctrl-C once more")
        terminal.read_until(b"Enter prompt: ")
        time.sleep(0.2)
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
        terminal.leave()


# What is typed instead of a question


def typed(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def test_every_command_is_explained(inside, model):
    done = inside("chat", model, stdin=typed("/help", "/exit", "Who are you?"))
    for name in ("set", "system", "clear", "retry", "stats", "probs", "exit"):
        assert f"/{name}" in done.out
    assert done.err == ""
    assert ANSWER not in done.out
    assert max(map(len, done.out.splitlines())) < 80


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/fly", "no command '/fly'; /help lists them"),
        ("/retry", "no question to answer again"),
        ("/stats", "no answer yet"),
        ("/probs", "no answer yet"),
        ("/set speed 3", "no setting 'speed' of a chat; there are stop, max_new_tokens"),
        ("/set n 3", "no setting 'n' of a chat"),
        ("/set temperature hot", "temperature: a number is needed, not 'hot'"),
        ("/set temperature -1", "temperature must be at least 0, got -1.0"),
        ("/set temperature inf", "temperature must be finite and at least 0, got inf"),
        ("/set top_k", "top_k: a whole number is needed, not ''"),
    ],
)
def test_a_wrong_command_does_not_end_it(inside, model, line, words):
    done = inside("chat", model, stdin=typed(line, "Who are you?"))
    assert (done.status, done.out) == (0, ANSWER)
    assert done.err.startswith("rustgpt: error: ")
    assert words in done.err
    assert done.err.count("\n") == 1


def test_settings_change_within_the_chat(inside, model):
    done = inside("chat", model, stdin=typed("/set max-new-tokens 1", "/set", "Who are you?"))
    *told, answer = done.out.splitlines()
    assert "max_new_tokens 1" in told
    assert answer == "A"
    done = inside("chat", model, stdin=typed("/set stop=small", "Who are you?"))
    assert done.out == "A\n"
    done = inside("chat", model, stdin=typed("/set top_k 3"))
    assert "top_k changes nothing" in done.err


def test_a_chat_remembers_until_it_is_cleared(inside, model):
    lines = ("Who are you?", "/stats", "Who are you?", "/stats", "/clear", "Who are you?", "/stats")
    done = inside("chat", model, stdin=typed(*lines))
    told = [line for line in done.out.splitlines() if line.startswith("its prompt")]
    lengths = [int(line.split()[2]) for line in told]
    assert lengths[0] == lengths[2] < lengths[1]
    remembered = [line for line in done.out.splitlines() if line.startswith("remembered")]
    assert remembered == [f"remembered: {n}" for n in ("1 question", "2 questions", "1 question")]
    alone = inside("chat", model, "--no-history", stdin=typed(*lines[:4]))
    assert alone.out.count(told[0]) == 2


def test_the_oldest_leave_and_it_says_so(inside, model):
    lines = ["Who are you?"] * 12
    done = inside("chat", model, "--max-new-tokens", "10", stdin=typed(*lines))
    assert done.status == 0
    assert "the oldest question is forgotten" in done.err


def test_retry_asks_again(inside, model):
    done = inside("chat", model, stdin=typed("Who are you?", "/retry", "/stats"))
    assert done.out.startswith(ANSWER * 2)
    assert "remembered: 1 question\n" in done.out
    assert "at temperature 0 the answer is the same" in done.err
    flags = ("--temperature", "9", "--seed", "1")
    first, second = inside("chat", model, *flags, stdin=typed("Who?", "/retry")).out.splitlines()
    assert first != second


def test_probs_show_each_token_and_what_else(inside, model):
    done = inside("chat", model, stdin=typed("Who are you?", "/probs"))
    first, *rows = done.out.splitlines()
    assert first + "\n" == ANSWER
    assert [row.split()[1] for row in rows] == ["A", "small", "model", "</s>"]
    for row in rows:
        shares = [float(word.strip("%,")) for word in row.split() if "%" in word]
        assert shares[0] > 50
        assert shares[1:] == sorted(shares[1:], reverse=True)
        assert sum(shares) <= 100.2


def test_probs_are_aligned_whatever_their_script():
    texts = ["sun", "雨", "🙂", "e\u0301", "a\u200db", " ", "\x1b[2J"]
    width = max(map(chat_commands._cells, texts))
    rows = [chat_commands._row(ScoredToken(1, t, 0.0, ((t, 0.0), ("|", -1.0))), 8) for t in texts]
    assert width <= 8
    assert {chat_commands._cells(row[: row.index("|")]) for row in rows} == {18}
    assert {chat_commands._cells(t) for t in texts[1:4:2]} == {2, 1}


def test_a_system_message_is_read_first(inside, model):
    lines = ("Who are you?", "/stats", "/clear", "/system Be brief", "Who are you?", "/stats")
    done = inside("chat", model, stdin=typed(*lines, "/system none", "/system"))
    first, second = (line for line in done.out.splitlines() if line.startswith("its prompt"))
    assert int(first.split()[2]) < int(second.split()[2])
    assert done.out.endswith("system: none\nsystem: none\n")
    flag = inside("chat", model, "--system", "Be brief", stdin=typed("Who are you?", "/stats"))
    assert second in flag.out


@posix
def test_ctrl_c_ends_the_answer_and_not_the_chat(tmp_path, endless):
    with Terminal("chat", endless, "--max-new-tokens", "1000000", cwd=tmp_path) as terminal:
        terminal.ask(b"Who are you?")
        terminal.read_until(b"Model output: ")
        time.sleep(0.3)
        terminal.child.send_signal(signal.SIGINT)
        terminal.read_until(b" ...\r\n")
        terminal.ask(b"/stats")
        terminal.read_until(b"ended by Ctrl-C")
        terminal.leave()


@posix
def test_ctrl_c_is_heeded_while_nothing_is_shown(tmp_path, endless):
    flags = ["--num-beams", "2", "--max-new-tokens", "1000000"]  # which come at the end
    with Terminal("chat", endless, *flags, cwd=tmp_path) as terminal:
        terminal.ask(b"Who are you?")
        terminal.read_until(b"Model output: ")
        time.sleep(0.3)
        terminal.child.send_signal(signal.SIGINT)
        terminal.read_until(b" ...\r\n")
        terminal.leave()


@posix
def test_colours_are_for_terminals_that_have_them(tmp_path, model):
    for term, expected in (("xterm", True), ("dumb", False)):
        with Terminal("chat", model, cwd=tmp_path, env={"TERM": term, "NO_COLOR": ""}) as terminal:
            terminal.ask(b"Who are you?")
            terminal.read_until(b"put: ")
            shown = terminal.before
            assert (b"\x1b[36mModel out" in shown) == expected


def test_a_setting_has_the_limits_of_its_flag(inside, model):
    done = inside("chat", model, stdin=b"/set max_new_tokens 0\n/set stop a=b\n/set\nexit\n")
    assert "max_new_tokens must be a whole number from 1 to 1000000, got 0" in done.err
    assert "stop 'a=b'" in done.out


def test_ctrl_c_anywhere_in_a_question_does_not_end_the_chat(monkeypatch, capsys):
    """Also before the first token, and twice while one is made."""

    class Busy:
        def stream(self, question):
            raise KeyboardInterrupt

    lines = iter(["one", "two", "exit"])
    monkeypatch.setattr(chat, "is_terminal", lambda _file: True)
    monkeypatch.setattr(chat, "read_prompt", lambda: next(lines))
    assert chat.converse(Busy()) == 0
    assert capsys.readouterr().err.count("Ctrl-C once more") == 2


@posix
def test_ctrl_c_gives_up_what_is_typed(tmp_path, model):
    with Terminal("chat", model, cwd=tmp_path) as terminal:
        terminal.read_until(b"Enter prompt: ")
        for _ in range(2):  # which would end the chat, were nothing typed
            terminal.write(b"How do")
            terminal.read_until(b"How do")  # on the screen, so readline has it
            terminal.interrupt_until(b"Enter prompt: ")
            assert terminal.before.strip() == b""  # neither answered nor warned of
        terminal.write(b"Who are you?\n")
        terminal.read_until(b"Model output: A small model")
        terminal.leave()


def test_a_line_of_a_megabyte(process, model):
    for line in (b"x" * 10**6, b"How do mountains form " * 45_000):
        done = process("chat", model, stdin=line + b"\nWho are you?\n")
        assert (done.status, done.out) == (0, ANSWER)
        assert done.err.startswith("rustgpt: error: the question has ")
        assert len(done.err) < 200


@posix
def test_who_reads_the_first_line_alone_ends_it_quietly(tmp_path, model):
    with start("chat", model, cwd=tmp_path) as child:
        child.stdin.write(b"Who are you?\n")
        child.stdin.flush()
        assert child.stdout.readline().decode() == ANSWER
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(b"Who are you?\n" * 3)
            child.stdin.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1
