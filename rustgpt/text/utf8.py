"""Owns how bytes that arrive one by one become characters."""

from __future__ import annotations


class Utf8Stream:
    """Decodes UTF-8, turns what is not UTF-8 into U+FFFD, and lets lone surrogates pass.

    The incremental decoder of the standard library cannot do both of the latter: it reports the
    first byte of a surrogate as wrong before it has seen the last.

    Attributes
    ----------
    begun : bytes
        The first bytes of a character that is not complete.
    """

    __slots__ = ("_length", "begun")

    def __init__(self) -> None:
        self.begun = b""
        self._length = 1

    def push(self, byte: int) -> str:
        """Take one byte and return the characters that are now certain."""
        broken = ""
        if self.begun and byte & 0xC0 != 0x80:  # not a continuation
            broken = self.finish()
        if not self.begun:
            self._length = _length(byte)
        self.begun += bytes((byte,))
        return broken + self.finish() if len(self.begun) == self._length else broken

    def finish(self) -> str:
        """Return what is left; a character that is not complete becomes U+FFFD."""
        begun, self.begun = self.begun, b""
        try:
            return begun.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return begun.decode("utf-8", "replace")


def _length(lead: int) -> int:
    """Return how many bytes a character has that begins with this one; 1 also where none does."""
    if 0xC2 <= lead < 0xE0:
        return 2
    if 0xE0 <= lead < 0xF0:
        return 3
    return 4 if 0xF0 <= lead < 0xF5 else 1
