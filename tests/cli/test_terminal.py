import io
import math
import sys
import unicodedata
from typing import Any

import pytest

from rustgpt.cli import terminal
from rustgpt.errors import RustGPTError
from rustgpt.training_state import Step

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_every_code_point_is_shown_replaced_or_removed():
    everything = "".join(map(chr, range(0x110000)))
    assert len(terminal.clean(everything)) == len(everything) - 12 - 128
    for code, character in enumerate(everything):
        if code > 0xFFFF and code >> 12 != 0xE0:  # the rest of the planes is checked above
            continue
        category = unicodedata.category(character)
        cleaned = terminal.clean(character)
        if character in "\n\t":
            assert cleaned == character
        elif category in ("Cc", "Cs"):
            assert cleaned == "\ufffd", hex(code)
        elif (
            unicodedata.bidirectional(character) in BIDIRECTIONAL
            or character in "\u200e\u200f\u061c"
            or 0xE0000 <= code < 0xE0080
        ):
            assert cleaned == "", hex(code)
        else:
            assert cleaned == character, hex(code)


def test_clean_takes_the_steering_from_an_escape_sequence():
    assert terminal.clean("a\x1b[31mb\r\u202ec\x9b1m") == "a\ufffd[31mb\ufffdc\ufffd1m"


def ascii_file() -> tuple[io.BytesIO, io.TextIOWrapper]:
    raw = io.BytesIO()
    return raw, io.TextIOWrapper(raw, encoding="ascii", newline="\n")


def test_say_and_note_write_what_the_encoding_cannot_as_question_marks(monkeypatch):
    (out, stdout), (err, stderr) = ascii_file(), ascii_file()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    terminal.say("山\x1b")
    terminal.note("山")
    assert out.getvalue() == b"??\n"
    assert err.getvalue() == b"?\n"


def test_closed_streams_are_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal.say("text")
    terminal.note("text")
    assert not terminal.is_terminal(sys.stdout)


class Broken(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_say_tells_a_closed_pipe_from_a_full_disk(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        terminal.say("text")
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(RustGPTError, match="No space left"):
        terminal.say("text")


def test_note_never_fails(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Broken(BrokenPipeError()))
    terminal.note("text")


def test_complain_writes_one_line(capsys):
    terminal.complain(ValueError("one\ntwo\r\nthree\x1b"))
    assert capsys.readouterr().err == "rustgpt: error: one two three\ufffd\n"


def steps(total: int, epochs: int = 1, **changes: Any) -> list[Step]:
    """Return the steps of a phase whose loss falls by 1 with each, down to 1."""
    return [
        Step(
            "phase", n, total, float(total - n + 1), 1.0, 1e-3, 10, 1 + (n - 1) * epochs // total,
            epochs, 1234.5, 2.0,
        )
        for n in range(1, total + 1)
    ]  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): so much time passes."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


@pytest.mark.parametrize(("total", "lines"), [(1, 1), (3, 3), (10, 10), (100, 10), (1005, 10)])
def test_without_a_terminal_progress_is_some_ten_lines(capsys, clock, total, lines):
    with terminal.Progress("phase") as progress:
        for step in steps(total, epochs=1 + total // 7):
            progress.show(step)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines
    last = total - math.ceil(0.9 * total) or 1  # steps since the line before
    epoch = f"{1 + total // 7}/{1 + total // 7}"
    assert shown[-1] == (
        f"phase: epoch {epoch}, loss {(last + 1) / 2:.4f}, step {total:,}/{total:,}, rate 0.001, "
        "1,234 tokens/s, 2 s left"
    )


def test_within_a_long_epoch_there_is_a_line_now_and_then(capsys, clock):
    with terminal.Progress("phase") as progress:
        for step in steps(1000)[:50]:
            clock(2)
            progress.show(step)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[2] for line in shown] == [
        "step 15/1,000",
        "step 30/1,000",
        "step 45/1,000",
    ]
    assert "loss 993.0000" in shown[0]  # the mean since the line before
    assert "loss 978.0000" in shown[1]


@pytest.fixture
def screen(monkeypatch):
    """screen(): from now on standard error is this terminal."""
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    return lambda: monkeypatch.setattr(sys, "stderr", stderr) or stderr


def test_on_a_terminal_progress_is_a_bar(monkeypatch, screen, clock):
    monkeypatch.setattr(terminal, "_columns", lambda _file: 120)
    stderr = screen()
    with terminal.Progress("phase") as progress:
        for step in steps(3):
            clock(0.4)
            progress.show(step)
        progress.note("a message\x1b")
    text = stderr.getvalue()
    assert "phase" in text
    assert "3/3" in text
    assert "epoch 1/1, loss 1.0000, rate 0.001, 1,234 tokens/s, 2 s left" in text
    assert "a message\ufffd\n" in text


def test_a_terminal_without_width_gets_lines(screen):
    stderr = screen()
    with terminal.Progress("phase") as progress:
        progress.show(steps(3)[0])
        progress.note("a message")
    assert stderr.getvalue().startswith("phase: epoch 1/1, ")
    assert stderr.getvalue().endswith("\na message\n")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (600, "10 min"), (7_500, "2 h 5 min")],
)
def test_a_time_as_people_say_it(seconds, said):
    assert terminal.span(seconds) == said
