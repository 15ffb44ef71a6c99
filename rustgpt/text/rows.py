"""Owns what a training sees of texts: their token ids, and where the loss counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

AT_ONCE: Final = 2**16  # rows of which edges are computed at a time: memory stays small
TOKENS_AT_ONCE: Final = 2**20
LITTLE: Final = 64  # tokens of a row where all targets are counted, so many rows at a time
Edges = NDArray[np.int64]
Keep = Callable[[Iterator[Edges]], Edges]  # joins parts (n, 2) into one array, in memory or mapped


@dataclass(frozen=True)
class Row:
    """A text as token ids, with what is to be learned of it.

    Parameters
    ----------
    ids
        (n + 1,) the tokens; the first n are read, the last n predicted.
    counted
        (n,) whether the prediction of `ids[i + 1]` counts in the loss; None if all do.
    continues
        Whether it goes on with the text before it, rather than being one by itself.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_] | None = None
    continues: bool = False

    def __len__(self) -> int:
        return len(self.ids)


AnyRow = Row | NDArray[np.int32]  # of an array of ids, every prediction counts


def ids_of(row: AnyRow) -> NDArray[np.int32]:  # -> (n + 1,)
    """Return a row's ids."""
    return row.ids if isinstance(row, Row) else row


def targets_of(row: AnyRow) -> NDArray[np.int32]:  # -> (n,)
    """Return what follows each token that is read, or -1 where that does not count."""
    if isinstance(row, Row) and row.counted is not None:
        return np.where(row.counted, row.ids[1:], np.int32(-1))
    return ids_of(row)[1:]


def count_targets(rows: Iterable[AnyRow]) -> int:
    """Return how many predictions of some rows count in the loss."""
    return sum(
        int(np.count_nonzero(row.counted))
        if isinstance(row, Row) and row.counted is not None
        else max(0, len(row) - 1)
        for row in rows
    )


