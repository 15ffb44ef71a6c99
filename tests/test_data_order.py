"""Tests of the order in which an epoch goes through its rows, and of its steps."""

import numpy as np
import pytest

from rustgpt import data_order
from rustgpt.data_order import DataOrder, steps_of_texts, steps_of_tokens
from rustgpt.replay import MixedOrder


@pytest.fixture
def small_windows(monkeypatch):
    """Blocks of 4 rows, and windows of 3 blocks."""
    monkeypatch.setattr(data_order, "BLOCK", 4)
    monkeypatch.setattr(data_order, "WINDOW", 3)


@pytest.mark.parametrize("n", [0, 1, 4, 11, 12, 13, 24, 25, 36, 37, 100, 121])
def test_an_order_in_windows_is_a_permutation(small_windows, n):
    order = DataOrder(n, 1, 0, 0)
    whole = order[:].tolist()
    assert (len(order), sorted(whole)) == (n, [*range(n)])
    for first in range(0, n, 3):
        for stop in (first, first + 1, first + 5, first + 30):
            assert DataOrder(n, 1, 0, 0)[first:stop].tolist() == whole[first:stop]


def test_a_window_has_whole_blocks_of_all_rows(small_windows):
    whole = DataOrder(120, 1, 0, 0)[:]
    windows = whole.reshape(-1, 12)
    for rows in windows:
        blocks = {*(rows // 4).tolist()}
        assert len(blocks) == 3
        assert max(blocks) - min(blocks) > 2 or len(windows) < 3
        assert rows.tolist() != sorted(rows.tolist())  # shuffled within it
    assert whole.tolist() != DataOrder(120, 1, 0, 1)[:].tolist()
    assert len({tuple(rows % 12) for rows in windows}) > 5  # no two windows alike


def test_up_to_a_window_it_is_any_order():
    n = data_order.BLOCK * data_order.WINDOW
    expected = np.random.default_rng((3, 1, 2)).permutation(n)
    assert DataOrder(n, 3, 1, 2)[:].tobytes() == expected.tobytes()


def test_an_order_of_a_billion_rows_takes_little_memory():
    order = DataOrder(10**9, 1, 0, 0)
    rows = order[999_999_000:]
    assert len({*rows.tolist()}) == 1000
    assert order._blocks.nbytes < 10**7


@pytest.mark.parametrize("n", [0, 1, 5, 40, 41])
@pytest.mark.parametrize("texts", [1, 7, 100])
def test_steps_of_so_many_texts(small_windows, n, texts):
    order = DataOrder(n, 1, 0, 0)
    steps = steps_of_texts(order, texts)
    found = [steps[i].tolist() for i in range(len(steps))]
    whole = order[:].tolist()
    assert found == [whole[i : i + texts] for i in range(0, n, texts)]


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 40, 41, 150])
@pytest.mark.parametrize("tokens", [1, 7, 20, 64, 10**6])
def test_steps_of_so_many_tokens(small_windows, n, tokens):
    lengths = np.random.default_rng(n).integers(0, 25, n)
    order = DataOrder(n, 1, 0, 0)
    steps = steps_of_tokens(order, lambda which: lengths[which], tokens)
    found = [steps[i].tolist() for i in range(len(steps))]
    expected, taken = [[]], 0
    for row in order[:].tolist():  # as many as fit, at least one
        if expected[-1] and taken + lengths[row] > tokens:
            expected.append([])
            taken = 0
        expected[-1].append(row)
        taken += lengths[row]
    assert found == [step for step in expected if step]


def test_old_rows_stand_among_new_ones():
    order = MixedOrder(DataOrder(7, 1, 0, 0), 4, np.array([9, 0, 5]))
    which = DataOrder(7, 1, 0, 0)[:].tolist()
    expected = [i if i < 4 else 4 + [9, 0, 5][i - 4] for i in which]
    assert order[:].tolist() == expected
    assert order[2:5].tolist() == expected[2:5]
    assert len(order) == 7
