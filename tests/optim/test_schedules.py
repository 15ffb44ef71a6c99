"""Tests of the learning rate over a training."""

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


def test_after_the_last_step_it_stays():
    assert learning_rate(99, 5, 8.0, "cosine", 0, 0.25) == pytest.approx(2)


@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
@pytest.mark.parametrize("total", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_rate_lies_between_zero_and_the_peak(schedule, total, warmup):
    found = rates(total, schedule=schedule, warmup_steps=warmup)
    assert all(0 < rate <= 8 for rate in found)
