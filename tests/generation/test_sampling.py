"""Tests of the choice of the next token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, RustGPTError
from rustgpt.generation.sampling import check_sampling, sample


class Always:
    """A source of the same number each time."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


LARGEST_RANDOM = 1 - 2**-53


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-30, 5e-324])
def test_without_temperature_the_likeliest_is_taken(rng, dtype, temperature):
    logits = np.array([-3, 5, 2, 4.99, -np.inf], dtype)
    assert {sample(logits, temperature, rng) for _ in range(50)} == {1}


def test_of_equals_zero_temperature_takes_the_first(rng):
    assert sample(np.array([1.0, 7.0, 7.0]), 0.0, rng) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_softmax_says(rng, dtype, temperature):
    logits = np.log([0.5, 0.3, 0.15, 0.05]).astype(dtype)
    weights = np.array([0.5, 0.3, 0.15, 0.05]) ** (1 / temperature)
    n = 20_000
    counts = np.bincount([sample(logits, temperature, rng) for _ in range(n)], minlength=4)
    p = weights / weights.sum()
    assert (np.abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()


def test_a_high_temperature_makes_all_alike(rng):
    logits = np.array([10.0, 0.0, -10.0, 5.0])
    counts = np.bincount([sample(logits, 1e9, rng) for _ in range(8_000)], minlength=4)
    assert (np.abs(counts - 2_000) < 4.5 * math.sqrt(1_500)).all()


@pytest.mark.parametrize("number", [0.0, 0.25, 0.5, LARGEST_RANDOM])
def test_an_impossible_token_is_never_drawn(number):
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf, -np.inf])
    assert sample(logits, 1.0, Always(number)) == (1 if number < 0.5 else 3)


def test_a_shift_of_all_logits_changes_nothing():
    logits = np.array([0.5, 1.5, -1.0, 0.0])
    for seed in range(50):
        tokens = {
            sample(logits + shift, 0.8, np.random.default_rng(seed)) for shift in (0.0, 2**9, -4096)
        }
        assert len(tokens) == 1


def test_logits_of_any_size_give_no_warning(rng, dtype):
    huge = 1e38 if dtype == "float32" else 1e308
    logits = np.array([huge, -huge, 0.0], dtype)
    for temperature in (1e-30, 1.0, 1e9):
        assert sample(logits, temperature, rng) == 0
    assert logits.tolist() == [np.array(huge, dtype), np.array(-huge, dtype), 0]


@given(
    st.lists(st.floats(width=32, allow_nan=False, max_value=2.0**127), min_size=1, max_size=30),
    st.floats(0, 1e300),
    st.sampled_from([0.0, 0.3, 0.7, LARGEST_RANDOM]),
)
def test_the_token_is_in_the_vocabulary(logits, temperature, number):
    logits = np.array(logits, np.float32)
    if not np.isfinite(logits).any():
        return
    token = sample(logits, temperature, Always(number))
    assert type(token) is int
    assert 0 <= token < len(logits)
    assert logits[token] > -np.inf


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "wrong", [[np.nan, 1.0], [1.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf], [np.nan, np.inf]]
)
def test_scores_that_are_not_finite_are_an_error(rng, dtype, temperature, wrong):
    with pytest.raises(RustGPTError, match="not finite"):
        sample(np.array(wrong, dtype), temperature, rng)


@pytest.mark.parametrize(
    "temperature", [-1, -1e-300, math.nan, math.inf, -math.inf, True, 10**400, "1", None]
)
def test_a_wrong_temperature_is_an_error(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        check_sampling(1, temperature, 0)


@pytest.mark.parametrize("wrong", [-1, 2.5, True, None, "3", 10**400, math.nan, np.float64(2)])
def test_whole_numbers_are_whole_and_not_negative(wrong):
    with pytest.raises(ConfigError, match="max_new_tokens must be a whole number from 0"):
        check_sampling(wrong, 0.0, 0)
    with pytest.raises(ConfigError, match="seed must be a whole number from 0"):
        check_sampling(1, 0.0, wrong)


@pytest.mark.parametrize("temperature", [0, 1, 0.0, 1e-30, 0.7, 1e9, np.float32(0.5)])
def test_right_settings_are_none(temperature):
    for n, seed in ((0, 0), (np.int64(3), np.uint8(4)), (2**31 - 1, 2**63 - 1)):
        assert check_sampling(n, temperature, seed) is None
