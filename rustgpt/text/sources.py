"""Owns where data come from: files, folders, patterns, standard input; and their encodings."""

from __future__ import annotations

import codecs
import glob
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from pathlib import Path
from typing import Any, BinaryIO, Final

from rustgpt.errors import DataError

StrPath = str | os.PathLike[str]

STANDARD_INPUT: Final = "-"
OF_A_MODEL: Final = {"config.json", "model.safetensors"}  # in a folder that holds no data
# Those of UTF-32 first: they begin like those of UTF-16.
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "",
}
PIECE: Final = 2**22
READ: Final = 2**20  # bytes that are decoded at a time where lines may be as long as the file
_UNFINISHED: Final = re.compile(rb"[\xc0-\xff][\x80-\xbf]*\Z")  # a character that may go on
_SAMPLE: Final = 4096  # bytes from which an encoding is guessed


@dataclass(frozen=True)
class Source:
    """Something to read: a file, or standard input.

    Parameters
    ----------
    name
        How messages call it.
    path
        The file; None for standard input.
    named
        Whether the user has named it himself; otherwise it was found in a folder.
    """

    name: str
    path: Path | None
    named: bool = True


def find_sources(paths: Any) -> list[Source]:
    """Find what a path or a list of paths means: files, folders, patterns, "-".

    Left out of a folder are files and folders whose names begin with a dot, and saved models. A
    file that is found twice is read once.

    Raises
    ------
    DataError
        If a path is no text, or nothing is there.
    """
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes))
    found: dict[str, Source] = {}
    for path in paths if several else [paths]:
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(f"a file must be named by text, not by {type(path).__name__}")
        for source in _find(str(path)):
            with readable(source.name):
                place = "" if source.path is None else os.path.realpath(source.path)
                found.setdefault(place, source)
    if not found:
        raise DataError("no data to load: name a file or a folder")
    return list(found.values())


def _find(name: str) -> Iterator[Source]:
    if name == STANDARD_INPUT:
        yield Source("standard input", None)
        return
    with readable(repr(name)):
        if not name.strip():
            raise DataError(f"cannot read {name!r}: name a file or a folder")
        path = Path(name)
        if path.is_dir():
            files = sorted(_files_below(path))
            if not files:
                raise DataError(f"the folder {name!r} holds no file to read")
            yield from (Source(repr(str(file)), file, named=False) for file in files)
        elif glob.has_magic(name) and not path.exists():
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise DataError(f"cannot read {name!r}: there is no such file, and no match for it")
            for match in matches:
                yield from _find(match)
        else:
            yield Source(repr(str(path)), path)


def _files_below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        if {*files} >= OF_A_MODEL:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(where, name)
            # Not pipes and devices, whose reading may never end.
            if not name.startswith(".") and (file.is_file() or file.is_symlink()):
                yield file


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what the system says against reading into DataError."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror or error}; check its name and rights"
        ) from None
    except (MemoryError, OverflowError):
        raise DataError(f"cannot read {name}: it needs more memory than there is") from None
    except ValueError as error:
        raise DataError(f"cannot read {name}: {error}") from None


