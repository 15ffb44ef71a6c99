"""Owns how bytes that arrive one by one become characters."""

from __future__ import annotations

from bisect import bisect


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
            self._length = (1, 2, 3, 4, 1)[bisect((0xC2, 0xE0, 0xF0, 0xF5), byte)]
        self.begun += bytes((byte,))
        return broken + self.finish() if len(self.begun) == self._length else broken

    def finish(self) -> str:
        """Return what is left; a character that is not complete becomes U+FFFD."""
        begun, self.begun = self.begun, b""
        try:
            return begun.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return begun.decode("utf-8", "replace")
