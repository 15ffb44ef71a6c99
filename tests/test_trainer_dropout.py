"""Tests of a training with dropout."""

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.layers.dropout import Dropout
from rustgpt.llm import LLM
from rustgpt.trainer import Trainer

TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]


@pytest.fixture(params=["a buffer a thread", "one buffer"], autouse=True)
def shared(request, monkeypatch):
    """Let the few tokens of these texts be divided among threads, in both ways."""
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    least = 0 if request.param == "one buffer" else 10**9
    monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", least)


@pytest.fixture
def model_of(letters, small):
    """model_of(dtype): an untrained model of letters."""

    def make(dtype="float32"):
        settings = {"embedding_dim": 12, "hidden_dim": 20, "max_seq_len": 16, "seed": 3}
        return LLM(small(dtype=dtype, **settings), letters)

    return make


def fit(model, **settings):
    """Train for two epochs; return the mean loss of the last."""
    config = TrainConfig(**{"batch_size": 4, "threads": 1, "schedule": "constant"} | settings)
    return Trainer(model, config).fit(TEXTS, 2, 1e-2, "test")[-1].loss


def test_any_number_of_threads_drops_the_same(backend, model_of, close):
    models = [model_of("float64") for _ in range(4)]
    losses = [
        fit(model, threads=threads, dropout=0.3)
        for model, threads in zip(models, (1, 2, 3, 5), strict=True)
    ]
    for model, loss in zip(models[1:], losses[1:], strict=True):
        close(model.parameters, models[0].parameters, 1e4)  # Adam divides by small numbers
        assert loss == pytest.approx(losses[0], rel=1e-9)
    assert fit(model_of("float64")) != pytest.approx(losses[0], rel=1e-3)


def test_a_model_that_was_trained_with_dropout_is_used_without(backend, model_of, monkeypatch):
    model, ids = model_of(), np.array([1, 2, 3, 4], np.int32)
    fit(model, dropout=0.5)
    monkeypatch.setattr(Dropout, "key", None)  # which every mask needs
    with pytest.raises(TypeError):
        fit(model_of(), dropout=0.5)
    model.logits(ids)
    model.loss(ids[:-1], ids[1:], np.array([0, 3], np.int32))
    model.generate("ab", max_new_tokens=9)


def test_validation_has_no_dropout(backend, model_of):
    """Its loss is that of the same steps, whether or not the steps that count have dropout."""
    losses = []
    for rate in (0.5, 0.0):
        config = TrainConfig(batch_size=4, threads=2, validation_share=0.34, dropout=rate)
        trainer = Trainer(model_of(), config)
        trainer.fit(TEXTS, 2, 0.0, "test")
        losses.append([evaluation.loss for evaluation in trainer.evaluations])
    assert len(losses[0]) > 1
    assert losses[0] == losses[1]


def test_each_step_of_a_training_drops_other_numbers(model_of, monkeypatch):
    seen, original = [], LLM.loss_and_gradients

    def spy(self, ids, targets, scale, ctx):
        seen.append(ctx.dropout)
        return original(self, ids, targets, scale, ctx)

    monkeypatch.setattr(LLM, "loss_and_gradients", spy)
    trainer = Trainer(model_of(), TrainConfig(batch_size=4, threads=1, dropout=0.1, seed=7))
    trainer.fit(TEXTS, 2, 1e-3, "one")
    trainer.fit(TEXTS, 1, 1e-3, "two")
    assert seen == [Dropout(0.1, 7, step) for step in range(6)]
