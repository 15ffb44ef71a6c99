"""Tests of the validation: what is held out, evaluated, told, and when a training ends by it."""

import math

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.llm import LLM
from rustgpt.stepper import Stepper
from rustgpt.text.rows import Row, Rows
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer
from rustgpt.training_state import TrainingState, perplexity
from rustgpt.validation import Validation, counted_bytes

pytestmark = pytest.mark.usefixtures("no_batch_is_too_small")
TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]
OTHERS = ["the rain is wet.", "cats rise."]


@pytest.fixture
def model_of(letters, small):
    def make(**changes):
        settings = {"embedding_dim": 12, "max_seq_len": 14, "seed": 3, "dtype": "float64"}
        return LLM(small(**settings | changes), letters)

    return make


def config_of(**changes):
    settings = {"batch_size": 2, "threads": 1, "pretrain_epochs": 3, "pretrain_rate": 1e-2}
    return TrainConfig(**settings | changes)


def ids_of(model, texts=OTHERS):
    return [np.array(model.tokenizer.encode(text, True), np.int32) for text in texts]


def mean_loss(model, texts=OTHERS):
    """Return the mean loss of texts, cut at the context, one piece at a time."""
    total, n = 0.0, 0
    for ids in ids_of(model, texts):
        for first in range(0, len(ids) - 1, model.max_seq_len):
            piece = ids[first : first + model.max_seq_len + 1]
            total += model.loss(piece[:-1], piece[1:], np.array([0, len(piece) - 1], np.int32))
            n += len(piece) - 1
    return total / n


# What is evaluated


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_is_the_mean_loss_of_texts_that_are_not_learned(backend, model_of, threads):
    model, seen = model_of(), []
    trainer = Trainer(
        model, config_of(threads=threads), validation=OTHERS,
        on_evaluation=lambda evaluation: seen.append((evaluation, mean_loss(model))),
    )  # fmt: skip
    epochs = trainer.pretrain(TEXTS)
    assert [evaluation.step for evaluation, _ in seen] == [3, 6, 9]
    for (evaluation, expected), epoch in zip(seen, epochs, strict=True):
        assert evaluation.loss == pytest.approx(expected, rel=1e-12)
        assert evaluation.perplexity == pytest.approx(math.exp(expected))
        n = sum(map(len, OTHERS)) - 2  # a letter is a token and a byte; the first is not predicted
        letters = sum(len(text) - 1 for text in OTHERS)
        assert evaluation.bits_per_byte == pytest.approx(expected * n / letters / math.log(2))
        assert evaluation.training_loss == epoch.loss
        assert epoch.validation is evaluation
        assert evaluation.phase == "pre-training"
    assert trainer.evaluations == [evaluation for evaluation, _ in seen]


def test_a_validation_changes_no_training(model_of):
    models = [model_of(), model_of(), model_of()]
    Trainer(models[0], config_of()).pretrain(TEXTS)
    Trainer(models[1], config_of(), validation=OTHERS).pretrain(TEXTS)
    Trainer(models[2], config_of(eval_every=2), validation=ids_of(models[2])).pretrain(TEXTS)
    assert len({model.parameters.tobytes() for model in models}) == 1


def test_a_share_of_the_texts_is_held_out(model_of):
    texts = [f"{a}{b} {b}{a}." for a in "abcd" for b in "efgh"]
    model, read = model_of(), []
    trainer = Trainer(
        model, config_of(validation_share=0.25, pretrain_rate=0.0),
        on_step=lambda step: read.append(step.tokens),
    )  # fmt: skip
    trainer.pretrain(texts)
    assert sum(read) == 3 * 12 * (len(texts[0]) - 1)
    assert not trainer.too_small_to_split
    held_out = trainer.evaluations[0].loss * 4 + trainer.epochs[0].loss * 12
    assert held_out / 16 == pytest.approx(mean_loss(model, texts), rel=1e-12)


@pytest.mark.parametrize("texts", [["no."], ["ab", "cd", "ef"]])
def test_what_is_too_small_is_learned_whole(model_of, texts):
    trainer = Trainer(model_of(), config_of(validation_share=0.1))
    trainer.pretrain(texts)
    assert trainer.too_small_to_split
    assert trainer.evaluations == []
    trainer.pretrain(TEXTS * 3)
    assert not trainer.too_small_to_split


