"""Tests of the training loop."""

import copy
import gc
import itertools
import math
import threading
import tracemalloc

import numpy as np
import pytest

from rustgpt.backend import has_bfloat16
from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError, DataError, TokenizerError, TrainingError
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.llm import LLM
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_batch_is_too_small")
TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]
# Mean losses of the epochs of one training: `fit(model_of("float64"), 8)` with the kernels in plain
# NumPy, rounded to nine digits behind the point. `plain_losses`, which has nothing of the training
# but the layers and the order of the data, gives the same; print what it returns to make them anew.
TRAJECTORY = [
    3.793729794, 3.204621968, 2.931555698, 2.735419310,
    2.561266689, 2.334394728, 2.153657873, 2.035388233,
]  # fmt: skip


@pytest.fixture
def model_of(letters, small):
    """model_of(dtype, **changes): an untrained model of letters."""

    def make(dtype="float32", **changes):
        settings = {"embedding_dim": 12, "hidden_dim": 20, "max_seq_len": 16, "seed": 3}
        return LLM(small(dtype=dtype, **settings | changes), letters)

    return make


def config_of(**changes):
    settings = {
        "batch_size": 4, "threads": 1, "seed": 1, "schedule": "constant", "warmup_steps": 0,
        "weight_decay": 0.0, "max_grad_norm": 5.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


def fit(model, epochs=3, rate=1e-2, texts=TEXTS, on_epoch=None, **settings):
    trainer = Trainer(model, config_of(**settings), on_epoch)
    return trainer.fit(texts, epochs, rate, "test")


def rows_of(model, texts=TEXTS):
    """Return ids, targets and offsets of whole texts."""
    rows = [np.array(model.tokenizer.encode(text, True), np.int32) for text in texts]
    offsets = np.cumsum([0, *(len(row) - 1 for row in rows)], dtype=np.int32)
    ids, targets = (np.concatenate([row[part] for row in rows]) for part in (np.s_[:-1], np.s_[1:]))
    return ids, targets, offsets


# Precision


@pytest.fixture
def has_it(backend):
    if not has_bfloat16():
        pytest.skip("these kernels have no bfloat16")


@pytest.mark.slow
# With two threads and one text a step, they divide its rows.
@pytest.mark.parametrize(("threads", "batch_size"), [(1, 4), (2, 4), (2, 1)])
def test_bfloat16_learns_as_float32_does(has_it, model_of, threads, batch_size):
    models = [model_of(embedding_dim=24), model_of(embedding_dim=24)]
    losses = [
        [
            epoch.loss
            for epoch in fit(model, 30, precision=precision, threads=threads, batch_size=batch_size)
        ]
        for model, precision in zip(models, ("float32", "bfloat16"), strict=True)
    ]
    assert losses[0] != losses[1]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.01)
    assert max(losses[0][-1], losses[1][-1]) < 0.1 * losses[0][0]


def test_bfloat16_gives_the_same_bits_again(has_it, model_of):
    models = [model_of(), model_of()]
    for model in models:
        fit(model, precision="bfloat16", threads=2)
    assert models[0].parameters.tobytes() == models[1].parameters.tobytes()