class Content:
    """What a source holds: UTF-8 without a byte order mark, from any line end on.

    Parameters
    ----------
    file
        Seekable.
    start
        Where the content begins, behind a mark.
    name
        How messages call it.
    """

    def __init__(self, file: BinaryIO, start: int, name: str) -> None:
        self._file = file
        self._start = start
        self.name = name

    def position(self) -> int:
        """Return how many bytes were read."""
        return self._file.tell()

    def head(self, size: int = 2**16) -> str:
        """Return the beginning, of so many bytes at most; what is no text in it does not matter."""
        self._file.seek(self._start)
        return self._file.read(size).decode("utf-8", "ignore")

    def decoded(self) -> Iterator[str]:
        """Yield all of it in pieces of `READ` bytes or a few less, which end anywhere."""
        self._file.seek(self._start)
        line, column, before, rest = 1, 1, b"", b""  # where the next piece begins
        while data := rest + (piece := self._file.read(READ)):
            cut = _UNFINISHED.search(data, max(len(data) - 3, 0)) if len(piece) == READ else None
            end = cut.start() if cut else len(data)
            data, rest = data[:end], data[end:]
            text = _decode(data, line, self.name, column, before)
            before = (before + data[-_SAMPLE:])[-_SAMPLE:]
            line += text.count("\n")
            last = text.rfind("\n")
            column = len(text) - last + (column - 1) * (last < 0)
            del data, piece
            if text:
                yield text
            del text  # it may be large

    def lines(self) -> Iterator[str]:
        r"""Yield lines with their ends. Only "\n" ends a line: U+2028 and the like are text."""
        self._file.seek(self._start)
        # Not a loop: its variables would keep the line, which may be as large as the file.
        yield from map(_decode, self._file, count(1), repeat(self.name))

    def pieces(self) -> Iterator[str]:
        """Yield all of it in pieces of whole lines, each of `PIECE` characters or a few more."""
        lines, length = [], 0
        for line in self.lines():
            lines.append(line)
            length += len(line)
            if length >= PIECE:
                del line  # it may be as large as the file
                piece = "".join(lines)
                lines, length = [], 0
                yield piece
        yield "".join(lines)


@contextmanager
def opened(source: Source) -> Iterator[Content]:
    """Open a source; DataError if it cannot be read."""
    with readable(source.name):
        if source.path is None and sys.stdin is None:
            raise DataError("there is no standard input to read: it is closed")
        file: BinaryIO = sys.stdin.buffer if source.path is None else source.path.open("rb")
        with nullcontext() if source.path is None else file:
            if not file.seekable() or source.path is None:
                file = io.BytesIO(file.read())
            head = file.read(4)
            mark = next(filter(head.startswith, _MARKS), b"")
            if encoding := _MARKS.get(mark):
                file.seek(0)
                file, mark = _recoded(file.read(), encoding, source.name), b""
            yield Content(file, len(mark), source.name)


def _recoded(data: bytes, encoding: str, name: str) -> BinaryIO:
    """Return the content as UTF-8."""
    try:
        return io.BytesIO(data.decode(encoding).encode())
    except UnicodeError as error:
        raise DataError(
            f"{name} is in {encoding.upper()} and damaged ({error}); save it as UTF-8"
        ) from None


def _decode(data: bytes, line: int, name: str, column: int = 1, before: bytes = b"") -> str:
    """Decode what begins in this line and column, behind other data."""
    text, at = "", data.find(0)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        at = error.start if at < 0 else at
    if at >= 0:
        line += data.count(b"\n", 0, at)
        begin = data.rfind(b"\n", 0, at) + 1
        column = len(data[begin:at].decode("utf-8", "replace")) + (1 if begin else column)
        wrong = _wrong_byte(before + data, len(before) + at)
        raise DataError(f"{name}, line {line}, column {column}: {wrong}")
    return text


def _wrong_byte(data: bytes, at: int) -> str:
    """Say what is wrong with a byte, and which encoding that speaks of."""
    if not data[at]:
        return (
            "a NUL byte; this is no text, or in UTF-16 without a byte order mark: if it is text, "
            "save it as UTF-8"
        )
    # Letters of Latin-1 stand among those of ASCII; in Chinese most bytes are above it.
    high = [byte > 0x7F for byte in data[max(at - _SAMPLE, 0) : at + _SAMPLE]]
    beside = sum(a and b for a, b in pairwise(high))
    guess = "GB18030" if beside * 3 > sum(high) else "Windows-1252"
    return (
        f"byte 0x{data[at]:02X} is not UTF-8; save the file as UTF-8 (if it is in {guess}: "
        f"iconv -f {guess.upper()} -t UTF-8)"
    )
