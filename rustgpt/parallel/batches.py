"""Owns how a batch is divided: into pieces for the cache, among threads, and into shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from rustgpt.layers.context import offsets_of
from rustgpt.layers.memory import Indices
from rustgpt.reference.arrays import Barrier, Shard

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
        (N,) each token and the one that follows it.
    offsets
        (B + 1,) where each text begins and ends.
    shard
        A thread's part of the rows, if it does not have them all.
    """

    ids: Indices
    targets: Indices
    offsets: Indices
    shard: Shard | None = None


def count_tokens(rows: list[Indices]) -> int:
    """Return how many tokens of some texts have one that follows."""
    return sum(len(row) - 1 for row in rows)


def divided(batch: list[Indices], n: int) -> list[list[Piece]]:
    """Return each of n threads' pieces: whole texts."""
    each = max(TOKENS_A_PIECE // n, TOKENS_OF_A_THREAD)
    return [[_joined(rows) for rows in _pieces(texts, each)] for texts in _divided(batch, n)]


def sharded(batch: list[Indices], n: int, barrier: Barrier) -> list[list[Piece]]:
    """Return each of n threads' pieces: the same for all, each with its shard of the rows."""
    each = max(TOKENS_A_PIECE // n, TOKENS_OF_A_THREAD)
    pieces = [_shards(rows, n, barrier) for rows in _pieces(batch, n * each)]
    return [[piece[i] for piece in pieces] for i in range(n)]


def _divided(batch: list[Indices], n: int) -> list[list[Indices]]:
    """Divide texts among n threads, the longest first to whoever has least."""
    texts: list[list[Indices]] = [[] for _ in range(n)]
    loads = [0] * n
    for row in sorted(batch, key=len, reverse=True):
        least = loads.index(min(loads))
        texts[least].append(row)
        loads[least] += len(row) - 1
    return texts


def _pieces(rows: list[Indices], at_least: int) -> Iterator[list[Indices]]:
    """Yield texts in order, in pieces of about the same number of tokens."""
    tokens = count_tokens(rows)
    limit = tokens / max(1, tokens // at_least)
    piece: list[Indices] = []
    taken, full = 0, limit
    for row in rows:
        piece.append(row)
        taken += len(row) - 1
        if taken >= full:
            yield piece
            piece, full = [], taken + limit
    if piece:
        yield piece


def _joined(rows: list[Indices]) -> Piece:
    ids, targets = [row[:-1] for row in rows], [row[1:] for row in rows]
    offsets = offsets_of(*map(len, ids))  # (B + 1,)
    if len(rows) == 1:  # of which a copy would take long, if a step is short
        return Piece(ids[0], targets[0], offsets)
    return Piece(np.concatenate(ids), np.concatenate(targets), offsets)


def _shards(rows: list[Indices], n: int, barrier: Barrier) -> list[Piece]:
    """Divide the rows of some texts among n threads, by whole texts if that comes out even."""
    tokens, texts = count_tokens(rows), _divided(rows, n)
    edges = np.zeros(n + 1, np.int32)
    np.cumsum([count_tokens(own) for own in texts], out=edges[1:])
    uneven = bool(n * np.diff(edges).max() > UNEVEN * tokens)
    if uneven:
        edges = np.array([tokens * i // n for i in range(n + 1)], np.int32)
    piece = _joined(rows if uneven else list(chain(*texts)))
    return [replace(piece, shard=Shard(i, edges, uneven, barrier)) for i in range(n)]
