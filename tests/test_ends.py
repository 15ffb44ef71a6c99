"""Tests of when a phase of a training ends, and of the rate until then."""

import math
import time

import numpy as np
import pytest

from rustgpt.config import UNLIMITED, TrainConfig
from rustgpt.ends import End
from rustgpt.errors import ConfigError
from rustgpt.llm import LLM
from rustgpt.trainer import Trainer
from rustgpt.training_state import TrainingState

TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]


@pytest.fixture
def model_of(letters, small):
    return lambda: LLM(small(embedding_dim=12, max_seq_len=16, seed=3), letters)


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): from now on each step takes so long, by the clock that a phase has."""
    now = [0.0]
    monkeypatch.setattr("rustgpt.phase.time.perf_counter", lambda: now[0])

    def pass_by(seconds):
        now[0] += seconds

    return pass_by


def config_of(**changes):
    settings = {"batch_size": 2, "threads": 1, "final_rate": 0.0, "schedule": "linear"}
    return TrainConfig(**settings | changes)


def train(model, texts=TEXTS, on_step=None, part=1.0, **settings):
    """Return the steps of a pre-training."""
    steps = []

    def after(step):
        steps.append(step)
        if on_step:
            on_step(step)

    trainer = Trainer(model, config_of(**settings), on_step=after)
    trainer.pretrain(texts, part)
    assert trainer.state.complete
    return steps


# What ends it


def test_without_a_limit_the_epochs_end_a_training():
    assert (TrainConfig().pretrain_epochs, TrainConfig().tune_epochs) == (20, 30)
    for limit in ("max_steps", "max_tokens", "max_time"):
        config = TrainConfig(**{limit: 5})
        assert config.pretrain_epochs == config.tune_epochs == UNLIMITED
        assert TrainConfig.from_dict(config.to_dict()) == config
        assert TrainConfig(**{limit: 5}, tune_epochs=3).tune_epochs == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pretrain_epochs": 4}, 12),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "pretrain_epochs": 2}, 6),
        ({"max_steps": 7, "pretrain_epochs": 9}, 7),
        ({"max_tokens": 10**9, "max_steps": 5}, 5),
        ({"max_steps": 1}, 1),
    ],
)
def test_what_comes_first_ends_a_training(model_of, settings, expected):
    steps = train(model_of(), **settings)
    assert [step.number for step in steps] == list(range(1, expected + 1))
    assert {step.total for step in steps} == {expected}
    assert {step.epochs for step in steps} == {math.ceil(expected / 3)}
    assert steps[0].rate == 1e-3
    assert steps[-1].rate == (0 if expected > 1 else 1e-3)


def test_the_last_epoch_may_end_in_its_midst(model_of):
    trainer = Trainer(model_of(), config_of(max_steps=7))
    epochs = trainer.pretrain(TEXTS)
    assert [(e.number, e.total, e.complete) for e in epochs] == [
        (1, 3, True), (2, 3, True), (3, 3, False),
    ]  # fmt: skip
    assert [e.complete for e in trainer.instruction_tune(TEXTS)] == [True, True, False]
    assert trainer.steps == 14


def test_a_phase_has_a_part_of_the_limits(model_of):
    assert len(train(model_of(), part=0.3, max_steps=20)) == 6
    assert End.of(TrainConfig(max_time=10, max_tokens=100), 5, 0.4) == End(5, math.inf, 40, 4)
    for wrong in (0, -1, 1.1, math.nan, "1", True, None):
        with pytest.raises(ConfigError, match="the part must be"):
            Trainer(model_of(), config_of()).pretrain(TEXTS, wrong)


@pytest.mark.parametrize("limit", [1, 30, 100, 1000])
def test_tokens_end_a_training_with_the_step_that_reads_the_last(model_of, limit):
    steps = train(model_of(), max_tokens=limit)
    read = np.cumsum([step.tokens for step in steps])
    assert read[-1] >= limit
    assert all(read[:-1] < limit)


# The rate is a function of how much is over


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.7])
def test_the_schedule_ends_when_the_time_does(model_of, clock, seconds):
    steps = train(model_of(), on_step=lambda _: clock(seconds), max_time=7)
    passed = seconds * np.arange(len(steps))  # when each step began
    assert passed[-1] + seconds == pytest.approx(7, abs=seconds / 2 + 1e-9)
    shares = 1 - np.array([step.rate for step in steps]) / 1e-3
    assert np.abs(shares - passed / 7).max() < max(0.02, 1.01 * seconds / 7)
    assert shares[-1] == pytest.approx(1, abs=0.02)
    assert all(np.diff(shares) > 0)
    assert 0 <= steps[-1].total - len(steps) <= 2


def test_a_pace_that_changes_changes_the_schedule(model_of, clock):
    steps = train(
        model_of(), on_step=lambda step: clock(0.5 if 20 < step.number < 40 else 0.02), max_time=20
    )
    shares = 1 - np.array([step.rate for step in steps]) / 1e-3
    assert all(np.diff(shares) >= 0)
    assert shares[-1] == pytest.approx(1, abs=0.02)


def test_by_the_real_clock(model_of):
    began = time.perf_counter()
    steps = train(model_of(), max_time=0.4)
    assert time.perf_counter() - began > 0.3
    assert len(steps) > 5
    assert 0 <= steps[-1].rate < 0.2 * steps[0].rate


def test_with_tokens_the_rate_goes_all_the_way(model_of):
    rates = [step.rate for step in train(model_of(), max_tokens=2000)]
    assert rates[0] == 1e-3
    assert max(rates) == 1e-3
    assert rates[-1] < 0.03e-3


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    "end", [{"max_steps": 5}, {"max_tokens": 60}, {"max_time": 1}, {"pretrain_epochs": 2}]
)
@pytest.mark.parametrize("warmup", [0, 3, 5, 6, 1000])
def test_every_rate_is_defined_and_not_above_the_peak(model_of, clock, schedule, end, warmup):
    settings = {"schedule": schedule, "warmup_steps": warmup, "final_rate": 0.1}
    steps = train(model_of(), on_step=lambda _: clock(0.2), **end, **settings)
    assert all(0 < step.rate <= 1e-3 for step in steps)
    rising = [step.rate for step in steps[:warmup]]
    assert rising == [1e-3 * (n + 1) / warmup for n in range(len(rising))]


def test_batches_of_different_sizes_come_to_the_end_of_the_schedule(model_of):
    steps = train(model_of(), batch_tokens=15, pretrain_epochs=7)
    assert steps[-1].rate == 0
    assert steps[-1].epoch == steps[-1].epochs == 7
    assert steps[-1].number == steps[-1].total
    assert all(step.rate <= 1e-3 for step in steps)


@pytest.mark.parametrize(
    ("epoch", "position", "step"), [(0, 1, 1), (1, 2, 7), (2, 2, 11), (2, 3, 9)]
)
def test_epochs_of_different_lengths_come_to_the_end_together(epoch, position, step):
    """The share that is over is that of epochs which all have as many steps as the present one."""
    state = TrainingState(epochs=3, epoch=epoch, position=position, step=step)
    total = End(3).total_steps(state, 4)
    assert step / (total - 1) == pytest.approx((4 * epoch + position) / 11)


# To go on


@pytest.mark.parametrize("stop", [1, 3, 6])
@pytest.mark.parametrize("end", [{"max_steps": 7}, {"max_tokens": 150}])
def test_a_training_with_a_limit_goes_on_to_the_same_end(model_of, end, stop):
    config, whole = config_of(**end), model_of()
    Trainer(whole, config).pretrain(TEXTS)
    model = model_of()
    first = Trainer(model, config)
    first.on_step = lambda step: step.number == stop and first.stop()
    first.pretrain(TEXTS)
    state = TrainingState.from_parts(*first.state.to_parts())
    assert not state.complete
    second = Trainer(model, config, state=state)
    second.pretrain(TEXTS)
    assert second.state.complete
    assert model.parameters.tobytes() == whole.parameters.tobytes()


def test_a_training_that_time_ends_has_what_is_left_of_it(model_of, clock):
    model, config = model_of(), config_of(max_time=10)
    first = Trainer(model, config)

    def step_of_a_second(step):
        clock(1)
        if step.number == 4:
            first.stop()

    first.on_step = step_of_a_second
    first.pretrain(TEXTS)
    clock(1000)
    second, steps = Trainer(model, config, state=first.state.copy()), []
    second.on_step = lambda step: (steps.append(step), clock(1))
    second.pretrain(TEXTS)
    assert [step.number for step in steps] in (list(range(5, 11)), list(range(5, 12)))
    assert steps[-1].rate < 0.11 * 1e-3
