"""Owns reading JSON in pieces: each item of a list, or value behind another, once it is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from rustgpt.text.records import Twice

_NO_SPACE: Final = re.compile(r"[^ \t\n\r]")
_COMMA: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*(?=[^ \t\n\r])")
# So near to its end, what is wrong with a text may be that it is cut: in "-Infinity", "12e+7".
_NEAR: Final = 12


class NotJson(ValueError):
    """What is wrong with a text, and in which line and column."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    return content if len(content) == len(pairs) else Twice(content)


# As a float, a number may have any count of digits.
DECODER: Final = json.JSONDecoder(parse_int=float, object_pairs_hook=_object)


def is_one_value(pieces: Iterable[str]) -> bool:
    """Tell whether a text is one list, object or string."""
    stream = JsonStream(pieces)
    try:
        return all(
            stream.in_list or (number == 1 and isinstance(value, (dict, str)))
            for number, _, value in stream.values()
        )
    except (NotJson, RecursionError):
        return False


class JsonStream:
    """A list, or values one behind another; no more is held than one of them and one piece.

    Parameters
    ----------
    pieces
        Of the text, cut anywhere.

    Attributes
    ----------
    in_list
        Whether the values are items of a list; known from the first one on.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self.in_list = False
        self._pieces = iter(pieces)
        self._text = ""  # what is at hand
        self._column = 0  # how many characters of its first line were before it
        self._at = 0  # how much of it was read
        self._line, self._counted = 1, 0  # a line, and where in the text: not behind `_at`

    def values(self) -> Iterator[tuple[int, int, object]]:
        """Yield number, from 1, line and value of each.

        Raises
        ------
        NotJson
            Where the text is none.
        RecursionError
            Where it is nested too deeply.
        """
        self.in_list = self._skip() == "["
        self._at += self.in_list
        sign = self._skip()
        number = 0
        while sign != "]" if self.in_list else sign or number == 0:
            number += 1
            self._line += self._text.count("\n", self._counted, self._at)
            self._counted = self._at
            yield number, self._line, self._value()
            if self.in_list and (comma := _COMMA.match(self._text, self._at)):
                self._at = comma.end()  # the common case, faster
                sign = ","
                continue
            sign = self._skip()
            if self.in_list and sign != "]":
                if sign != ",":
                    raise self._wrong("Expecting ',' delimiter", self._at)
                self._at += 1
                self._skip()
        self._at += self.in_list
        if self._skip():
            raise self._wrong("Extra data", self._at)

    def _skip(self) -> str:
        """Go to the next sign that is no space, and return it; at the end there is none."""
        while True:
            if match := _NO_SPACE.search(self._text, self._at):
                self._at = match.start()
                return match[0]
            self._at = len(self._text)
            if not self._more():
                return ""

    def _value(self) -> object:
        """Decode the value that begins here, and go behind it.

        What the end of the text at hand may have cut is decoded again with more of it.
        """
        while True:
            wrong = ""
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if not isinstance(value, float):  # it says itself where it ends
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                wrong, end = error.msg, error.pos
            at_end = end + _NEAR > len(self._text) or wrong.startswith("Unterminated string")
            end -= self._at
            if not (at_end and self._more()):
                break
        if wrong:
            raise self._wrong(wrong, self._at + end)
        self._at += end
        return value

    def _more(self) -> bool:
        """Read as much again as is not yet read of the text; False at its end."""
        text, at = self._text, self._at
        self._line += text.count("\n", self._counted, at)
        self._column = self._column_of(at) - 1
        rest = text[at:]
        parts, length = [rest], 0
        del text
        self._text, self._at, self._counted = rest, 0, 0
        for piece in self._pieces:
            parts.append(piece)
            length += len(piece)
            if length >= len(rest):
                break
        self._text = "".join(parts)
        return length > 0

    def _column_of(self, at: int) -> int:
        """Return the column, from 1, of a position in the text."""
        end = self._text.rfind("\n", 0, at)
        return at - end if end >= 0 else self._column + at + 1

    def _wrong(self, message: str, at: int) -> NotJson:
        line = self._line + self._text.count("\n", self._counted, at)
        return NotJson(f"line {line}, column {self._column_of(at)}: {message}")