def test_in_tuning_the_answers_alone_are_evaluated(small):
    texts = ["User: What is red? Assistant: The sun </s>", "User: Why? Assistant: Because </s>"]
    model = LLM(small(dtype="float64", max_seq_len=16), WordTokenizer.train(texts))
    losses = {}
    for loss_on in ("assistant", "all"):
        config = config_of(tune_epochs=1, tune_rate=0.0, loss_on=loss_on)
        trainer = Trainer(model, config, validation=texts)
        (epoch,) = trainer.instruction_tune(texts)
        losses[loss_on] = trainer.evaluations[0].loss
        assert trainer.evaluations[0].loss == pytest.approx(epoch.loss, rel=1e-12)
    assert losses["assistant"] != pytest.approx(losses["all"], rel=1e-3)


def test_bytes_are_those_of_the_predictions_that_count():
    text = "User: Straße? Assistant: Über die Brücke, Käthe </s>"
    tokenizer = WordTokenizer.train([text])
    ids = np.array(tokenizer.encode(text, True), np.int32)
    whole = len(text.removesuffix(" </s>").encode())
    assert counted_bytes(ids, tokenizer) == whole - len("User")
    head = len(tokenizer.encode("User: Straße? Assistant:"))
    row = Row(ids, np.arange(1, len(ids)) >= head)
    assert counted_bytes(row, tokenizer) == len(" Über die Brücke, Käthe".encode())
    row.counted[1] = True  # the name
    assert counted_bytes(row, tokenizer) == len(" Straße Über die Brücke, Käthe".encode())
    assert counted_bytes(ids[:1], tokenizer) == counted_bytes(ids[:0], tokenizer) == 0


def test_what_has_no_bytes_has_no_bits_a_byte(model_of):
    model = model_of()
    validation = Validation(Rows.of([]), model.tokenizer, 8)
    assert math.isnan(validation.bits_per_byte(1.0))
    assert perplexity(1e4) == math.inf


# When


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3, 6, 9]),
        ({"eval_every": 2}, [2, 4, 6, 8, 9]),
        ({"eval_every": 100}, [9]),
        ({"eval_every": 1, "max_steps": 4}, [1, 2, 3, 4]),
        ({"max_steps": 5}, [3, 5]),
    ],
)
def test_every_epoch_or_so_many_steps_and_at_the_end(model_of, settings, expected):
    model, calls = model_of(), []
    trainer = Trainer(
        model, config_of(**settings), validation=OTHERS,
        on_step=lambda step: calls.append(step.number),
        before_evaluation=lambda: calls.append("before"),
        on_evaluation=lambda evaluation: calls.append(evaluation),
    )  # fmt: skip
    trainer.pretrain(TEXTS)
    places = [i for i, call in enumerate(calls) if call == "before"]
    assert [calls[i - 1] for i in places] == [calls[i + 1].step for i in places] == expected


def test_the_best_is_the_lowest_of_its_phase(model_of, monkeypatch):
    losses = iter([3.0, 2.0, 2.0, 2.5, 1.0, 9.0])
    monkeypatch.setattr("rustgpt.validation.Validation.loss", lambda *_: next(losses))
    trainer = Trainer(model_of(), config_of(tune_epochs=1), validation=OTHERS)
    trainer.pretrain(TEXTS)
    trainer.config = config_of(pretrain_epochs=2)
    trainer.pretrain(TEXTS)
    assert [evaluation.best for evaluation in trainer.evaluations] == [
        True, True, False, True, True,
    ]  # fmt: skip
    assert (trainer.state.best_loss, trainer.state.best_step) == (1.0, 6)


def test_a_loss_that_is_not_finite_is_never_the_best(model_of, monkeypatch):
    losses = iter([math.nan, math.inf, 3.0])
    monkeypatch.setattr("rustgpt.validation.Validation.loss", lambda *_: next(losses))
    trainer = Trainer(model_of(), config_of(), validation=OTHERS)
    trainer.pretrain(TEXTS)
    assert [evaluation.best for evaluation in trainer.evaluations] == [False, False, True]
    assert TrainingState.from_parts(*trainer.state.to_parts()).best_loss == 3.0


def test_the_end_by_time_is_evaluated(model_of, monkeypatch):
    """Also where the time is over only after the step, as when a model is saved."""
    now = [0.0]
    monkeypatch.setattr("rustgpt.phase.time.perf_counter", lambda: now[0])
    trainer = Trainer(
        model_of(), config_of(max_time=10, pretrain_epochs=10**9), validation=OTHERS,
        on_step=lambda step: step.number == 4 and now.__setitem__(0, 11.0),
    )  # fmt: skip
    epochs = trainer.pretrain(TEXTS)
    assert [evaluation.step for evaluation in trainer.evaluations] == [3, 4]
    assert epochs[-1].validation is trainer.evaluations[-1]


