"""Tests of the loop that makes one token after another, with a model that counts."""

import itertools

import numpy as np
import pytest

from rustgpt.generation.decoding import generate_ids

V, END = 10, 0


class Counter:
    """After token t comes t + 1; keeps what it was asked, and checks its cache."""

    def __init__(self, max_seq_len=8, spread=0.0):
        self.max_seq_len = max_seq_len
        self.spread = spread
        self.calls = []

    def decode(self, ids, cache):
        self.calls.append((cache.lengths[0], list(ids)))
        cache.lengths[0] += len(ids)
        assert cache.lengths[0] <= cache.capacity == self.max_seq_len
        logits = np.full(V, -50.0, np.float32)
        logits[(ids[-1] + 1) % V] = 0
        return logits * (1 - self.spread)


def made_by(model, *settings):
    return generate_ids(model.decode, model.max_seq_len, *settings)


def test_tokens_follow_until_the_end():
    model = Counter()
    assert list(made_by(model, [3, 4, 5], 100, END)) == [6, 7, 8, 9]
    assert model.calls == [(0, [3, 4, 5]), (3, [6]), (4, [7]), (5, [8]), (6, [9])]


def test_no_more_than_asked_for():
    model = Counter()
    assert list(made_by(model, [1], 3, END)) == [2, 3, 4]
    assert len(model.calls) == 3  # the last token is not read again
    assert list(made_by(model, [1], 0, END)) == []
    assert len(model.calls) == 3


def test_tokens_come_one_by_one():
    model = Counter()
    tokens = made_by(model, [1], 100, END)
    assert model.calls == []
    assert next(tokens) == 2
    assert len(model.calls) == 1


def test_of_a_long_prompt_the_end_is_read():
    model, prompt = Counter(max_seq_len=4), [9, 9, 9, 1, 2, 3, 4]
    assert list(itertools.islice(made_by(model, prompt, 5, END), 1)) == [5]
    assert model.calls == [(0, [1, 2, 3, 4])]
    assert prompt == [9, 9, 9, 1, 2, 3, 4]


def test_a_full_context_drops_its_older_half():
    model = Counter(max_seq_len=4)
    assert list(made_by(model, [1, 2], 7, END)) == [3, 4, 5, 6, 7, 8, 9]
    assert model.calls == [
        (0, [1, 2]), (2, [3]), (3, [4]),  # full: 1 2 3 4
        (0, [4, 5]), (2, [6]), (3, [7]),  # full: 4 5 6 7
        (0, [7, 8]),
    ]  # fmt: skip


@pytest.mark.parametrize("max_seq_len", [2, 3, 5])
def test_a_text_may_be_many_times_the_context(max_seq_len):
    class Endless(Counter):
        def decode(self, ids, cache):
            logits = super().decode(ids, cache)
            logits[END] = -np.inf
            logits[1 if ids[-1] == V - 1 else ids[-1] + 1] = 1
            return logits

    found = list(made_by(Endless(max_seq_len), [1], 50, END))
    assert found == list(itertools.islice(itertools.cycle(range(1, V)), 1, 51))


def test_the_same_seed_gives_the_same_tokens():
    def made(seed, temperature=1.0):
        return list(made_by(Counter(spread=1.0), [1], 40, -1, temperature, seed))

    assert made(0) == made(0)
    assert len({tuple(made(seed)) for seed in range(5)}) == 5
    assert set(made(0)) <= set(range(V))
    assert made(3, temperature=0.0) == made(4, temperature=0.0)
