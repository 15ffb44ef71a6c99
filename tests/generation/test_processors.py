"""Tests of what changes the scores: edges, and `transformers` beside it, if it is there."""

import importlib.util

import numpy as np
import pytest

from rustgpt.generation import processors
from rustgpt.generation.processors import changes_of, narrowing_of
from rustgpt.generation.sampling_config import SamplingConfig

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None,
    reason="needs transformers and PyTorch",
)


def kept(scores):
    return np.flatnonzero(scores > -np.inf).tolist()


@pytest.mark.parametrize(
    ("odds", "p", "expected"),
    [
        ([0.5, 0.41, 0.09], 1e-8, [0]),
        ([0.5, 0.41, 0.09], 0.0, [0]),
        ([0.5, 0.41, 0.09], 0.9, [0, 1]),
        ([0.3, 0.1, 0.1, 0.5], 0.8, [0, 3]),
        ([0.3, 0.1, 0.1, 0.5], 0.81, [0, 1, 3]),
        ([0.25] * 4, 0.5, [0, 1]),
        ([0.5, 0.5], 0.5, [0]),
        ([0.4, 0.3, 0.2, 0.1], 0.999, [0, 1, 2, 3]),
        ([1.0], 0.5, [0]),
    ],
)
def test_top_p(dtype, odds, p, expected):
    scores = np.log(odds).astype(dtype)
    assert kept(processors.top_p(p)([], scores)) == expected
    assert kept(processors.top_p(p)([], scores + 1000)) == expected


def test_top_k(dtype):
    scores = np.array([1, 5, 3, 5, 2], dtype)
    assert kept(processors.top_k(2)([], scores)) == [1, 3]
    assert kept(processors.top_k(1)([], scores)) == [1, 3]  # equals
    assert kept(processors.top_k(3)([], scores)) == [1, 2, 3]
    for k in (5, 6, 2**31 - 1):
        np.testing.assert_array_equal(processors.top_k(k)([], scores), scores)


def test_min_p():
    scores = np.log([0.5, 0.25, 0.2, 0.05])
    assert kept(processors.min_p(0.45)([], scores)) == [0, 1]
    assert kept(processors.min_p(1.0)([], scores)) == [0]
    assert kept(processors.min_p(1e-300)([], scores)) == [0, 1, 2, 3]


def test_a_repetition_penalty_makes_positive_and_negative_scores_smaller():
    scores = np.array([2.0, -2.0, 0.0, 4.0, -4.0, -np.inf])
    found = processors.repetition_penalty(2.0)([0, 1, 2, 5, 0], scores)
    assert found.tolist() == [1.0, -4.0, 0.0, 4.0, -4.0, -np.inf]
    assert (found <= scores).all()
    spared = processors.repetition_penalty(2.0, spared=[0])([0, 1], scores)
    assert spared.tolist() == [2.0, -4.0, 0.0, 4.0, -4.0, -np.inf]


def test_presence_counts_once_and_frequency_each_time():
    found = processors.presence_and_frequency(0.5, 0.1, spared=[3])([0, 0, 1, 3], np.zeros(4))
    np.testing.assert_allclose(found, [-0.7, -0.6, 0, 0])


def test_no_run_comes_twice():
    scores = np.zeros(6)
    ruled_out = [2]  # behind 0 1
    found = processors.no_repeat_ngram(3)([0, 1, 2, 3, 0, 1], scores)
    assert sorted({*range(6)} - {*kept(found)}) == ruled_out
    assert kept(processors.no_repeat_ngram(1)([0, 4], scores)) == [1, 2, 3, 5]
    assert kept(processors.no_repeat_ngram(1, spared=[4])([0, 4], scores)) == [1, 2, 3, 4, 5]
    for history in ([], [1], [0, 1]):
        assert kept(processors.no_repeat_ngram(3)(history, scores)) == [*range(6)]


def test_a_bias_is_added():
    found = processors.logit_bias({1: 2.5, 3: -np.inf})([], np.zeros(4))
    assert found.tolist() == [0, 2.5, 0, -np.inf]


def test_what_was_given_stays_as_it_was(rng, dtype):
    scores = rng.standard_normal(20).astype(dtype)
    before, history = scores.copy(), [3, 4, 3]
    config = SamplingConfig(
        temperature=0.5, top_k=4, top_p=0.5, min_p=0.2, repetition_penalty=2.0,
        presence_penalty=1.0, frequency_penalty=1.0, no_repeat_ngram=1, logit_bias={4: 1.0},
    )  # fmt: skip
    all_of_them = [*changes_of(config, (0,), 20), *narrowing_of(config)]
    assert len(all_of_them) == 8
    for process in all_of_them:
        assert process(history, scores) is not scores
        np.testing.assert_array_equal(scores, before)
        assert history == [3, 4, 3]


def test_what_is_not_set_does_nothing():
    assert changes_of(SamplingConfig(), (0,), 5) == []
    assert narrowing_of(SamplingConfig(top_k=3, top_p=0.5, min_p=0.1)) == []


# Beside transformers

PAIRS = {
    "TopKLogitsWarper": [(lambda k=k: processors.top_k(k), (k,)) for k in (1, 2, 7, 50)],
    "TopPLogitsWarper": [
        (lambda p=p: processors.top_p(p), (p,)) for p in (1e-8, 0.1, 0.5, 0.9, 0.999)
    ],
    "MinPLogitsWarper": [(lambda p=p: processors.min_p(p), (p,)) for p in (1e-3, 0.1, 0.5, 1.0)],
    "RepetitionPenaltyLogitsProcessor": [
        (lambda x=x: processors.repetition_penalty(x), (x,)) for x in (0.5, 1.3, 10.0)
    ],
    "NoRepeatNGramLogitsProcessor": [
        (lambda n=n: processors.no_repeat_ngram(n), (n,)) for n in (1, 2, 3, 9)
    ],
    "TemperatureLogitsWarper": [
        (lambda t=t: processors.temperature(t), (t,)) for t in (0.01, 0.7, 1.0, 5.0)
    ],
    "SequenceBiasLogitsProcessor": [
        (lambda: processors.logit_bias({3: 2.5, 1: -9.0}), ([[[3], 2.5], [[1], -9.0]],))
    ],
}


@needs_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_the_scores_are_those_of_transformers(rng, name):
    import torch
    import transformers

    for make, arguments in PAIRS[name]:
        for _ in range(200):
            theirs, ours = getattr(transformers, name)(*arguments), make()
            size = int(rng.integers(4, 60))
            scores = (rng.standard_normal(size) * 10 ** rng.uniform(-2, 1.5)).astype(np.float32)
            history = rng.integers(0, size, rng.integers(1, 20)).tolist()
            expected = theirs(torch.tensor([history]), torch.tensor(scores[None]))[0].numpy()
            found = ours(history, scores)
            if name == "TemperatureLogitsWarper":
                expected = expected - expected.max()
            assert kept(found) == kept(expected), (arguments, scores)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