def test_bfloat16_where_it_cannot_be(backend, model_of, monkeypatch):
    with pytest.raises(ConfigError, match="precision bfloat16 is for models of dtype float32"):
        Trainer(model_of("float64"), config_of(precision="bfloat16"))
    monkeypatch.setattr("rustgpt.backend.has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="precision bfloat16 needs a processor with AVX512-BF16"):
        Trainer(model_of(), config_of(precision="bfloat16"))


# The same numbers


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_seed_gives_the_same_bits(backend, model_of, threads):
    models = [model_of(), model_of()]
    losses = [[epoch.loss for epoch in fit(model, threads=threads)] for model in models]
    assert losses[0] == losses[1]
    assert models[0].parameters.tobytes() == models[1].parameters.tobytes()
    other = model_of()
    fit(other, threads=threads, seed=2)
    assert other.parameters.tobytes() != models[0].parameters.tobytes()


def test_any_number_of_threads_gives_the_same_training(model_of, close):
    models = [model_of("float64") for _ in range(4)]
    for model, threads in zip(models, (1, 2, 3, 4), strict=True):
        fit(model, epochs=1, threads=threads, batch_size=6)
    for model in models[1:]:
        close(model.parameters, models[0].parameters, 1e4)  # Adam divides by small numbers
    alone, shared = model_of(), model_of()
    for model, threads in ((alone, 1), (shared, 2)):
        loss = fit(model, threads=threads)[-1].loss
        assert loss == pytest.approx(TRAJECTORY[2], rel=1e-3)


def plain_losses(model, epochs):
    """Return the losses of TRAJECTORY: text by text, with an Adam as in the paper."""
    rows = [np.array(model.tokenizer.encode(text, True), np.int32) for text in TEXTS]
    m = v = step = 0
    losses = []
    for epoch in range(epochs):
        order, total = np.random.default_rng((1, 0, epoch)).permutation(6), 0.0
        for batch in (order[:4], order[4:]):
            loss, gradient = plain_pass(model, [rows[i] for i in batch])
            total, step = total + loss, step + 1
            gradient *= min(1, 5 / np.linalg.norm(gradient))
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            mean, square = m / (1 - 0.9**step), v / (1 - 0.999**step)
            model.parameters -= 1e-2 * mean / (np.sqrt(square) + 1e-8)
        losses.append(total / sum(len(row) - 1 for row in rows))
    return losses


def plain_pass(model, rows):
    """Return the sum of the losses and the gradient of their mean, added up text by text."""
    losses, found = [], []
    for row in rows:
        gradients, offsets = Gradients(model.layers), np.array([0, len(row) - 1], np.int32)
        gradients.begin()
        ctx = Context(offsets, "float64", gradients=gradients)
        losses.append(model.loss_and_gradients(row[:-1], row[1:], 1.0, ctx))
        gradients.finish()
        found.append(gradients.flat)
    return sum(losses), np.sum(found, axis=0) / sum(len(row) - 1 for row in rows)


def test_the_trajectory_is_that_of_a_loop_in_plain_numpy(model_of, switch_backend):
    switch_backend("reference")
    found = plain_losses(model_of("float64"), len(TRAJECTORY))
    assert found == pytest.approx(TRAJECTORY, rel=1e-8), [f"{loss:.9f}" for loss in found]


@pytest.mark.parametrize("threads", [1, 2])
def test_one_trajectory(backend, model_of, dtype, threads):
    epochs = fit(model_of(dtype), len(TRAJECTORY), threads=threads)
    tolerance = {"float32": 1e-4, "float64": 1e-8}[dtype]
    assert [epoch.loss for epoch in epochs] == pytest.approx(TRAJECTORY, rel=tolerance)


def test_the_schedule_is_followed(model_of):
    # With Adam the first step moves what has a gradient by the rate.
    for warmup, rate in ((0, 1e-2), (10, 1e-3)):
        model = model_of("float64")
        before = model.parameters.copy()
        fit(model, 1, batch_size=6, warmup_steps=warmup)
        assert np.abs(model.parameters - before).max() == pytest.approx(rate, rel=1e-4)
    model, marks = model_of("float64"), []
    fit(
        model, 5, batch_size=6, schedule="cosine", final_rate=0.0,
        on_epoch=lambda epoch: marks.append(model.parameters.copy()),
    )  # fmt: skip
    moved = [np.abs(b - a).max() for a, b in itertools.pairwise(marks)]
    assert moved[3] == 0  # the last of five steps has the rate 0
    assert moved[0] > moved[2] > 0


# What is learned


def test_one_sentence_is_learned_by_heart(backend, model_of):
    model = model_of()
    losses = [epoch.loss for epoch in fit(model, 80, 1e-2, ["the sun rises."])]
    assert losses[0] > 2.5
    assert losses[-1] < 0.05
    assert model.generate("the") == " sun rises"
    assert model.generate("the sun r") == "ises"


def test_two_phases_have_their_own_settings(model_of):
    config = config_of(pretrain_epochs=2, pretrain_rate=1e-2, tune_epochs=3, tune_rate=0.0)
    model = model_of()
    seen = []
    trainer = Trainer(model, config, seen.append)
    pretrained = trainer.pretrain(TEXTS)
    before = model.parameters.copy()
    tuned = trainer.instruction_tune(TEXTS[:2])
    np.testing.assert_array_equal(model.parameters, before)
    assert [(e.phase, e.number, e.total) for e in trainer.epochs] == [
        ("pre-training", 1, 2), ("pre-training", 2, 2),
        ("instruction tuning", 1, 3), ("instruction tuning", 2, 3), ("instruction tuning", 3, 3),
    ]  # fmt: skip
    assert trainer.epochs == [*pretrained, *tuned] == seen
    assert pretrained[0].tokens_per_second > 0
    assert pretrained[0].seconds_left > 0
    assert tuned[-1].seconds_left == 0


# The mean


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_loss_is_the_mean_over_tokens_however_they_are_batched(model_of, batch_size, threads):
    model = model_of("float64")
    ids, targets, offsets = rows_of(model)
    expected = model.loss(ids, targets, offsets) / len(ids)
    (epoch,) = fit(model, 1, 0.0, batch_size=batch_size, threads=threads)
    assert epoch.loss == pytest.approx(expected, rel=1e-12)


def test_every_text_is_seen_once_an_epoch_in_a_new_order(model_of, monkeypatch):
    model = model_of()
    seen, original = [], model.loss_and_gradients

    def spy(ids, *given):
        seen.append(model.tokenizer.decode(ids[:2]))
        return original(ids, *given)

    monkeypatch.setattr(model, "loss_and_gradients", spy)
    fit(model, 3, batch_size=1)
    epochs = [tuple(seen[i : i + 6]) for i in (0, 6, 12)]
    assert len(seen) == 18
    assert all(sorted(epoch) == sorted(text[:2] for text in TEXTS) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_long_texts_are_split_and_counted(model_of):
    model = model_of("float64", max_seq_len=4)
    texts = ["abcdefghijk.", "abcd.", "abcde.", "a", "."]
    trainer = Trainer(model, config_of())
    pieces = ["abcde", "efghi", "ijk.", "abcd.", "abcde", "e."]
    ids, targets, offsets = rows_of(model, pieces)
    expected = model.loss(ids, targets, offsets) / len(ids)
    (epoch,) = trainer.fit(texts, 1, 0.0, "test")
    assert epoch.loss == pytest.approx(expected, rel=1e-12)
    assert trainer.split_texts == 2
    assert trainer.skipped_texts == 2
    trainer.fit(["abc."], 1, 0.0, "test")
    assert (trainer.split_texts, trainer.skipped_texts) == (0, 0)


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["a", "", "."]])
def test_nothing_to_train_on_is_a_data_error(model_of, texts):
    with pytest.raises(DataError, match="nothing to train on"):
        fit(model_of(), texts=texts)


