"""Tests of how a batch is divided: into pieces, among threads, and into shards."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustgpt.parallel.batches import (
    TOKENS_A_PIECE,
    TOKENS_OF_A_THREAD,
    _divided,
    _pieces,
    count_tokens,
    divided,
    sharded,
)
from rustgpt.parallel.pool import barrier


def rows_of(lengths):
    """Return texts of so many tokens and one that follows, all of different ids."""
    ends = np.cumsum([length + 1 for length in lengths])
    return [
        np.arange(end - length - 1, end, dtype=np.int32)
        for end, length in zip(ends, lengths, strict=True)
    ]


def texts_in(pieces):
    """Return the texts of some pieces: each token's id, and behind them the last target."""
    found = []
    for piece in pieces:
        assert piece.ids.dtype == piece.targets.dtype == piece.offsets.dtype == np.int32
        assert len(piece.ids) == len(piece.targets) == piece.offsets[-1]
        for first, stop in zip(piece.offsets[:-1], piece.offsets[1:], strict=True):
            ids, targets = piece.ids[first:stop].tolist(), piece.targets[first:stop].tolist()
            assert ids[1:] == targets[:-1]
            found.append([*ids, targets[-1]])
    return found


def tokens_in(work):
    """Return how many tokens each piece of each thread has."""
    return [[len(piece.ids) for piece in pieces] for pieces in work]


def lengths_of(parts):
    return [[len(row) - 1 for row in part] for part in parts]


def test_tokens_are_those_that_one_follows():
    assert count_tokens([]) == 0
    assert count_tokens(rows_of([4, 1, 9])) == 14


def test_texts_go_to_whoever_has_least_the_longest_first():
    rows = rows_of([4, 8, 4])
    assert lengths_of(_divided(rows, 2)) == [[8], [4, 4]]
    assert lengths_of(_divided(rows_of([1, 2, 3, 4, 5]), 2)) == [[5, 2, 1], [4, 3]]
    assert lengths_of(_divided(rows_of([3, 3]), 3)) == [[3], [3], []]


def test_pieces_are_measured_in_tokens():
    rows = rows_of([4, 8, 4])
    assert lengths_of(_pieces(rows, 8)) == [[4, 8], [4]]
    assert lengths_of(_pieces(rows[1:2] * 2, 8)) == [[8], [8]]
    assert lengths_of(_pieces(rows, 17)) == [[4, 8, 4]]
    assert lengths_of(_pieces(rows_of([5] * 6), 10)) == [[5, 5]] * 3


def test_the_size_of_a_piece_is_for_all_threads_and_not_too_small_for_one():
    assert (TOKENS_A_PIECE, TOKENS_OF_A_THREAD) == (512, 256)
    rows = rows_of([64] * 32)  # 2048 tokens
    assert tokens_in(divided(rows, 1)) == [[512] * 4]
    assert tokens_in(divided(rows, 2)) == [[256] * 4] * 2
    assert tokens_in(divided(rows, 4)) == [[256] * 2] * 4
    assert tokens_in(sharded(rows, 2, barrier(2))) == [[512] * 4] * 2
    assert tokens_in(sharded(rows, 4, barrier(4))) == [[1024] * 2] * 4


@pytest.mark.parametrize(("together", "each"), [(20, 1), (10, 10)])
def test_a_piece_of_shards_is_for_all_threads(limits, together, each):
    limits(piece=together, each=each)
    rows = rows_of([9, 3, 14, 1, 7, 11])
    # 20 and more for both, of which each has half; or 10 and more for each, until the last.
    assert tokens_in(sharded(rows, 2, barrier(2))) == [[26, 19]] * 2
    assert tokens_in(divided(rows, 2)) == [[14, 8], [20, 3]]


@pytest.mark.parametrize(
    ("lengths", "edges", "heads"),
    [
        ((8, 4, 4), [0, 8, 16], False),
        ((4, 4, 8), [0, 8, 16], False),  # the longest text first
        ((11, 5, 4), [0, 11, 20], False),  # uneven by a tenth
        ((12, 4, 4), [0, 10, 20], True),
        ((7,), [0, 3, 7], True),
    ],
)
def test_texts_are_divided_only_if_whole_ones_come_out_uneven(lengths, edges, heads):
    meeting, rows = barrier(2), rows_of(lengths)
    (one,), (two,) = sharded(rows, 2, meeting)
    assert [one.shard.index, two.shard.index] == [0, 1]
    for piece in (one, two):
        assert piece.shard.edges.tolist() == edges
        assert piece.shard.heads is heads
        assert piece.shard.barrier is meeting
        assert sorted(texts_in([piece])) == [row.tolist() for row in rows]
    np.testing.assert_array_equal(one.ids, two.ids)


def test_a_single_text_is_not_copied():
    (row,) = rows_of([9])
    ((piece,),) = divided([row], 1)
    assert np.shares_memory(piece.ids, row)
    assert np.shares_memory(piece.targets, row)
    assert piece.shard is None


def test_rows_keep_the_numbers_that_they_have_in_the_batch(limits):
    limits(piece=1, each=1)
    rows = rows_of([2, 5, 1, 4])
    rows.append(rows[1])  # one text twice: each has numbers of its own
    firsts = [0, 2, 7, 8, 12]
    expected = sorted(
        (first + i, int(token))
        for row, first in zip(rows, firsts, strict=True)
        for i, token in enumerate(row[:-1])
    )
    for pieces in (*[divided(rows, n) for n in (1, 2, 3)], sharded(rows, 2, barrier(2))[:1]):
        found = [piece for own in pieces for piece in own]
        assert all(piece.row_numbers.dtype == np.int32 for piece in found)
        numbers = np.concatenate([piece.row_numbers for piece in found]).tolist()
        ids = np.concatenate([piece.ids for piece in found]).tolist()
        assert sorted(zip(numbers, ids, strict=True)) == expected


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=20)
every_batch = given(LENGTHS, st.integers(1, 6), st.integers(1, 50), st.integers(1, 50))
several = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@several
@every_batch
def test_every_text_is_one_threads(limits, lengths, n, together, each):
    limits(piece=together, each=each)
    rows = rows_of(lengths)
    work = divided(rows, n)
    assert len(work) == n
    found = [text for pieces in work for text in texts_in(pieces)]
    assert sorted(found) == [row.tolist() for row in rows]
    loads = [sum(sizes) for sizes in tokens_in(work)]
    assert max(loads) - min(loads) <= max(lengths)
    assert all(piece.shard is None for pieces in work for piece in pieces)


@several
@every_batch
def test_every_row_is_in_one_threads_shard(limits, lengths, n, together, each):
    limits(piece=together, each=each)
    rows = rows_of(lengths)
    work = sharded(rows, n, barrier(n))
    assert sorted(texts_in(work[0])) == [row.tolist() for row in rows]
    for pieces in zip(*work, strict=True):  # of all threads, the same rows
        (edges,) = {tuple(piece.shard.edges.tolist()) for piece in pieces}
        assert len({piece.ids.tobytes() for piece in pieces}) == 1
        seen = np.zeros(len(pieces[0].ids), int)
        for piece in pieces:
            seen[piece.shard.rows] += 1
            if not piece.shard.heads:  # then each has whole texts
                assert set(edges) <= set(piece.offsets.tolist())
        assert (seen == 1).all()
        shares = n * np.diff(edges) / edges[-1]
        assert shares.max() <= 1.1 or np.diff(edges).max() <= edges[-1] // n + 1
