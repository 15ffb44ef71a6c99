import io
import sys
import unicodedata

import pytest

from rustgpt.cli import terminal
from rustgpt.errors import RustGPTError
from rustgpt.trainer import Epoch

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


def epochs(total: int) -> list[Epoch]:
    return [Epoch("phase", n, total, 1.5, 1.0, 1234.5, 2.0) for n in range(1, total + 1)]


@pytest.mark.parametrize(("total", "lines"), [(1, 1), (3, 3), (10, 10), (100, 10), (1005, 10)])
def test_without_a_terminal_progress_is_some_ten_lines(capsys, total, lines):
    with terminal.progress("phase", total) as show:
        for epoch in epochs(total):
            show(epoch)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines
    last = f"phase: epoch {total}/{total}, loss 1.5000, 1,234 tokens/s, 2 s left"
    assert shown[-1] == last


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(terminal, "_columns", lambda _file: 80)
    with terminal.progress("phase", 3) as show:
        for epoch in epochs(3):
            show(epoch)
    text = stderr.getvalue()
    assert "phase" in text
    assert "3/3" in text
    assert "loss 1.5000, 1,234 tokens/s" in text


def test_a_terminal_without_width_gets_lines(monkeypatch):
    stderr = io.StringIO()
    stderr.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stderr)
    with terminal.progress("phase", 3) as show:
        show(epochs(3)[0])
    assert stderr.getvalue().startswith("phase: epoch 1/3, ")
