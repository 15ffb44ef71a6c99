"""Tests of the Adam optimizer over a model's flat buffers."""

import math

import numpy as np
import pytest

from rustgpt.optim.adam import Adam


def test_two_steps_written_out(backend, dtype):
    # beta1 = beta2 = 0.5, epsilon = 1, rate 0.1, gradients 1 and then 3.
    parameters = np.array([10.0], dtype)
    adam = Adam(parameters, beta1=0.5, beta2=0.5, epsilon=1.0)
    adam.begin_step()
    adam.update(np.array([1.0], dtype), 0.1)
    # m = 0.5, v = 0.5, and both corrected 1: 10 - 0.1 * 1 / (1 + 1)
    assert parameters[0] == pytest.approx(9.95)
    adam.begin_step()
    adam.update(np.array([3.0], dtype), 0.1)
    # m = 1.75, corrected 1.75 / 0.75; v = 4.75, corrected 4.75 / 0.75
    step = 0.1 * (1.75 / 0.75) / (math.sqrt(4.75 / 0.75) + 1)
    assert parameters[0] == pytest.approx(9.95 - step)
    assert adam.m.tolist() == [1.75]
    assert adam.v.tolist() == [4.75]
    assert adam.steps == 2


def test_weight_decay_takes_a_share_of_the_decayed_parts_alone(backend, dtype):
    parameters = np.array([10, 20, 30, 40, 50, 60], dtype)
    decayed = (slice(3, 4), slice(1, 3))  # in any order
    adam = Adam(parameters, weight_decay=0.5, decayed=decayed)
    adam.begin_step()
    adam.update(np.zeros(6, dtype), 0.1)
    assert parameters.tolist() == pytest.approx([10, 19, 28.5, 38, 50, 60])


def test_without_weight_decay_a_zero_gradient_moves_nothing(backend, dtype):
    parameters = np.array([10, 20], dtype)
    adam = Adam(parameters, decayed=(slice(0, 2),))
    adam.begin_step()
    adam.update(np.zeros(2, dtype), 0.1)
    assert parameters.tolist() == [10, 20]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_parts_together_are_the_whole(backend, rng, decay):
    start, decayed = rng.standard_normal(50), (slice(7, 20), slice(20, 31), slice(40, 50))
    whole, parts = start.copy(), start.copy()
    one = Adam(whole, weight_decay=decay, decayed=decayed)
    two = Adam(parts, weight_decay=decay, decayed=decayed)
    for _ in range(3):
        gradients = rng.standard_normal(50)
        one.begin_step()
        one.update(gradients, 0.01, 0.5)
        two.begin_step()
        for part in (slice(0, 1), slice(1, 25), slice(25, 25), slice(25, 50)):
            two.update(gradients, 0.01, 0.5, part)
    np.testing.assert_array_equal(parts, whole)
    assert (whole != start).all()


def test_the_gradient_scale_is_a_factor(backend, rng):
    gradients, parameters = rng.standard_normal(9), np.zeros((2, 9))
    for row, (factor, scale) in zip(parameters, [(0.25, 1.0), (1.0, 0.25)], strict=True):
        adam = Adam(row, epsilon=1.0)
        adam.begin_step()
        adam.update(factor * gradients, 0.1, scale)
    np.testing.assert_allclose(parameters[0], parameters[1])
    assert parameters.all()


def test_it_finds_the_bottom_of_a_bowl(backend, rng, dtype):
    bottom = rng.standard_normal(20).astype(dtype)
    parameters = np.zeros(20, dtype)
    adam = Adam(parameters)
    for _ in range(400):
        adam.begin_step()
        adam.update(2 * (parameters - bottom), 0.02)
    np.testing.assert_allclose(parameters, bottom, atol=1e-3)
