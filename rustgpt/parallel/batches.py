"""Owns how a batch is divided: into pieces for the cache, among threads, and into shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np

from rustgpt.layers.context import offsets_of
from rustgpt.layers.memory import Indices
from rustgpt.reference.arrays import Barrier, Shard
from rustgpt.text.rows import AnyRow, ids_of, targets_of

# Rows go through the model in pieces of at least so many tokens, in all threads together; but in
# each of at least so many. Smaller ones would slow the matrix products; larger ones leave the cache
# and need more memory for what is saved.
TOKENS_A_PIECE = 512
TOKENS_OF_A_THREAD = 256

# A thread may have so many times its equal part of the rows; otherwise texts are divided.
UNEVEN = 1.1


@dataclass(frozen=True)
class Piece:
    """Texts that go through the model at once.

    Parameters
    ----------
    ids, targets
        (N,) each token and the one that follows it, or -1 where that does not count.
    offsets
        (B + 1,) where each text begins and ends.
    firsts
        (B,) the number of each text's first row in the batch.
    shard
        A thread's part of the rows, if it does not have them all.
    """

    ids: Indices
    targets: Indices
    offsets: Indices
    firsts: tuple[int, ...]
    shard: Shard | None = None

    @property
    def row_numbers(self) -> Indices:
        """The number of each row in the batch, (N,), whoever has it."""
        before = np.subtract(self.firsts, self.offsets[:-1], dtype=np.int32)  # (B,)
        rows = np.arange(self.offsets[-1], dtype=np.int32)
        rows += np.repeat(before, np.diff(self.offsets))
        return rows


@dataclass(slots=True)
class Text:
    """A text of a batch, and the number of its first row there."""

    row: AnyRow
    first: int

    def __len__(self) -> int:
        return len(self.row)

    @property
    def ids(self) -> Indices:
        """All its tokens."""
        return ids_of(self.row)


def count_tokens(rows: Sequence[AnyRow | Text]) -> int:
    """Return how many tokens of some texts are read: those that one follows."""
    return sum(len(row) - 1 for row in rows)


def share(batch: Sequence[AnyRow], rank: int, size: int) -> list[Text]:
    """Return the texts of a whole batch that are one process's own."""
    return _divided(_numbered(batch), size)[rank]


def divided(batch: Sequence[AnyRow | Text], n: int) -> list[list[Piece]]:
    """Return each of n threads' pieces: whole texts."""
    each = max(TOKENS_A_PIECE // n, TOKENS_OF_A_THREAD)
    texts = _divided(_numbered(batch), n)
    return [[_joined(some) for some in _pieces(own, each)] for own in texts]


def sharded(batch: Sequence[AnyRow | Text], n: int, barrier: Barrier) -> list[list[Piece]]:
    """Return each of n threads' pieces: the same for all, each with its shard of the rows."""
    each = max(TOKENS_A_PIECE // n, TOKENS_OF_A_THREAD)
    pieces = [_shards(some, n, barrier) for some in _pieces(_numbered(batch), n * each)]
    return [[piece[i] for piece in pieces] for i in range(n)]


def _numbered(batch: Sequence[AnyRow | Text]) -> list[Text]:
    """Return texts with the number of each one's first row; those that have one keep it."""
    firsts = accumulate((len(row) - 1 for row in batch), initial=0)
    return [
        row if isinstance(row, Text) else Text(row, first)
        for row, first in zip(batch, firsts, strict=False)
    ]


def _divided(batch: list[Text], n: int) -> list[list[Text]]:
    """Divide texts among n threads, the longest first to whoever has least."""
    texts: list[list[Text]] = [[] for _ in range(n)]
    loads = [0] * n
    for row in sorted(batch, key=len, reverse=True):
        least = loads.index(min(loads))
        texts[least].append(row)
        loads[least] += len(row) - 1
    return texts


def _pieces(rows: list[Text], at_least: int) -> Iterator[list[Text]]:
    """Yield texts in order, in pieces of about the same number of tokens."""
    tokens = count_tokens(rows)
    limit = tokens / max(1, tokens // at_least)
    piece: list[Text] = []
    taken, full = 0, limit
    for row in rows:
        piece.append(row)
        taken += len(row) - 1
        if taken >= full:
            yield piece
            piece, full = [], taken + limit
    if piece:
        yield piece


def _joined(rows: list[Text]) -> Piece:
    ids, targets = [row.ids[:-1] for row in rows], [targets_of(row.row) for row in rows]
    offsets = offsets_of(*map(len, ids))  # (B + 1,)
    firsts = tuple([row.first for row in rows])
    if len(rows) == 1:  # of which a copy would take long, if a step is short
        return Piece(ids[0], targets[0], offsets, firsts)
    return Piece(np.concatenate(ids), np.concatenate(targets), offsets, firsts)


def _shards(rows: list[Text], n: int, barrier: Barrier) -> list[Piece]:
    """Divide the rows of some texts among n threads, by whole texts if that comes out even."""
    tokens, texts = count_tokens(rows), _divided(rows, n)
    edges = np.zeros(n + 1, np.int32)
    np.cumsum([count_tokens(own) for own in texts], out=edges[1:])
    uneven = bool(n * np.diff(edges).max() > UNEVEN * tokens)
    if uneven:
        edges = np.array([tokens * i // n for i in range(n + 1)], np.int32)
    piece = _joined(rows if uneven else list(chain(*texts)))
    return [replace(piece, shard=Shard(i, edges, uneven, barrier)) for i in range(n)]