class Rows(Sequence[AnyRow]):
    """Many rows in flat arrays; each is made when it is asked for.

    Parameters
    ----------
    ids
        (N,) the tokens of all texts, one text behind another.
    edges
        (R, 2) where each row begins and ends, in their order.
    counted
        (N,) whether the prediction of each token counts in the loss; None if all do.
    keep
        Where further edges are kept: by default in memory.
    """

    def __init__(
        self,
        ids: NDArray[Any],
        edges: Edges,
        counted: NDArray[np.bool_] | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._ids, self._edges, self._counted = ids, edges, counted
        self._keep = keep or _in_memory

    @classmethod
    def of(cls, rows: Iterable[AnyRow]) -> Rows:
        """Return rows in memory; one that continues a text is joined to it."""
        parts = [*flat_parts(rows)]
        masked = any(part.counted is not None for part in parts)
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.edges for part in parts]),
            np.concatenate([part.mask() for part in parts]) if masked else None,
        )

    def __len__(self) -> int:
        return len(self._edges)

    @overload
    def __getitem__(self, index: int) -> AnyRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[AnyRow]: ...
    def __getitem__(self, index: int | slice) -> AnyRow | list[AnyRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first, stop = self._edges[index].tolist()
        ids = np.asarray(self._ids[first:stop], np.int32)
        if self._counted is None:
            return ids
        counted = self._counted[first + 1 : max(first + 1, stop)]
        return ids if counted.all() else Row(ids, np.asarray(counted))

    def lengths(self, which: slice | NDArray[Any] = slice(None)) -> NDArray[np.int64]:
        """Return how many tokens of some rows are read, (n,): one less than they have."""
        return _lengths(np.asarray(self._edges[which]))

    def longest(self) -> int:
        """Return the most tokens of a row."""
        return max((int(np.diff(edges).max()) for edges in self.parts()), default=0)

    def parts(self) -> Iterator[Edges]:
        """Yield the edges of the rows, (n, 2), so many at a time."""
        for first in range(0, len(self), AT_ONCE):
            yield np.asarray(self._edges[first : first + AT_ONCE])

    def with_edges(self, parts: Iterator[Edges]) -> Rows:
        """Return rows of the same tokens that begin and end elsewhere."""
        return Rows(self._ids, self._keep(parts), self._counted, self._keep)

    def cut(self, longest: int) -> Rows:
        """Return rows of which at most `longest` tokens are read.

        The last token of one is the first of the next: every token but the first is predicted once.
        Rows of less than two tokens are left out.
        """
        return self.with_edges(self._cut(longest))

    def _cut(self, longest: int) -> Iterator[Edges]:
        for edges in self.parts():
            starts, stops = edges.T
            counts = -(-_lengths(edges) // longest)  # (n,) pieces of each row
            ends = np.cumsum(counts)
            for first in range(0, int(ends[-1]), AT_ONCE):
                piece = np.arange(first, min(first + AT_ONCE, int(ends[-1])))
                row = np.searchsorted(ends, piece, side="right")
                at = starts[row] + (piece - ends[row] + counts[row]) * longest
                yield np.stack([at, np.minimum(at + longest + 1, stops[row])], axis=1)

    def count_targets(self) -> int:
        """Return how many predictions count in the loss."""
        if self._counted is None:
            return sum(int(_lengths(edges).sum()) for edges in self.parts())
        return sum(len(targets) for targets in self._targets())

    def frequencies(self, vocab_size: int) -> NDArray[np.int64]:  # -> (V,)
        """Return how often each token is a target that counts."""
        counts = np.zeros(vocab_size, np.int64)
        for targets in self._targets():
            counts += np.bincount(targets, minlength=vocab_size)
        return counts

    def _targets(self) -> Iterator[NDArray[Any]]:
        """Yield all targets that count, some at a time."""
        for edges in self._cut(LITTLE):
            first, stop = int(edges[0, 0]), int(edges[-1, 1])
            change = np.zeros(stop - first + 1, np.int8)
            np.add.at(change, edges[:, 0] + 1 - first, 1)  # a row's first token is no target
            np.add.at(change, edges[:, 1] - first, -1)
            counts = np.cumsum(change[:-1], dtype=np.int8) > 0  # (stop - first,)
            if self._counted is not None:
                counts &= self._counted[first:stop]
            yield self._ids[first:stop][counts]


def _lengths(edges: Edges) -> NDArray[np.int64]:  # (n, 2) -> (n,)
    lengths: NDArray[np.int64] = np.maximum(edges[:, 1] - edges[:, 0] - 1, 0)
    return lengths


def _in_memory(parts: Iterator[Edges]) -> Edges:
    return np.concatenate([np.empty((0, 2), np.int64), *parts])


@dataclass(frozen=True)
class FlatPart:
    """Some rows, one behind another.

    Parameters
    ----------
    ids
        (n,)
    counted
        (n,) whether the prediction of each counts; None if all do.
    edges
        (r, 2) of the texts that have ended, counted from the first text of all.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_] | None
    edges: Edges

    def mask(self) -> NDArray[np.bool_]:  # -> (n,)
        """Return what counts."""
        return np.ones(len(self.ids), np.bool_) if self.counted is None else self.counted


def flat_parts(rows: Iterable[AnyRow]) -> Iterator[FlatPart]:
    """Yield rows one behind another, about `TOKENS_AT_ONCE` tokens at a time; at least one part."""
    begun: list[AnyRow] = []
    edges: list[tuple[int, int]] = []
    start = stop = held = 0  # of the last text; tokens in `begun`
    for number, row in enumerate(rows):
        if number and not (isinstance(row, Row) and row.continues):
            edges.append((start, stop))
            start = stop
        stop += len(row)
        begun.append(row)
        held += len(row)
        if held >= TOKENS_AT_ONCE:
            yield _flat(begun, edges)
            begun, edges, held = [], [], 0
    if stop or start or begun:
        edges.append((start, stop))
    yield _flat(begun, edges)


def _flat(rows: list[AnyRow], edges: list[tuple[int, int]]) -> FlatPart:
    ids = np.concatenate([np.empty(0, np.int32), *map(ids_of, rows)])
    counted = None
    if any(isinstance(row, Row) and row.counted is not None for row in rows):
        masks = [np.ones(len(row), np.bool_) for row in rows]
        for mask, row in zip(masks, rows, strict=True):
            if isinstance(row, Row) and row.counted is not None:
                mask[1:] = row.counted
        counted = np.concatenate(masks)
    return FlatPart(ids, counted, np.array(edges, np.int64).reshape(-1, 2))
