"""Tests of which texts share a row, and of what counts there."""

import numpy as np
import pytest

from rustgpt import LLM, Dataset, TrainConfig, Trainer
from rustgpt.text.joining import Joining
from rustgpt.text.rows import Row, count_targets, ids_of

END = 2


def text(*ids):
    return np.array([END, *ids, END], np.int32)


def ids(rows):
    return [ids_of(row).tolist() for row in rows]


def test_texts_follow_each_other_where_there_is_room():
    rows = [text(5), text(6, 7), text(8)]
    assert ids(Joining(1.0, END, 20)(rows, 0)) == [[END, 5, END, 6, 7, END, 8, END]]
    assert ids(Joining(1.0, END, 5)(rows, 0)) == [[END, 5, END, 6, 7, END], [END, 8, END]]
    assert ids(Joining(1.0, END, 4)(rows, 0)) == ids(rows)


def test_as_many_tokens_are_read_and_count():
    rows = [text(5, 6), Row(text(7, 8), np.array([False, True, True])), text(9)]
    (row,) = Joining(1.0, END, 20)(rows, 0)
    assert row.counted.tolist() == [True] * 3 + [False, True, True] + [True] * 2
    assert len(row) - 1 == sum(len(each) - 1 for each in rows)
    assert count_targets([row]) == count_targets(rows)


@pytest.mark.parametrize(
    ("first", "second"),
    [([END, 5, 6], [END, 7]), ([END, 5, END], [7, 8]), ([END, 5, 6], [6, 7])],
    ids=["without an end", "without a beginning", "in the midst"],
)
def test_a_part_of_a_text_stays_alone(first, second):
    rows = [np.array(first, np.int32), np.array(second, np.int32)]
    assert ids(Joining(1.0, END, 20)(rows, 0)) == [first, second]


def test_a_share_is_joined_and_the_seed_says_which():
    rows = [text(5)] * 1000
    found = Joining(0.3, END, 1000)(rows, 3, 1)
    assert 250 < 1000 - len(found) < 350
    assert ids(Joining(0.3, END, 1000)(rows, 3, 1)) == ids(found)
    assert ids(Joining(0.3, END, 1000)(rows, 3, 2)) != ids(found)
    assert ids(Joining(0.0, END, 1000)(rows, 3)) == ids(rows)


STATEMENTS = ["The sun rises. </s>"]
DIALOGUES = [f"User: {a}? Assistant: {a}. </s>" for a in "abcdefgh"]


def seen(small, monkeypatch, **settings):
    """Return the texts of each step of the tuning."""
    data, steps = Dataset(STATEMENTS, DIALOGUES), []
    model = LLM.from_dataset(data, small(max_seq_len=80, add_bos_token=True))

    def step(self, batch, rate, *_):
        steps.append([model.tokenizer.decode(ids_of(row)) for row in batch])
        return 1.0, 1.0

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", step)
    config = TrainConfig(pretrain_epochs=1, tune_epochs=2, batch_size=100, **settings)
    trainer = Trainer(model, config)
    trainer.pretrain(STATEMENTS)
    trainer.instruction_tune(DIALOGUES, statements=STATEMENTS)
    return steps[1:]


def test_a_tuning_joins_dialogues_and_learns_statements_again(small, monkeypatch):
    alone = seen(small, monkeypatch, tune_join=0, tune_replay=0)
    assert [len(step) for step in alone] == [8, 8]
    joined = seen(small, monkeypatch, tune_join=0.5, tune_replay=0)
    assert all(len(step) < 8 for step in joined)
    assert all("".join(step).count("User:") == 8 for step in joined)
    assert joined[0] != joined[1]
    replayed = seen(small, monkeypatch, tune_join=0, tune_replay=0.2)
    assert all(step.count("The sun rises.") == 2 for step in replayed)
