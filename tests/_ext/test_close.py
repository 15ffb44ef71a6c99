"""Tests of how the tests compare arrays: what is too far off is found, whatever the scale."""

import numpy as np
import pytest

SCALES = [1e-12, 1e-3, 1.0, 1e6]


@pytest.fixture
def gradient(rng, dtype):
    """Numbers of different sizes, as a gradient has."""
    return rng.standard_normal((20, 30)).astype(dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_one_number_that_is_a_hundredth_off_is_found(gradient, close, scale):
    expected = (scale * gradient).astype(gradient.dtype)
    at = np.unravel_index(np.argsort(np.abs(expected), axis=None), expected.shape)
    for place in zip(*(side[::50] for side in at), strict=True):  # small numbers and large ones
        found = expected.copy()
        found[place] *= 1.01
        if abs(expected[place]) > 1e-3 * np.abs(expected).max():
            with pytest.raises(AssertionError, match="off by"):
                close(found, expected)


@pytest.mark.parametrize("scale", SCALES)
def test_rounding_is_allowed(gradient, close, scale):
    found = (scale * gradient).astype(gradient.dtype)
    close(found, found.astype(np.float64))
    close(np.nextafter(found, np.inf), found)


def test_a_wrong_factor_is_found(gradient, close):
    found = 1e-3 * gradient
    for wrong in (1.001 * found, np.zeros_like(found), -found, 1e3 * found):
        with pytest.raises(AssertionError, match="off by"):
            close(wrong, found)


def test_where_nothing_is_expected_nothing_may_be(gradient, close):
    close(np.zeros_like(gradient), np.zeros(gradient.shape))
    tiny = np.full_like(gradient, np.finfo(gradient.dtype).tiny)
    with pytest.raises(AssertionError, match="off by"):
        close(tiny, np.zeros(gradient.shape))
    close(tiny, np.zeros(gradient.shape), scale=1)  # of terms that cancel


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(gradient, close, wrong):
    found = gradient.copy()
    found[3, 4] = wrong
    with pytest.raises(AssertionError, match="not finite"):
        close(found, gradient)
    with pytest.raises(AssertionError, match="not finite"):
        close(gradient, found)


def test_another_shape_is_found(gradient, close):
    with pytest.raises(AssertionError):
        close(gradient, gradient[:1])
    with pytest.raises(AssertionError):
        close(gradient[0], gradient[0, :1])
