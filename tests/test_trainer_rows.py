"""Tests of trainings in which not every prediction counts, and of batches of any form."""

import copy

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.errors import DataError, TokenizerError
from rustgpt.llm import LLM
from rustgpt.stepper import Stepper
from rustgpt.text.dialogue import Dialogue
from rustgpt.text.rows import Row
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

LENGTHS = (9, 3, 14, 1, 7, 11, 5, 2)
DIALOGUES = [
    "User: What is red? Assistant: The sun at night </s>",
    "User: Why? Assistant: Because </s>",
]


@pytest.fixture(params=[(1, 10**9), (2, 10**9), (2, 0)], ids=["alone", "2 threads", "one buffer"])
def threads(request, monkeypatch):
    """How many threads, which divide small steps by texts, or by rows."""
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", request.param[1])
    return request.param[0]


@pytest.fixture
def model_of(letters, small):
    def make(**changes):
        return LLM(small(**{"dtype": "float64", "max_seq_len": 16, "seed": 3} | changes), letters)

    return make


def config_of(**changes):
    return TrainConfig(
        **{"batch_size": 8, "threads": 1, "seed": 1, "schedule": "constant"} | changes
    )


def rows_of(rng, lengths=LENGTHS, share=0.5):
    """Return rows of which some predictions count, in the second none."""
    rows = [
        Row(rng.integers(0, 28, n + 1).astype(np.int32), rng.random(n) < share) for n in lengths
    ]
    rows[1].counted[:] = False
    rows[0].counted[0] = True
    return rows


def plain_loss(model, row):
    """Return the sum of the losses that count in a row, from the logits."""
    logits = model.logits(row.ids[:-1])
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    each = -log_p[np.arange(len(row) - 1), row.ids[1:]]
    return float(each[row.counted].sum())


def gradient_of(model, rows, **settings):
    """Return the sum of the losses and the gradient of their mean."""
    with Stepper(model, config_of(**settings)) as stepper:
        loss, _ = stepper.step(rows, 0.0)
        return loss, stepper.parallel.gradients.copy()


# What counts


def test_the_loss_is_that_of_the_targets_that_count(backend, model_of, rng, threads):
    model, rows = model_of(), rows_of(rng)
    expected = sum(plain_loss(model, row) for row in rows)
    loss, _ = gradient_of(model, rows, threads=threads)
    assert loss == pytest.approx(expected, rel=1e-10)
    with Stepper(model, config_of(threads=threads)) as stepper:
        assert stepper.evaluate(rows) == pytest.approx(expected, rel=1e-10)
    steps = []
    (epoch,) = Trainer(model, config_of(threads=threads), on_step=steps.append).fit_ids(
        rows, 1, 0.0, "x"
    )
    counted = sum(row.counted.sum() for row in rows)
    assert epoch.loss == steps[0].loss == pytest.approx(expected / counted, rel=1e-10)
    assert steps[0].tokens == sum(LENGTHS)


def test_a_row_that_counts_everywhere_is_as_its_ids(model_of, rng, threads):
    rows = rows_of(rng)
    plain = [row.ids for row in rows]
    whole = [Row(ids, np.ones(len(ids) - 1, bool)) for ids in plain]
    models = [model_of(dtype="float32") for _ in range(3)]
    for model, form in zip(models, (plain, whole, map(Row, plain)), strict=True):
        Trainer(model, config_of(threads=threads)).fit_ids(form, 2, 1e-2, "x")
    assert len({model.parameters.tobytes() for model in models}) == 1


@pytest.mark.parametrize("masked", [True, False])
def test_32_texts_are_32_pieces_of_one(model_of, rng, threads, masked):
    """However long they are, and however many of their tokens count."""
    lengths = rng.integers(1, 17, 32)
    rows = rows_of(rng, lengths, 0.4)
    if not masked:
        rows = [row.ids for row in rows]
    model = model_of()
    loss, gradient = gradient_of(model, rows, threads=threads, batch_size=32)
    counted = [row.counted.sum() if masked else len(row) - 1 for row in rows]
    alone = [gradient_of(model, [row]) for row in rows]
    losses = [one for one, _ in alone]
    assert loss == pytest.approx(sum(losses), rel=1e-9)
    summed = sum(
        one * n for (_, one), n in zip(alone, counted, strict=True) if n
    ) / sum(counted)  # fmt: skip
    assert np.abs(gradient - summed).max() < 1e-9 * np.abs(gradient).max()


# A batch without a token that counts


def test_a_batch_without_a_counted_token_changes_nothing(model_of, rng, threads):
    rows = rows_of(rng)
    model = model_of()
    with Stepper(model, config_of(threads=threads, weight_decay=0.1)) as stepper:
        stepper.step(rows, 0.01)
        before, moments = model.parameters.copy(), copy.deepcopy(stepper.optimizer.state())
        assert stepper.step([rows[1]], 0.01) == (0.0, 0.0)
        np.testing.assert_array_equal(model.parameters, before)
        for name, value in stepper.optimizer.state().items():
            np.testing.assert_array_equal(value, moments[name])
        with pytest.raises(DataError, match="at least two tokens"):
            stepper.step([], 0.01)


def test_the_training_moves_on_over_such_a_batch(model_of, rng):
    rows, steps = rows_of(rng)[:2], []
    trainer = Trainer(model_of(), config_of(batch_size=1), on_step=steps.append)
    (epoch,) = trainer.fit_ids(rows, 1, 1e-2, "x")
    assert (epoch.complete, trainer.steps) == (True, 2)
    assert trainer.state.optimizer["steps"] == 1
    assert sorted(step.loss > 0 for step in steps) == [False, True]
    assert epoch.loss == max(step.loss for step in steps)


