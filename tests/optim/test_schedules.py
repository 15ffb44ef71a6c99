"""Tests of the learning rate over a training."""

import math

import pytest

from rustgpt.optim.schedules import learning_rate


def rates(total, **settings):
    return [learning_rate(step, total, 8.0, **settings) for step in range(total)]


def test_constant():
    assert rates(4) == [8, 8, 8, 8]


def test_warmup_rises_evenly_to_the_peak():
    assert rates(6, warmup_steps=4) == [2, 4, 6, 8, 8, 8]


def test_cosine_falls_from_the_peak_to_the_final_share():
    found = rates(5, schedule="cosine", final=0.25)  # cosines 1, 0.7071, 0, -0.7071, -1
    assert found == pytest.approx([8, 7.1213203, 5, 2.8786797, 2])


def test_cosine_after_warmup():
    found = rates(7, schedule="cosine", warmup_steps=2, final=0.0)
    assert found == pytest.approx([4, 8, 8, 6.8284271, 4, 1.1715729, 0], abs=1e-7)


def test_linear_falls_evenly_to_the_final_share():
    assert rates(5, schedule="linear", final=0.5) == pytest.approx([8, 7, 6, 5, 4])
    found = rates(6, schedule="linear", warmup_steps=2, final=0.0)
    assert found == pytest.approx([4, 8, 8, 16 / 3, 8 / 3, 0])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_after_the_last_step_it_stays(schedule):
    assert learning_rate(99, 5, 8.0, schedule, 0, 0.25) == pytest.approx(2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_number_of_steps_may_be_an_estimate(schedule):
    half = learning_rate(40, 81, 8.0, schedule, 0, 0.0)
    assert half == pytest.approx(4)
    assert learning_rate(40, 80.5, 8.0, schedule, 0, 0.0) < half
    assert learning_rate(0, math.inf, 8.0, schedule, 0, 0.0) == 8
    assert learning_rate(5, 5.2, 8.0, schedule, 0, 0.0) == 0


@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
@pytest.mark.parametrize("total", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_rate_lies_between_zero_and_the_peak(schedule, total, warmup):
    found = rates(total, schedule=schedule, warmup_steps=warmup)
    assert all(0 < rate <= 8 for rate in found)
