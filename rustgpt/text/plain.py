"""Owns what plain text is: a document, a list of lines, or dialogues with ``User:`` in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from rustgpt.text.vocab import END

_OPENS: Final = re.compile(r"\s*(?:User|System):")  # a line that begins a dialogue, or a turn
_ANSWER: Final = re.compile(r"(?:^|\s)Assistant:", re.MULTILINE)
_ONE_LINE: Final = re.compile(r"\s*(?:User|System):.*\sAssistant:")

# A list is told from prose, verse and code by this.
FEWEST_ENTRIES: Final = 3
LONGEST_ENTRY: Final = 200  # characters
SHARE: Final = 0.95  # of the lines that must be alike
_MARKUP: Final = re.compile(r"(?:[#>|*+-]|\d+[.)])\s|```|---|\t| {4}")
_STOPS: Final = ".!?。！？…"
_PAUSES: Final = ",;:，；：、-–—{}()[]="


def ended(text: str) -> str | None:
    """Return the text with its end token; None if there is no text."""
    text = text.strip()
    if not text.removesuffix(END).strip():
        return None
    return text if text.endswith(END) else f"{text} {END}"


class Continued(str):
    """A piece of a document that goes on with the one before it."""


def whole_document(pieces: Iterable[str]) -> Iterator[str]:
    """Yield a document whose lines end in line feeds alone, the last piece with its end token.

    All pieces but the first are `Continued`.
    """
    kind, before = str, ""
    for piece in pieces:
        piece = piece.replace("\r\n", "\n")
        if not before:
            before = piece.lstrip()
        elif piece.isspace():
            before += piece
        elif piece:
            yield kind(before)
            kind, before = Continued, piece
    yield kind(ended(before) or "")


def dialogue_form(head: str) -> bool:
    """Tell whether a file that begins so holds dialogues."""
    return bool(_OPENS.match(head) and _ANSWER.search(head))


def dialogue_blocks(lines: Iterable[str], head: str) -> Iterator[tuple[int, str]]:
    """Divide text into dialogues; yield the line, from 1, with which each begins, and its text.

    Where most lines are whole dialogues, each line that opens one begins another. Else one begins
    behind a blank line or ``</s>``.
    """
    shown = [line for line in head.split("\n") if line.strip()]
    a_line_each = 2 * sum(bool(_ONE_LINE.match(line)) for line in shown) > len(shown)
    begun: list[str] = []
    first, free = 1, True  # whether another may begin here
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if _OPENS.match(line) and (free or a_line_each) and not _is_system_only(begun):
            if begun:
                yield first, "\n".join(begun).strip()
            begun, first = [], number
        if begun or line.strip():
            begun.append(line)
        free = not line.strip() or line.rstrip().endswith(END)
    if begun:
        yield first, "\n".join(begun).strip()


def _is_system_only(lines: list[str]) -> bool:
    """Tell whether a dialogue has begun with its system message and nothing else."""
    text = "\n".join(lines[:100]).lstrip()
    return text.startswith("System:") and "User:" not in text


def is_list(head: str) -> bool:
    """Tell whether a text that begins so is plainly a list, each line an entry.

    That is so if a line ends in ``</s>``, or if without blank lines, indentation and marks of
    Markdown all lines are short, begin alike (with a capital, or all with a small letter) and end
    alike (all sentences, or none with punctuation). Of prose and verse the lines end in commas.
    """
    lines = head.split("\n")[: -1 if len(head) > 2**14 else None]  # the last may be cut
    while lines and not lines[-1].strip():
        del lines[-1]
    entries = [line.strip() for line in lines]
    if any(line.endswith(END) for line in entries):
        return True
    if len(entries) < FEWEST_ENTRIES or not all(entries) or max(map(len, entries)) > LONGEST_ENTRY:
        return False
    if any(map(_MARKUP.match, lines)):
        return False
    enough = SHARE * len(entries)
    small = sum(entry[0].islower() for entry in entries)
    sentences = sum(entry.rstrip("\"'”’»)").endswith((*_STOPS,)) for entry in entries)
    open_ends = sum(entry[-1] in _STOPS + _PAUSES for entry in entries)
    alike = small >= enough or len(entries) - small >= enough
    return alike and (sentences >= enough or len(entries) - open_ends >= enough)
