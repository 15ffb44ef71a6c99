"""Tests of rows in flat arrays: what each is, and how they are cut and counted."""

import numpy as np
import pytest

from rustgpt.text import rows as rows_module
from rustgpt.text.rows import Row, Rows, count_targets, flat_parts, ids_of, targets_of

LENGTHS = (0, 1, 2, 5, 9, 1, 14, 3, 0, 7)


def some(masked=(), lengths=LENGTHS):
    """Return rows of such lengths with random ids, of which some have a mask."""
    rng = np.random.default_rng(4)
    found = []
    for i, n in enumerate(lengths):
        ids = rng.integers(0, 50, n, dtype=np.int32)
        found.append(Row(ids, rng.random(max(0, n - 1)) < 0.5) if i in masked else ids)
    return found


def same(found, expected):
    assert [ids_of(row).tolist() for row in found] == [ids_of(row).tolist() for row in expected]
    assert [targets_of(row).tolist() for row in found] == [
        targets_of(row).tolist() for row in expected
    ]


@pytest.fixture(params=[10**6, 6, 1])
def few_at_once(request, monkeypatch):
    """All constants that bound memory, small and large."""
    monkeypatch.setattr(rows_module, "AT_ONCE", max(1, request.param // 2))
    monkeypatch.setattr(rows_module, "TOKENS_AT_ONCE", request.param)
    monkeypatch.setattr(rows_module, "LITTLE", max(1, request.param // 3))


@pytest.mark.parametrize("masked", [(), (3, 4, 6), (9,), range(10)])
def test_rows_are_those_that_came_in(few_at_once, masked):
    given = some(masked)
    rows = Rows.of(given)
    assert len(rows) == len(given)
    same(rows, given)
    same(rows[2:7:2], given[2:7:2])
    same([rows[-1]], given[-1:])
    assert rows.lengths().tolist() == [max(0, n - 1) for n in LENGTHS]
    assert rows.lengths(np.array([6, 3])).tolist() == [13, 4]
    assert rows.longest() == 14
    with pytest.raises(IndexError):
        rows[len(given)]


@pytest.mark.parametrize("masked", [(), (3, 4, 6), range(10)])
@pytest.mark.parametrize("longest", [1, 2, 4, 13, 100])
def test_what_is_cut(few_at_once, masked, longest):
    given = some(masked)
    expected = []
    for row in given:
        ids, targets = ids_of(row), targets_of(row)
        for first in range(0, len(ids) - 1, longest):
            counted = targets[first : first + longest] >= 0
            expected.append(Row(ids[first : first + longest + 1], counted))
    cut = Rows.of(given).cut(longest)
    same(cut, expected)
    assert cut.count_targets() == Rows.of(given).count_targets() == count_targets(given)
    counts = np.zeros(50, int)
    for row in given:
        for target in targets_of(row).tolist():
            counts[target] += target >= 0
    assert (
        cut.frequencies(50).tolist() == Rows.of(given).frequencies(50).tolist() == counts.tolist()
    )


def test_a_row_that_goes_on_is_joined(few_at_once):
    a, b, c, d = some((), (4, 3, 5, 2))
    mask = np.array([True, False, False, True])
    rows = Rows.of([a, Row(b, continues=True), Row(c, mask), Row(d, continues=True)])
    assert [len(row) for row in rows] == [7, 7]
    assert ids_of(rows[0]).tolist() == [*a, *b]
    assert rows[1].counted.tolist() == [*mask, True, True]


def test_no_rows(few_at_once):
    rows = Rows.of([])
    assert (len(rows), len(rows.cut(5)), rows.count_targets(), rows.longest()) == (0, 0, 0, 0)
    assert [len(part.edges) for part in flat_parts([])] == [0]


def test_further_edges_are_kept_where_it_is_said():
    kept = []

    def keep(parts):
        kept.append(np.concatenate([*parts]))
        return kept[-1]

    rows = Rows(np.arange(9, dtype=np.uint16), np.array([[0, 9]]), keep=keep)
    (first, second) = rows.cut(4).cut(4)
    assert (first.dtype, first.tolist(), second.tolist()) == (
        np.int32,
        [0, 1, 2, 3, 4],
        [4, 5, 6, 7, 8],
    )
    assert len(kept) == 2