# When things go wrong


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_that_diverges_is_not_kept(model_of, threads):
    model, marks = model_of(), []
    with pytest.raises(TrainingError, match=r"training diverged at test, step \d+: the loss is"):
        fit(
            model, 50, 1e30, threads=threads, batch_size=6,
            on_epoch=lambda epoch: marks.append(model.parameters.copy()),
        )  # fmt: skip
    assert 1 <= len(marks) < 50
    assert np.isfinite(model.parameters).all()
    np.testing.assert_array_equal(model.parameters, marks[-1])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_damaged_parameters_stop_the_first_step(model_of, wrong):
    model = model_of()
    model.named_parameters()["layers.1.norm1.weight"][2] = wrong
    before = model.parameters.copy()
    with pytest.raises(TrainingError, match=r"step 1: .*smaller learning rate"):
        fit(model)
    np.testing.assert_array_equal(model.parameters, before)


def test_stop_ends_after_the_step_that_runs(model_of):
    model, steps, told = model_of(), [], []
    trainer = Trainer(model, config_of(batch_size=2), told.append)
    original = model.loss_and_gradients

    def spy(*args):
        steps.append(model.parameters.copy())
        if len(steps) == 4:  # the first step of the second epoch
            threading.Thread(target=trainer.stop).start()
            while not trainer.stopped:
                pass
        return original(*args)

    model.loss_and_gradients = spy
    done = trainer.fit(TEXTS, 9, 1e-2, "test")
    assert trainer.stopped
    assert [(epoch.number, epoch.complete) for epoch in done] == [(1, True), (2, False)]
    assert trainer.epochs == done
    assert told == done[:1]
    assert trainer.steps == len(steps) == 4
    assert (model.parameters != steps[-1]).any()  # that step was finished


