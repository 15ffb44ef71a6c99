"""Owns how tokens become text while they are made: whole characters, and no stop string."""

from __future__ import annotations

from collections.abc import Sequence

from rustgpt.text.tokenizer import Stream


class TextWriter:
    """Gives out the text of tokens as soon as it is certain.

    What may be the beginning of a stop string is held back until it is none, or the text ends.

    Parameters
    ----------
    stream
        Turns tokens into whole characters.
    stop
        Texts before which the text ends.
    strip
        Whether white space at the beginning and at the end is left out.

    Attributes
    ----------
    stopped
        Whether the text has come to a stop string.
    """

    def __init__(self, stream: Stream, stop: Sequence[str] = (), strip: bool = False) -> None:
        self._stream = stream
        self._stop = stop
        self._strip = strip
        self._has_begun = False
        self._space = ""  # may be the end
        self._held = ""  # may be a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is now certain."""
        text = self._stream.push(token_id)
        text = self._cut(text) if self._stop else text
        return self._stripped(text) if self._strip else text

    def finish(self) -> str:
        """Return what was held back; a character that was not completed becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._stream.finish()
        text = self._cut(text) if self._stop else text
        text, self._held = text + self._held, ""
        return self._stripped(text) if self._strip else text

    def _cut(self, text: str) -> str:
        """Return what is certain of the text that was held back and some more."""
        text = self._held + text
        places = ((text.find(stop), len(stop)) for stop in self._stop)
        ends = [(at + length, at) for at, length in places if at >= 0]
        if ends:  # what is complete first counts, however the tokens cut the text
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        certain = len(text) - max(_begun(text, stop) for stop in self._stop)
        self._held = text[certain:]
        return text[:certain]

    def _stripped(self, text: str) -> str:
        text = self._space + text if self._has_begun else text.lstrip()
        certain = text.rstrip()
        self._space = text[len(certain) :]
        self._has_begun = self._has_begun or bool(certain)
        return certain


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
