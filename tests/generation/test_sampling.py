"""Tests of the choice of the next token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, RustGPTError
from rustgpt.generation.sampling import Sampler, likeliest, log_softmax
from rustgpt.generation.sampling_config import SamplingConfig

END = 0


def sample(logits, temperature, rng):
    sampler = Sampler(SamplingConfig(temperature=temperature), (END,), len(logits))
    sampler._rng = rng
    return sampler.choose([], logits)


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


# Whatever is set


NUMBERS = [0.0, -0.0, 1.0, -1.0, 3.3e38, -3.3e38, 1e-45, 50.0, -np.inf]


def any_settings(rng, size):
    """Return settings at random, at and near their limits; now and then the plain ones."""
    if rng.random() < 0.1:
        return SamplingConfig()

    def one(*values):
        return values[rng.integers(len(values))]

    biased = rng.integers(0, size, rng.integers(0, 4)).tolist()
    return SamplingConfig(
        temperature=one(0, 5e-324, 1e-30, 1e-3, 0.7, 1.0, 2.0, 1e9, 1e308),
        top_k=one(0, 0, 1, 2, size, size + 1, 2**31 - 1),
        top_p=one(0, 1e-300, 1e-8, 0.5, 0.9, 1 - 1e-16, 1),
        min_p=one(0, 1e-300, 0.1, 1 - 1e-16, 1),
        repetition_penalty=one(1, 1e-3, 0.5, 1.2, 1e3),
        presence_penalty=one(0, 0, -1e3, 0.5, 1e3),
        frequency_penalty=one(0, 0, -1e3, 0.5, 1e3),
        no_repeat_ngram=one(0, 0, 1, 2, 3, 2**31 - 1),
        logit_bias={i: one(-np.inf, -100, 0, 5.5, 1e6, -1e308) for i in biased},
        logprobs=one(None, 0, 1, 1000),
        seed=one(0, 1, 2**63 - 1),
    )


def any_logits(rng, size):
    if rng.random() < 0.5:
        return (rng.standard_normal(size) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
    return rng.choice(NUMBERS, size).astype(np.float32)


@pytest.mark.slow
def test_ten_thousand_cases_stay_in_the_vocabulary():
    """Whatever the scores and the settings are; and scores without a finite one are an error."""
    rng = np.random.default_rng(20)
    refused = 0
    for _ in range(10_000):
        size = int(rng.integers(1, 40))
        config, logits = any_settings(rng, size), any_logits(rng, size)
        history = rng.integers(0, size, rng.integers(0, 12)).tolist()
        before = logits.copy()
        sampler = Sampler(config, (END,), size, sample=int(rng.integers(3)))
        if not np.isfinite(logits).any():
            refused += 1
            with pytest.raises(RustGPTError, match="not finite"):
                sampler.choose(history, logits)
            continue
        token = sampler.choose(history, logits)
        assert type(token) is int
        assert 0 <= token < size
        assert logits[token] > -np.inf or token == END
        logprobs = log_softmax(logits)
        assert len(likeliest(logprobs, 5)) == min(5, size)
        assert logprobs.max() <= 0
        np.testing.assert_array_equal(logits, before)
    assert 0 < refused < 500


def test_where_all_is_ruled_out_the_text_ends():
    logits = np.array([-np.inf, 1.0, 2.0], np.float32)
    config = SamplingConfig(logit_bias={1: -math.inf, 2: -math.inf})
    assert Sampler(config, (END,), 3).choose([], logits) == END
    assert Sampler(SamplingConfig(no_repeat_ngram=1), (END,), 3).choose([1, 2], logits) == END


def test_temperature_zero_is_greedy_whatever_narrows(rng):
    for _ in range(50):
        logits = rng.standard_normal(30).astype(np.float32)
        config = SamplingConfig(top_k=3, top_p=0.5, min_p=0.1, seed=4)
        assert Sampler(config, (END,), 30).choose([], logits) == logits.argmax()


def test_a_sample_has_draws_of_its_own_that_its_seed_decides():
    logits = np.zeros(1000, np.float32)

    def drawn(seed, sample):
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed), (END,), 1000, sample)
        return tuple(sampler.choose([], logits) for _ in range(4))

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 2) == drawn(1, 2)
    assert len({drawn(seed, sample) for seed in range(4) for sample in range(4)}) == 16


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda s: None, "must return scores of the shape"),
        (lambda s: s[:-1], "must return scores of the shape"),
        (lambda s: s * np.nan, "finite, or -inf"),
        (lambda s: s + np.inf, "finite, or -inf"),
    ],
)
def test_a_processor_that_returns_no_scores_is_an_error(returned, words):
    config = SamplingConfig(processors=[lambda history, scores: returned(scores)])
    with pytest.raises(ConfigError, match=words):
        Sampler(config, (END,), 3).choose([], np.ones(3, np.float32))


def test_a_processor_of_ones_own_decides(rng):
    def only_even(history, scores):
        assert history == [4, 5]
        return np.where(np.arange(len(scores)) % 2, -np.inf, scores)

    logits = np.arange(10, dtype=np.float32)
    for t in (0.0, 1.0):
        config = SamplingConfig(temperature=t, processors=[only_even])
        assert Sampler(config, (END,), 10).choose([4, 5], logits) % 2 == 0


def test_the_likeliest_come_in_their_order():
    logprobs = log_softmax(np.log([0.1, 0.4, 0.1, 0.4]))
    found = likeliest(logprobs, 3)
    assert [token for token, _ in found] == [1, 3, 0]
    np.testing.assert_allclose(np.exp([value for _, value in found]), [0.4, 0.4, 0.1])
    assert likeliest(logprobs, 0) == ()
    assert len(likeliest(logprobs, 9)) == 4