def test_an_epoch_that_was_stopped_tells_of_what_was_seen(model_of):
    steps = []

    def stop(step):
        steps.append(step)
        if step.number == 5:  # the second of the second epoch
            trainer.stop()

    trainer = Trainer(model_of("float64"), config_of(batch_size=2), on_step=stop)
    rows = [len(text) - 1 for text in TEXTS]
    order = np.random.default_rng((1, 0, 1)).permutation(6)
    tokens = [sum(rows[i] for i in order[first : first + 2]) for first in (0, 2)]
    done = trainer.fit(TEXTS, 9, 1e-2, "test")
    last = done[-1]
    assert (last.number, last.total, last.complete) == (2, 9, False)
    assert last.loss == pytest.approx(
        (steps[3].loss * tokens[0] + steps[4].loss * tokens[1]) / sum(tokens), rel=1e-12
    )
    assert last.gradient_norm == max(steps[3].gradient_norm, steps[4].gradient_norm)
    assert last.seconds_left > 0


def test_a_stop_with_the_last_step_of_an_epoch_leaves_it_complete(model_of):
    told = []
    trainer = Trainer(
        model_of(), config_of(batch_size=2), told.append,
        on_step=lambda step: step.number == 6 and trainer.stop(),
    )  # fmt: skip
    done = trainer.fit(TEXTS, 9, 1e-2, "test")
    assert [(epoch.number, epoch.complete) for epoch in done] == [(1, True), (2, True)]
    assert told == done


def test_a_stop_holds_for_the_run_that_it_stops(model_of):
    model = model_of()
    trainer = Trainer(model, config_of(), lambda _: trainer.stop())
    assert not trainer.stopped
    assert len(trainer.fit(TEXTS, 3, 1e-2, "test")) == 1
    assert trainer.stopped
    trainer.on_epoch = None
    before = model.parameters.copy()
    assert len(trainer.fit(TEXTS, 3, 1e-2, "test")) == 3
    assert not trainer.stopped
    assert (model.parameters != before).any()
    trainer.stop()  # nothing runs that it could stop
    assert len(trainer.fit(TEXTS, 2, 1e-2, "test")) == 2


def test_a_stop_before_the_first_step(model_of, monkeypatch):
    model = model_of()
    trainer = Trainer(model, config_of())
    rows = trainer._rows

    def rows_and_a_signal(*given):
        trainer.stop()
        return rows(*given)

    monkeypatch.setattr(trainer, "_rows", rows_and_a_signal)
    before = model.parameters.copy()
    assert trainer.fit(TEXTS, 3, 1e-2, "test") == []
    assert (trainer.stopped, trainer.steps) == (True, 0)
    np.testing.assert_array_equal(model.parameters, before)


def test_each_step_is_told(model_of):
    told = []
    trainer = Trainer(model_of(), config_of(batch_size=4), on_step=told.append)
    epochs = trainer.fit(TEXTS, 3, 1e-2, "test")
    assert [(step.number, step.total) for step in told] == [(n, 6) for n in range(1, 7)]
    assert {step.phase for step in told} == {"test"}
    assert trainer.steps == 6
    for number, epoch in enumerate(epochs):
        norms = [step.gradient_norm for step in told[2 * number : 2 * number + 2]]
        assert max(norms) == epoch.gradient_norm
        losses = [step.loss for step in told[2 * number : 2 * number + 2]]
        assert min(losses) <= epoch.loss <= max(losses)
    trainer.fit(TEXTS, 1, 1e-2, "more")
    assert (told[-1].phase, told[-1].number, trainer.steps) == ("more", 2, 8)


