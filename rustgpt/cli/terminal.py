"""Owns what reaches the terminal: the one filter of all text, results, notes and progress."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TextIO

from rustgpt.errors import RustGPTError

if TYPE_CHECKING:
    from rustgpt.training_state import Epoch

_FILTER: Final[dict[int, str | None]] = {
    # What could steer a terminal is shown as U+FFFD: C0 without tab and newline, DEL, C1, and
    # halves of surrogate pairs, which no encoding can write.
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)), "�"),
    # What is not seen but changes what is, is removed: bidirectional controls and tags.
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    **dict.fromkeys(range(0xE0000, 0xE0080)),
}
del _FILTER[ord("\n")], _FILTER[ord("\t")]


def clean(text: str) -> str:
    """Return text, whoever wrote it, as what a terminal can only show."""
    return text.translate(_FILTER)


def say(text: str = "", end: str = "\n") -> None:
    """Write a result to standard output, at once.

    BrokenPipeError if nobody reads any more, and RustGPTError if, say, the disk is full.
    """
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        _write(sys.stdout, text + end)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RustGPTError(
            f"cannot write to standard output: {error.strerror or error}; make room or redirect it"
        ) from None


def note(text: str) -> None:
    """Write a message to standard error; whether that is possible matters to nobody."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            _write(sys.stderr, text + "\n")


def complain(error: object) -> None:
    """Write an error to standard error, in one line."""
    note("rustgpt: error: " + " ".join(str(error).splitlines()))


def _write(file: TextIO, text: str) -> None:
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(clean(text).encode(encoding, "replace").decode(encoding))
    file.flush()


def is_terminal(file: TextIO | None) -> bool:
    """Tell whether a standard stream is there and is a terminal."""
    return file is not None and file.isatty()


def _columns(file: TextIO) -> int:
    """Return how wide a terminal is; 0 if it does not say, as some containers' do not."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except OSError:
        return 0


@contextlib.contextmanager
def progress(phase: str, epochs: int) -> Iterator[Callable[[Epoch], None]]:
    """Yield what shows an epoch that has ended: a bar on a terminal, otherwise some ten lines."""
    bar: Any = None
    if is_terminal(sys.stderr) and _columns(sys.stderr):
        from tqdm import tqdm

        bar = tqdm(
            desc=phase,
            total=epochs,
            unit="epoch",
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def show(epoch: Epoch) -> None:
        figures = f"loss {epoch.loss:.4f}, {epoch.tokens_per_second:,.0f} tokens/s"
        if bar is not None:
            bar.set_postfix_str(figures, refresh=False)
            with contextlib.suppress(OSError):  # the terminal may be gone
                bar.update()
        elif epoch.number * 10 // epoch.total > (epoch.number - 1) * 10 // epoch.total:
            left = f"{epoch.seconds_left:,.0f} s left"
            note(f"{epoch.phase}: epoch {epoch.number}/{epoch.total}, {figures}, {left}")

    try:
        yield show
    finally:
        if bar is not None:
            with contextlib.suppress(OSError):
                bar.close()
