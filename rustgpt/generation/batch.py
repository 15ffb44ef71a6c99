"""Owns the texts that a model reads together: their slots in a cache, chunks, the full context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.layers.cache import Cache

# Continues texts in slots of a cache by tokens; returns the logits (B, V) of what follows each.
Decode = Callable[[list[NDArray[np.int32]], Cache, list[int]], NDArray[Any]]

CHUNK: Final = 512


class Text:
    """A text that a model reads.

    Attributes
    ----------
    ids
        Its tokens; whoever makes more appends them.
    start
        The first token that the model still sees.
    read
        How many tokens from there on are in the cache.
    slot
        Where in the cache; -1 for nowhere.
    logits
        (V,) of what may follow, once all of it is read beside others; a text of several that belong
        together may have to wait for them.
    """

    __slots__ = ("ids", "logits", "read", "slot", "start")

    def __init__(self, ids: list[int], max_seq_len: int) -> None:
        self.ids = ids
        self.start = max(0, len(ids) - max_seq_len)
        self.read = 0
        self.slot = -1
        self.logits: NDArray[Any] | None = None


class Batch:
    """Texts that go on together in the slots of a cache.

    Long ones are read in chunks. When the context is full, the older half of what the model sees is
    dropped and the younger half is read again. What a slot has of a text that has left it is
    used by the next one that begins alike.

    Parameters
    ----------
    decode
        Continues texts in a cache.
    max_seq_len
        S, the most tokens that the model sees at once.
    slots
        How many texts there is room for.
    version
        Tells the version of the weights: what others have made of a text is not used again.
    chunk
        The most tokens of prompts that are read between two tokens of other texts; by default 512.
    """

    def __init__(
        self,
        decode: Decode,
        max_seq_len: int,
        slots: int,
        version: Callable[[], int],
        chunk: int | None = None,
    ) -> None:
        self._decode = decode
        self._chunk = CHUNK if chunk is None else chunk
        self._max_seq_len = max_seq_len
        self._version = version
        self._cache = Cache(max_seq_len, slots)
        self._texts: list[Text | None] = [None] * slots  # whose tokens are in each slot
        self._versions = [-1] * slots  # of the weights when a slot's text began
        self.free = set(range(slots))
        self._one = np.empty(1, np.int32)  # the row of a text that goes on by one token

    def open(self, text: Text) -> None:
        """Give a text a slot, which must be free, with what is known of its beginning."""
        version = self._version()
        wanted = text.ids[text.start : -1]  # the last one must be read to know what follows
        known = {
            slot: _alike(wanted, seen)
            for slot, seen in enumerate(self._texts)
            if seen is not None and self._versions[slot] == version
        }
        text.slot = max(self.free, key=lambda slot: (known.get(slot, 0), self._texts[slot] is None))
        source = max(known, key=known.__getitem__, default=text.slot)
        text.read = known.get(source, 0)
        if text.read > known.get(text.slot, 0):
            self._cache.copy(source, text.slot)
        else:
            text.read = known.get(text.slot, 0)
        self._take(text, version)

    def fork(self, text: Text, other: Text) -> None:
        """Give `other`, which has read the same tokens as `text`, a free slot or keep its own."""
        if other.slot < 0:
            other.slot = next(iter(self.free))
        self._cache.copy(text.slot, other.slot)
        other.start, other.read = text.start, text.read
        self._take(other, self._versions[text.slot])

    def _take(self, text: Text, version: int) -> None:
        slot = text.slot
        self.free.discard(slot)
        self._cache.lengths[slot] = text.read
        self._texts[slot], self._versions[slot] = text, version

    def close(self, text: Text) -> None:
        """Free a text's slot. What was read of it may be used again."""
        self.free.add(text.slot)

    def read(self, texts: list[Text]) -> list[NDArray[Any] | None]:
        """Let texts go on by their new tokens; return (V,) the logits of what may follow each.

        None for a text that is not yet read to its end: others go on meanwhile.
        """
        if len(texts) == 1:
            return self._read_one(texts[0])
        if not texts:
            return []
        room = self._chunk
        rows: list[NDArray[np.int32]] = []
        reading: list[Text] = []
        for text in texts:
            fresh = self._fresh(text)
            n = len(fresh)
            if n > 1:
                n = min(n, room)
                room -= n
            if n:
                rows.append(np.array(fresh[:n], np.int32))
                reading.append(text)
        logits = self._decode(rows, self._cache, [text.slot for text in reading])  # (B, V)
        for text, row, last in zip(reading, rows, logits, strict=True):
            text.read += len(row)  # not before: it may fail, or be interrupted
            text.logits = last if text.start + text.read == len(text.ids) else None
        return [text.logits for text in texts]

    def _read_one(self, text: Text) -> list[NDArray[Any] | None]:
        """Do the same for a single text, without a detour: its token takes microseconds."""
        if text.start + text.read == len(text.ids) - 1 and text.read < self._max_seq_len:
            n, is_last, row = 1, True, self._one
            row[0] = text.ids[-1]
        else:
            fresh = self._fresh(text)
            n = min(len(fresh), self._chunk)
            is_last, row = n == len(fresh), np.array(fresh[:n], np.int32)
        logits = self._decode([row], self._cache, [text.slot])
        text.read += n
        return [logits[0] if is_last else None]

    def _fresh(self, text: Text) -> list[int]:
        """Return what is to be read of a text, whose older half is dropped if there is no room."""
        fresh = text.ids[text.start + text.read :]
        if text.read + len(fresh) <= self._max_seq_len:
            return fresh
        text.start, text.read = len(text.ids) - self._max_seq_len // 2, 0
        text.logits = None  # it may have to wait, if others are read first
        self._cache.lengths[text.slot] = 0
        self._versions[text.slot] = self._version()
        return text.ids[text.start :]


def _alike(wanted: list[int], seen: Text) -> int:
    """Return how many of some first tokens are those that were read of a text."""
    n = min(len(wanted), seen.read)
    read = seen.ids[seen.start : seen.start + n]
    if wanted[:n] == read:
        return n
    return next(i for i, (a, b) in enumerate(zip(wanted, read, strict=False)) if a != b)