def test_texts_without_a_token_that_counts_are_an_error(model_of, rng):
    with pytest.raises(DataError, match="no text there is a token that counts in the loss"):
        Trainer(model_of(), config_of()).fit_ids(rows_of(rng)[1:2], 1, 1e-2, "x")


# Rows as they come


def test_rows_cut_at_the_context_keep_their_mask(model_of, rng):
    model = model_of(max_seq_len=4)
    row = rows_of(rng, [10, 1])[0]
    pieces = [Row(row.ids[i : i + 5], row.counted[i : i + 4]) for i in (0, 4, 8)]
    expected = sum(plain_loss(model, piece) for piece in pieces)
    trainer = Trainer(model, config_of())
    (epoch,) = trainer.fit_ids([row], 1, 0.0, "x")
    assert epoch.loss == pytest.approx(expected / row.counted.sum(), rel=1e-10)
    assert trainer.split_texts == 1


@pytest.mark.parametrize("counted", [[True], [True] * 3, [1, 1], [[True, True]], "ab"])
def test_a_mask_that_does_not_fit_is_refused(model_of, counted):
    row = Row(np.array([1, 2, 3], np.int32), np.array(counted))
    with pytest.raises(DataError, match="counted of a row of 3 ids must be 2 values of type bool"):
        Trainer(model_of(), config_of()).fit_ids([row], 1, 1e-2, "x")


def test_ids_of_a_row_are_checked(model_of):
    with pytest.raises(TokenizerError, match="token id"):
        Trainer(model_of(), config_of()).fit_ids([Row(np.array([1, 99]))], 1, 1e-2, "x")


# Instruction tuning


@pytest.fixture
def words(small):
    """words(): an untrained model of the words of the dialogues."""
    tokenizer = WordTokenizer.train(DIALOGUES)
    return lambda: LLM(small(dtype="float64", max_seq_len=16, seed=3), tokenizer)


def test_in_tuning_the_answers_alone_count(words):
    model, steps = words(), []
    settings = {"tune_epochs": 1, "tune_rate": 0.0}
    Trainer(model, config_of(**settings), on_step=steps.append).instruction_tune(DIALOGUES)
    total, n = 0.0, 0
    for text in DIALOGUES:
        ids = np.array(model.tokenizer.encode(text, True), np.int32)
        prompt = model.tokenizer.encode(text[: text.index("Assistant:") + 10])
        assert ids[: len(prompt)].tolist() == prompt
        counted = np.arange(1, len(ids)) >= len(prompt)
        total, n = total + plain_loss(model, Row(ids, counted)), n + counted.sum()
    assert steps[0].loss == pytest.approx(total / n, rel=1e-10)
    everywhere, all_steps = config_of(loss_on="all", **settings), []
    Trainer(model, everywhere, on_step=all_steps.append).instruction_tune(DIALOGUES)
    (epoch,) = Trainer(model, config_of()).fit(DIALOGUES, 1, 0.0, "x")
    assert all_steps[0].loss == pytest.approx(epoch.loss, rel=1e-12)
    assert all_steps[0].loss != pytest.approx(steps[0].loss, rel=1e-3)


def test_dialogues_and_their_texts_are_the_same(words):
    models = [words(), words()]
    forms = DIALOGUES, [Dialogue.parse(text) for text in DIALOGUES]
    for model, form in zip(models, forms, strict=True):
        Trainer(model, config_of(tune_epochs=2)).instruction_tune(form)
    assert models[0].parameters.tobytes() == models[1].parameters.tobytes()


def test_a_text_that_is_no_dialogue_is_learned_as_it_is(words):
    text = "The sun at night Because </s>"
    models = [words(), words()]
    Trainer(models[0], config_of(tune_epochs=2, tune_rate=1e-2)).instruction_tune([text])
    Trainer(models[1], config_of()).fit([text], 2, 1e-2, "x")
    assert models[0].parameters.tobytes() == models[1].parameters.tobytes()


@pytest.mark.parametrize("wrong", [None, 1, b"User: a Assistant: b"])
def test_what_is_no_dialogue_and_no_text_is_an_error(words, wrong):
    with pytest.raises(TokenizerError):
        Trainer(words(), config_of()).instruction_tune([wrong])
    with pytest.raises(DataError, match="not one string"):
        Trainer(words(), config_of()).instruction_tune(DIALOGUES[0])


# Batches of so many tokens


def test_a_batch_may_be_counted_in_tokens(model_of, rng, monkeypatch):
    seen = []

    def step(self, batch, *_):
        seen.append([len(row) - 1 for row in batch])
        return 1.0, 1.0

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", step)
    rows = [row.ids for row in rows_of(rng, rng.integers(1, 17, 50))]
    trainer = Trainer(model_of(), config_of(batch_tokens=30))
    trainer.fit_ids(rows, 2, 1e-2, "x")
    assert sorted(n for batch in seen for n in batch) == sorted(2 * [len(row) - 1 for row in rows])
    sizes = [sum(batch) for batch in seen]
    assert max(sizes) <= 30
    first = [i for i, size in enumerate(sizes) if sum(sizes[: i + 1]) <= sum(sizes) / 2]
    for i in first[:-1]:
        assert sizes[i] + seen[i + 1][0] > 30  # the next one did not fit
    seen.clear()
    Trainer(model_of(), config_of(batch_tokens=2)).fit_ids(rows, 1, 1e-2, "x")
    assert all(len(batch) == 1 or sum(batch) <= 2 for batch in seen)
    assert max(map(sum, seen)) == max(len(row) - 1 for row in rows)
