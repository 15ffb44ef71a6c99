"""Tests of which old texts are learned again, and when."""

from collections import Counter

import numpy as np
import pytest

from rustgpt import LLM, ConfigError, TrainConfig, Trainer
from rustgpt.replay import Replay, old_rows, some_of

OLD = ["water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]
NEW = ["the sun rises.", "snow is cold."]


@pytest.mark.parametrize(("n", "drawn"), [(1, 1), (5, 2), (5, 5), (5, 13), (477, 40)])
def test_old_rows_have_their_turn_equally_often(n, drawn):
    epochs = [old_rows(n, drawn, 3, 1, epoch).tolist() for epoch in range(3 * n)]
    assert {len(rows) for rows in epochs} == {drawn}
    counts = Counter(row for rows in epochs for row in rows)
    assert set(counts) == set(range(n))
    assert set(counts.values()) == {3 * drawn}
    assert n == 1 or epochs != [old_rows(n, drawn, 4, 1, epoch).tolist() for epoch in range(3 * n)]


@pytest.mark.parametrize(
    ("new", "share", "old"), [(10, 0.8, 40), (10, 0, 0), (1, 0.5, 1), (3, 0.1, 1)]
)
def test_a_share_of_an_epoch(new, share, old):
    assert Replay([], share).count(new) == old


@pytest.mark.parametrize("share", [1, -0.1, 1.5, float("nan"), "0.5", None, True])
def test_a_share_that_cannot_be(share):
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        Replay([], share)


def seen(letters, small, monkeypatch, replay, epochs=4):
    """Return the texts of each epoch."""
    steps = []

    def step(self, batch, rate, *_):
        steps.append([letters.decode(row) for row in batch])
        return 1.0, 1.0

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", step)
    trainer = Trainer(LLM(small(max_seq_len=20), letters), TrainConfig(batch_size=100))
    trainer.replay = replay
    trainer.fit(NEW, epochs, 1e-3, "mine")
    return steps


def test_old_texts_are_mixed_into_new_ones(letters, small, monkeypatch):
    found = seen(letters, small, monkeypatch, {"mine": Replay(OLD, 0.6)})
    old = [[text for text in epoch if text in OLD] for epoch in found]
    assert [len(epoch) for epoch in found] == [5] * 4
    assert all(set(NEW) <= set(epoch) for epoch in found)
    assert {text for epoch in old[:2] for text in epoch} == set(OLD)
    assert any(epoch[:2] != NEW for epoch in found)  # in no order of old and new


@pytest.mark.parametrize("replay", [{}, {"mine": Replay(OLD, 0)}, {"other": Replay(OLD, 0.5)},
                                    {"mine": Replay([], 0.5)}])  # fmt: skip
def test_without_a_share_there_are_new_texts_alone(letters, small, monkeypatch, replay):
    assert [sorted(epoch) for epoch in seen(letters, small, monkeypatch, replay)] == [
        sorted(NEW)
    ] * 4


def test_the_old_rows_follow_from_seed_phase_and_epoch_alone():
    found = old_rows(50, 20, 1, 0, 7)
    np.random.default_rng(0).random()
    np.testing.assert_array_equal(old_rows(50, 20, 1, 0, 7), found)
    assert (old_rows(50, 20, 1, 1, 7) != found).any()


def test_of_very_many_texts_the_beginnings_of_some_are_learned_again():
    texts = [f"{i} {'x' * 2000}" for i in range(12_000)]
    found = some_of(texts)
    assert found == [text[:1000] for text in texts[::3]]
    assert some_of(texts[:7]) == [text[:1000] for text in texts[:7]]
    assert some_of([]) == []
