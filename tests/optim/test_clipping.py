"""Tests of gradient clipping by the global norm."""

import math

import pytest

from rustgpt.optim.clipping import clip_factor


@pytest.mark.parametrize(
    ("squares", "max_norm", "norm", "factor"),
    [
        (25.0, 10.0, 5.0, 1.0),
        (25.0, 5.0, 5.0, 1.0),
        (25.0, 2.5, 5.0, 0.5),
        (1e40, 1.0, 1e20, 1e-20),
        (0.0, 1.0, 0.0, 1.0),
        (25.0, math.inf, 5.0, 1.0),
    ],
)
def test_norm_and_factor(squares, max_norm, norm, factor):
    assert clip_factor(squares, max_norm) == pytest.approx((norm, factor))


@pytest.mark.parametrize("squares", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_given_back(squares):
    norm, _ = clip_factor(squares, 5.0)
    assert not math.isfinite(norm)