@pytest.mark.parametrize(("patience", "steps"), [(0, 8), (1, 4), (2, 7), (3, 8)])
def test_a_phase_ends_when_it_gets_no_better(model_of, monkeypatch, patience, steps):
    losses = iter([5.0, 4.0, 3.0, 3.5, 2.9, 3.0, 3.0, 4.0])
    monkeypatch.setattr("rustgpt.validation.Validation.loss", lambda *_: next(losses))
    config = config_of(eval_every=1, patience=patience, max_steps=8)
    trainer = Trainer(model_of(), config, validation=OTHERS)
    epochs = trainer.pretrain(TEXTS)
    assert trainer.steps == steps
    assert trainer.state.complete
    assert not trainer.stopped
    assert epochs[-1].validation is trainer.evaluations[-1]


def test_a_stop_does_without_the_evaluation(model_of):
    trainer = Trainer(model_of(), config_of(eval_every=1), validation=OTHERS)
    trainer.on_step = lambda step: step.number == 2 and trainer.stop()
    trainer.pretrain(TEXTS)
    assert [evaluation.step for evaluation in trainer.evaluations] == [1]
    assert (trainer.state.step, trainer.state.evaluated) == (2, 1)


def test_a_stop_in_an_evaluation_ends_it(model_of, monkeypatch):
    monkeypatch.setattr("rustgpt.validation.TEXTS_AT_ONCE", 1)
    trainer = Trainer(model_of(), config_of(), validation=OTHERS * 10)
    original, calls = Stepper.evaluate, []

    def evaluate(self, rows):
        calls.append(len(rows))
        trainer.stop()
        return original(self, rows)

    monkeypatch.setattr(Stepper, "evaluate", evaluate)
    trainer.pretrain(TEXTS)
    assert calls == [1]
    assert trainer.evaluations == []


# To go on


@pytest.mark.parametrize("stop", range(1, 10))
@pytest.mark.parametrize("settings", [{}, {"eval_every": 2}, {"eval_every": 1, "patience": 2}])
def test_a_training_that_is_stopped_evaluates_as_if_it_was_not(model_of, settings, stop):
    config, whole, model = config_of(pretrain_rate=0.3, **settings), model_of(), model_of()
    expected = Trainer(whole, config, validation=OTHERS)
    expected.pretrain(TEXTS)
    first = Trainer(model, config, validation=OTHERS)
    first.on_step = lambda step: step.number == stop and first.stop()
    first.pretrain(TEXTS)
    state = TrainingState.from_parts(*first.state.to_parts())
    second = Trainer(model, config, state=state, validation=OTHERS)
    if not state.complete:
        second.pretrain(TEXTS)
    assert model.parameters.tobytes() == whole.parameters.tobytes()
    found = first.evaluations + second.evaluations
    assert [(e.step, e.loss, e.best) for e in found] == [
        (e.step, e.loss, e.best) for e in expected.evaluations
    ]
    assert second.state.to_parts()[0] == expected.state.to_parts()[0]


@pytest.mark.parametrize("stop", [1, 2])  # the last evaluation is not stopped
def test_an_epoch_whose_evaluation_was_stopped_has_it_when_the_training_goes_on(
    model_of, monkeypatch, stop
):
    whole = Trainer(model_of(), config_of(), validation=OTHERS)
    whole.pretrain(TEXTS)
    loss, calls = Validation.loss, []

    def stopped_in_it(self, stepper, stopped):
        calls.append(1)
        if len(calls) == stop:
            trainer.stop()
            return None
        return loss(self, stepper, stopped)

    monkeypatch.setattr("rustgpt.validation.Validation.loss", stopped_in_it)
    model = model_of()
    trainer = Trainer(model, config_of(), validation=OTHERS)
    trainer.pretrain(TEXTS)
    rest = Trainer(model, config_of(), state=trainer.state, validation=OTHERS)
    rest.pretrain(TEXTS)
    assert trainer.evaluations + rest.evaluations == whole.evaluations
    epochs = trainer.epochs + rest.epochs
    assert [epoch.validation for epoch in epochs] == whole.evaluations
    assert [epoch.loss for epoch in epochs] == [epoch.loss for epoch in whole.epochs]
