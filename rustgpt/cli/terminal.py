"""Owns what reaches the terminal: the one filter of all text, results, notes and progress."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from rustgpt.errors import RustGPTError

if TYPE_CHECKING:
    from rustgpt.training_state import Step

BAR_EVERY: Final = 0.5  # seconds from one look of the progress bar to the next
LINE_EVERY: Final = 30.0  # the same of the lines where there is no terminal

COLOURS: Final = {"prompt": "1;32", "label": "36"}  # bold green, cyan

_FILTER: Final[dict[int, str | None]] = {
    # What could steer a terminal is shown as U+FFFD: C0 without tab and newline, DEL, C1, and
    # halves of surrogate pairs, which no encoding can write.
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)), "�"),
    # What is not seen but changes what is, is removed: bidirectional controls and tags.
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    **dict.fromkeys(range(0xE0000, 0xE0080)),
}
del _FILTER[ord("\n")], _FILTER[ord("\t")]


_silent = False  # whether this process leaves it to another to tell
_untold: list[str] = []  # the errors that it did not tell


def silence() -> None:
    """Write nothing from now on, and show no progress: another process does."""
    global _silent
    _silent = True


def complain_after_all() -> None:
    """Write the errors that a silent process has kept to itself."""
    global _silent
    _silent = False
    for error in _untold:
        complain(error)
    _untold.clear()


def clean(text: str) -> str:
    """Return text, whoever wrote it, as what a terminal can only show."""
    return text.translate(_FILTER)


def paint(text: str, what: str) -> str:
    """Return a text of our own in its colour, if standard output is a terminal that has colours.

    A "prompt" is for `input`, which must know what of it is not seen.
    """
    dull = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("", "dumb")
    if dull or not is_terminal(sys.stdout):
        return text
    before, after = f"\x1b[{COLOURS[what]}m", "\x1b[0m"
    if what == "prompt":
        before, after = f"\x01{before}\x02", f"\x01{after}\x02"
    return before + text + after


def say(text: str = "", end: str = "\n", raw: bool = False) -> None:
    """Write a result to standard output, at once; what is `raw` is all our own, and not filtered.

    BrokenPipeError if nobody reads any more, and RustGPTError if, say, the disk is full.
    """
    if sys.stdout is None or _silent:  # closed by whoever started us
        return
    try:
        _write(sys.stdout, text + end, raw)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RustGPTError(
            f"cannot write to standard output: {error.strerror or error}; make room or redirect it"
        ) from None


def note(text: str) -> None:
    """Write a message to standard error; whether that is possible matters to nobody."""
    if sys.stderr is not None and not _silent:
        with contextlib.suppress(OSError):
            _write(sys.stderr, text + "\n")


def complain(error: object) -> None:
    """Write an error to standard error, in one line."""
    if _silent:
        _untold.append(str(error))
    note("rustgpt: error: " + " ".join(str(error).splitlines()))


def _write(file: TextIO, text: str, raw: bool = False) -> None:
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write((text if raw else clean(text)).encode(encoding, "replace").decode(encoding))
    file.flush()


def is_terminal(file: TextIO | None) -> bool:
    """Tell whether a standard stream is there and is a terminal."""
    return file is not None and not _silent and file.isatty()


def _columns(file: TextIO) -> int:
    """Return how wide a terminal is; 0 if it does not say, as some containers' do not."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except OSError:
        return 0


def span(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Reading:
    """Shows how work on much data goes: a bar on a terminal, otherwise a line now and then."""

    def __init__(self) -> None:
        self._is_bar = is_terminal(sys.stderr) and _columns(sys.stderr) > 0
        self._bar: Any = None
        self._what, self._began, self._last = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that so many bytes of all are done."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._last = what, now, now
        ends = done >= total
        if not ends and now - self._last < (BAR_EVERY if self._is_bar else LINE_EVERY):
            return
        self._last = now
        if self._is_bar:
            self._advance(done, total)
        elif not ends or now - self._began >= LINE_EVERY:
            taken = max(now - self._began, 1e-9)
            left = span(taken * (total - done) / max(1, done))
            note(
                f"rustgpt: {what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, "
                f"{done / taken / 1e6:,.1f} MB/s, {left} left"
            )
        if ends:
            self._what = ""

    def _advance(self, done: int, total: int) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(
                    desc=self._what, total=total, file=sys.stderr, dynamic_ncols=True,
                    unit="B", unit_scale=True,
                )  # fmt: skip
            self._bar.n = done
            self._bar.refresh()
            if done >= total:
                self._bar.close()
                self._bar = None


class Progress:
    """Shows how a phase of the training goes: a bar on a terminal, otherwise a line now and then.

    The loss is the mean since it was last shown.

    Parameters
    ----------
    phase
        Its name.
    """

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._is_bar = is_terminal(sys.stderr) and _columns(sys.stderr) > 0
        self._bar: Any = None
        self._loss = self._tokens = 0.0
        self._last, self._tenth = time.monotonic(), 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._bar.close()

    def show(self, step: Step) -> None:
        """Show a step, if it is time: at each tenth of the phase, or when nothing was shown long.

        On a terminal, "long" is half a second.
        """
        if step.loss:
            self._loss += step.loss * step.tokens
            self._tokens += step.tokens
        now, tenth = time.monotonic(), step.number * 10 // step.total
        waited = now - self._last >= (BAR_EVERY if self._is_bar else LINE_EVERY)
        if not waited and tenth <= self._tenth and self._bar_is_there():
            return
        loss = f"loss {self._loss / max(1, self._tokens):.4f}"
        pace = f"rate {step.rate:.2g}, {step.tokens_per_second:,.0f} tokens/s"
        left = f"{span(step.seconds_left)} left"
        epoch = f"epoch {step.epoch:,}/{step.epochs:,}"
        if self._is_bar:
            self._advance(step, f"{epoch}, {loss}, {pace}, {left}")
        else:
            steps = f"step {step.number:,}/{step.total:,}"
            note(f"{self._phase}: {epoch}, {loss}, {steps}, {pace}, {left}")
        self._loss = self._tokens = 0.0
        self._last, self._tenth = now, tenth

    def _bar_is_there(self) -> bool:
        return self._bar is not None or not self._is_bar

    def _advance(self, step: Step, figures: str) -> None:
        with contextlib.suppress(OSError):
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(
                    desc=self._phase, total=step.total, file=sys.stderr, dynamic_ncols=True,
                    bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
                )  # fmt: skip
            self._bar.total, self._bar.n = step.total, step.number
            self._bar.set_postfix_str(figures)

    def note(self, text: str) -> None:
        """Write a message without tearing the bar apart."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.clear()
        note(text)
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.refresh()
