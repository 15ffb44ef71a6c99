r"""Owns how text is cut into units, and where a space stands between two of them by default.

A unit is a word, one punctuation mark or symbol, one CJK character, or one white-space character.
Each character has a *kind* (one letter, below); of a unit only the kinds of its first and last
character matter for spacing::

    text    U s e r :   1 , 5 0 0 ?
    kinds   w w w w .   d . d d d !

A tokenizer need not store a space that :class:`Spacing` predicts. `Spacing` sees nothing but the
units before, so whoever reads tokens predicts the same.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

# What words are made of.
WORD: Final = "w"
DIGIT: Final = "d"
MARK: Final = "m"  # accents, variation selectors, joiners: belong to what stands before them
# Units of one character.
CJK: Final = "c"
OPEN: Final = "("  # a space before, none after
CLOSE: Final = ")"  # none before, one after unless CJK follows
STOP: Final = "!"  # none before, one after
POINT: Final = "."  # like STOP, but may stand inside a number
JOINER: Final = "-"  # none on either side
SYMBOL: Final = "+"  # one on both sides, none between two symbols
QUOTE: Final = '"'  # by turns OPEN and CLOSE
# White space.
SPACE: Final = " "
NEWLINE: Final = "\n"
OTHER_SPACE: Final = "\t"
# Kinds that no character has by itself.
NUMBER_POINT: Final = ","  # a POINT right behind a digit: 299,792 and 3.14 and 10:30
GLUED: Final = ""  # the first kind of a token that continues what stands before it

# In the order of their numbers in compiled code.
KINDS: Final = (
    *(WORD, DIGIT, MARK, SPACE, NEWLINE, OTHER_SPACE, QUOTE, POINT, NUMBER_POINT, GLUED),
    *(OPEN, CLOSE, CJK, STOP, JOINER, SYMBOL),
)

_BY_CHARACTER: Final = {
    character: kind
    for kind, characters in (
        (NEWLINE, "\n"),
        (QUOTE, '"'),
        (POINT, ".,:"),
        (STOP, ";!?"),
        (CLOSE, "%‰°℃℉…。？！"),
        (OPEN, "#@"),
        (JOINER, "'’/\\^，、；：／～·"),
    )
    for character in characters
}
_BY_CATEGORY: Final = {
    category: kind
    for kind, categories in (
        (OPEN, "Ps Pi Sc"),
        (CLOSE, "Pe Pf"),
        (JOINER, "Pd Pc"),
        (DIGIT, "Nd"),
        (MARK, "Cf Mn Mc Me"),
        # Unassigned today is most often an emoji of tomorrow, so it is cut like one: a model must
        # not see other tokens because a newer Python knows a newer Unicode.
        (SYMBOL, "Cn"),
    )
    for category in categories.split()
}
_CJK: Final = (
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3041, 0x30FF),  # hiragana, katakana
    (0x3105, 0x312F),  # bopomofo
    (0x31F0, 0x31FF),  # small katakana
    (0x3400, 0x4DBF),  # ideographs, extension A
    (0x4E00, 0x9FFF),  # ideographs
    (0xAC00, 0xD7A3),  # hangul syllables
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFF66, 0xFF9F),  # half-width katakana
    (0x1AFF0, 0x1B16F),  # kana extensions
    (0x20000, 0x3FFFF),  # ideographs, all further extensions
)


def _kind(character: str) -> str:
    """Return the kind of one character."""
    if kind := _BY_CHARACTER.get(character):
        return kind
    if character.isspace():
        return SPACE if character == " " else OTHER_SPACE
    category = unicodedata.category(character)
    if category[0] == "P" and unicodedata.east_asian_width(character) in "WF":
        return JOINER  # brackets and the like are as wide as an ideograph and bring their own space
    code = ord(character)
    if category[0] in "LNC" and any(low <= code <= high for low, high in _CJK):
        return CJK
    return _BY_CATEGORY.get(category) or (SYMBOL if category[0] in "PS" else WORD)


class _Kinds(dict[int, str]):
    """The table for `str.translate`, filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        kind = self[code] = _kind(chr(code))
        return kind


_KINDS: Final = _Kinds()
# Matched against kinds, not against text. The first group is one space that stands alone between
# two units; all other white space is a unit itself.
_UNIT: Final = re.compile(rf"((?<=\S) (?=\S))?([{WORD}{DIGIT}{MARK}]+|.)", re.DOTALL)


def kinds_of(text: str) -> str:
    """Return the kinds of all characters, a string as long as the text."""
    return text.translate(_KINDS)


def cut(text: str) -> Iterator[tuple[bool, str, str, str]]:
    """Cut text into units.

    Yields
    ------
    tuple
        Whether one space stands before the unit, the unit, the kinds of its first and last
        character. The units and these spaces together are the whole text.
    """
    kinds = kinds_of(text)
    for match in _UNIT.finditer(kinds):
        start, end = match.span(2)
        yield match.start() != start, text[start:end], kinds[start], kinds[end - 1]


def is_word(unit: str) -> bool:
    """Tell a word from a unit that is one character by nature."""
    return kinds_of(unit[0]) in (WORD, DIGIT, MARK)


@functools.cache
def default_space(left: str, right: str) -> bool:
    """Say whether a space stands between two units of these kinds where nothing else is noted."""
    if left in (SPACE, NEWLINE, OTHER_SPACE, OPEN, JOINER, CJK) or right == GLUED:
        return False
    if right in (SPACE, NEWLINE, OTHER_SPACE, CLOSE, STOP, POINT, NUMBER_POINT, JOINER, MARK):
        return False
    if right == CJK:
        return left in (STOP, POINT, NUMBER_POINT)
    return (left, right) not in ((SYMBOL, SYMBOL), (MARK, SYMBOL), (NUMBER_POINT, DIGIT))


State = tuple[str, bool]


class Spacing:
    """Predicts spaces from left to right; reading and writing tokens share it.

    It remembers the last unit, and whether a straight quote is open (since the last line break, so
    that a stray quote spoils one line at most).
    """

    __slots__ = ("_last", "_quoted")

    def __init__(self, last: str = NEWLINE, quoted: bool = False) -> None:
        self._last = last
        self._quoted = quoted

    @property
    def state(self) -> State:
        """What it remembers."""
        return self._last, self._quoted

    def space_before(self, first: str) -> bool:
        """Say whether a unit whose first character has this kind comes after a space."""
        if first == QUOTE:
            first = CLOSE if self._quoted else OPEN
        return default_space(self._last, first)

    def advance(self, last: str) -> None:
        """Step over a unit whose last character has this kind."""
        if last == QUOTE:
            last = CLOSE if self._quoted else OPEN
            self._quoted = not self._quoted
        elif last == POINT and self._last == DIGIT:
            last = NUMBER_POINT
        elif last == NEWLINE:
            self._quoted = False
        self._last = last