def test_texts_may_be_token_ids(model_of):
    by_text, by_ids = model_of(), model_of()
    expected = Trainer(by_text, config_of()).fit(TEXTS, 3, 1e-2, "test")
    ids = [by_ids.tokenizer.encode(text, True) for text in TEXTS]
    for form in (ids, map(np.array, ids)):
        model = model_of()
        found = Trainer(model, config_of()).fit_ids(form, 3, 1e-2, "test")
        assert [epoch.loss for epoch in found] == [epoch.loss for epoch in expected]
        np.testing.assert_array_equal(model.parameters, by_text.parameters)
    for wrong in ([[1, 28]], [[-1, 2]], [[1.5, 2]], [5]):
        with pytest.raises(TokenizerError, match="token id"):
            Trainer(by_ids, config_of()).fit_ids(wrong, 1, 1e-2, "test")
    with pytest.raises(DataError, match="no text has two tokens"):
        Trainer(by_ids, config_of()).fit_ids([[1], []], 1, 1e-2, "test")


@pytest.mark.parametrize("texts", ["a string", b"bytes"])
def test_one_text_is_no_list_of_texts(model_of, texts):
    with pytest.raises(DataError, match="must be a list of strings, not one string"):
        Trainer(model_of(), config_of()).fit(texts, 1, 1e-2, "test")


def test_what_is_no_text_is_an_error(small):
    model = LLM(small(), WordTokenizer.train(TEXTS))
    for wrong in (None, b"bytes", 1):
        with pytest.raises(TokenizerError, match="only text can be encoded"):
            Trainer(model, config_of()).fit(["right", wrong], 1, 1e-2, "test")


@pytest.mark.parametrize(
    ("epochs", "rate", "name"),
    [(-1, 1e-2, "epochs"), (2.5, 1e-2, "epochs"), (True, 1e-2, "epochs"), (1, -1e-2, "rate"),
     (1, math.nan, "rate"), (1, math.inf, "rate"), (1, "1", "rate"), (1, True, "rate")],
)  # fmt: skip
def test_a_wrong_run_is_refused(model_of, epochs, rate, name):
    with pytest.raises(ConfigError, match=name):
        Trainer(model_of(), config_of()).fit(TEXTS, epochs, rate, "test")


def test_a_training_that_is_refused_does_not_undo_a_stop(model_of):
    def stop_and_try_again(_):
        trainer.stop()
        with pytest.raises(TrainingError, match="is being trained already"):
            trainer.fit(TEXTS, 1, 1e-2, "test")

    trainer = Trainer(model_of(), config_of(), on_step=stop_and_try_again)
    assert [epoch.complete for epoch in trainer.fit(TEXTS, 3, 1e-2, "test")] == [False]
    assert trainer.steps == 1


def test_a_training_that_cannot_begin_keeps_nobody_out(model_of, monkeypatch):
    model = model_of()
    with monkeypatch.context() as patched:
        patched.setattr("rustgpt.stepper.DataParallel.__enter__", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(model, 1)
    fit(model, 1)


def test_layers_that_were_put_in_later_are_refused(model_of):
    model = model_of()
    model.layers[1] = copy.deepcopy(model.layers[1])
    with pytest.raises(ConfigError, match=r"layers\.1\..* is not among the model's parameters"):
        fit(model, 1)


@pytest.mark.slow
def test_a_step_allocates_nothing_that_grows(model_of):
    model = model_of(embedding_dim=128, hidden_dim=128, max_seq_len=64)
    texts = [text * 8 for text in ("rain or", " shines ", "abcdef")] * 2
    smallest_activation = 3 * 48 * 128 * 4  # bytes, for the rows of one of two threads
    held = {}

    def measure(epoch):
        if epoch.number in (10, 50):
            gc.collect()
            held[epoch.number] = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        fit(model, 50, 1e-4, texts, measure, threads=2, batch_size=6)
    finally:
        tracemalloc.stop()
    (before, _), (after, peak) = held[10], held[50]
    assert after - before < smallest_activation / 2
    assert peak - before < smallest_activation


def test_any_number_of_threads_may_be_asked_for(model_of):
    assert math.isfinite(fit(model_of(), 1, threads=0)[0].loss)
    assert math.isfinite(fit(model_of(), 1, threads=16, batch_size=2)[0].loss)
