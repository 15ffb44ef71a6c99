"""Tests of a training with an optimizer of one's own."""

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.llm import LLM
from rustgpt.stepper import Stepper
from rustgpt.trainer import Trainer

TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]


class Momentum:
    """Gradient descent with momentum (Polyak 1964)."""

    def __init__(self, parameters, beta=0.8):
        self.parameters, self.beta = parameters, beta
        self.velocity = np.zeros_like(parameters)
        self.steps, self.parts, self.rates = 0, [], []

    def begin_step(self):
        self.steps += 1
        self.parts.append([])

    def update(self, gradients, rate, gradient_scale, part):
        self.parts[-1].append((part.start, part.stop))
        self.rates.append(rate)
        velocity = self.velocity[part]
        velocity *= self.beta
        velocity -= rate * gradient_scale * gradients[part]
        self.parameters[part] += velocity

    def state(self):
        return {"steps": self.steps, "velocity": self.velocity}

    def take_up(self, state):
        self.steps = state["steps"]
        self.velocity[...] = state["velocity"]


@pytest.fixture
def model_of(letters, small, no_batch_is_too_small):
    """model_of(): an untrained model in float64, of which several threads take small steps."""
    return lambda: LLM(small(max_seq_len=16, dtype="float64", seed=3), letters)


@pytest.fixture
def made():
    """The optimizers that `momentum` has made."""
    return []


@pytest.fixture
def momentum(made):
    """momentum(model, config): what a trainer makes the optimizer of each phase with."""

    def make(model, config):
        assert isinstance(config, TrainConfig)
        made.append(Momentum(model.parameters))
        return made[-1]

    return make


def config_of(**changes):
    settings = {
        "batch_size": 2, "threads": 1, "schedule": "constant", "pretrain_epochs": 3,
        "pretrain_rate": 0.05, "tune_epochs": 2, "tune_rate": 0.02, "max_grad_norm": 1.0,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_phase_has_one_of_its_own(backend, model_of, made, momentum, threads):
    model = model_of()
    trainer = Trainer(model, config_of(threads=threads), optimizer=momentum)
    first = trainer.pretrain(TEXTS)
    assert len(made) == 1
    assert trainer.state.optimizer["velocity"] is made[0].velocity
    second = trainer.instruction_tune(TEXTS[:4])
    assert [optimizer.steps for optimizer in made] == [9, 4]
    assert [set(optimizer.rates) for optimizer in made] == [{0.05}, {0.02}]
    assert all(optimizer.parameters is model.parameters for optimizer in made)
    assert trainer.state.optimizer["velocity"] is made[1].velocity
    assert made[1].velocity.any()
    assert first[-1].loss < first[0].loss
    assert second[-1].loss < first[0].loss


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_step_updates_each_part_once(backend, model_of, made, momentum, threads):
    model = model_of()
    config = config_of(threads=threads, batch_size=3)
    Trainer(model, config, optimizer=momentum).pretrain(TEXTS)
    assert len(made[0].parts) == 6
    for parts in made[0].parts:
        starts, stops = zip(*sorted(parts), strict=True)
        assert len(parts) == threads
        assert (starts[0], stops[-1]) == (0, model.n_parameters)
        assert starts[1:] == stops[:-1]


def test_a_step_is_that_of_gradient_descent(backend, model_of, made, momentum):
    """With Adam it would be another: clipped to a norm of 0.1, from rest, at a rate of 0.5."""
    model, config = model_of(), config_of(max_grad_norm=0.1)
    before, optimizer = model.parameters.copy(), momentum(model, config)
    row = np.array(model.tokenizer.encode(TEXTS[0], True), np.int32)
    with Stepper(model, config, optimizer) as stepper:
        assert stepper.optimizer is optimizer
        _, norm = stepper.step([row], 0.5)
        gradients = stepper.parallel.gradients.copy()
    assert norm == pytest.approx(np.linalg.norm(gradients), rel=1e-12)
    assert norm > 0.1
    np.testing.assert_allclose(
        model.parameters, before - 0.5 * 0.1 / norm * gradients, rtol=0, atol=1e-13
    )
    assert np.linalg.norm(model.parameters - before) == pytest.approx(0.05, rel=1e-9)


def test_any_number_of_threads_makes_the_same_training(backend, model_of, momentum):
    models = [model_of() for _ in range(3)]
    for model, threads in zip(models, (1, 2, 3), strict=True):
        Trainer(model, config_of(threads=threads), optimizer=momentum).pretrain(TEXTS)
    for model in models[1:]:
        np.testing.assert_allclose(model.parameters, models[0].parameters, rtol=0, atol=1e-11)
    assert np.abs(models[0].parameters - model_of().parameters).max() > 1e-3


def test_a_state_of_its_own_goes_on(model_of, made, momentum):
    whole, cut = model_of(), model_of()
    Trainer(whole, config_of(), optimizer=momentum).pretrain(TEXTS)

    def stop(step):
        if step.number == 4:
            trainer.stop()

    trainer = Trainer(cut, config_of(), on_step=stop, optimizer=momentum)
    trainer.pretrain(TEXTS)
    state = trainer.state.copy()
    assert state.optimizer["steps"] == 4
    Trainer(cut, config_of(), optimizer=momentum, state=state).pretrain(TEXTS)
    assert [optimizer.steps for optimizer in made] == [9, 4, 9]
    np.testing.assert_array_equal(cut.parameters, whole.parameters)
    np.testing.assert_array_equal(made[2].velocity, made[0].velocity)
