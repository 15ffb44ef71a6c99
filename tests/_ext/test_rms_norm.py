"""Tests of RMS normalisation, whose kernels are beside those of layer norm."""

import numpy as np
import pytest

SHAPES = [(1, 1), (5, 1), (1, 2), (1, 8), (5, 3), (7, 13), (64, 65), (3, 257), (0, 4)]


@pytest.mark.parametrize(("N", "C"), SHAPES)
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, C):
    agrees(compiled, "rms_norm_forward", arguments("rms_norm_forward", dtype, N=N, C=C))
    if C > 1:  # of a single number it is all but its sign: but for epsilon dx is 0
        agrees(compiled, "rms_norm_backward", arguments("rms_norm_backward", dtype, N=N, C=C))


@pytest.mark.parametrize(("N", "C"), [(1, 1), (3, 2), (4, 7)])
@pytest.mark.parametrize(("epsilon", "spread"), [(1e-5, 1.0), (0.5, 1.0), (1e-3, 0.05)])
def test_gradients_are_those_of_finite_differences(
    kernels, rng, same_gradient, N, C, epsilon, spread
):
    x, weight = spread * rng.standard_normal((N, C)) + 0.3, rng.standard_normal(C)
    dout, out, rstd = rng.standard_normal((N, C)), np.empty((N, C)), np.empty(N)

    def objective():
        kernels.rms_norm_forward(x, weight, epsilon, out, rstd)
        return (out * dout).sum()

    objective()
    dx, dweight = np.full_like(x, np.nan), np.zeros(C)
    kernels.rms_norm_backward(dout, x, weight, rstd.copy(), dx, dweight)
    if C > 1:  # the finite differences of a constant are all rounding times 1 / std
        same_gradient(dx, objective, x)
    same_gradient(dweight, objective, weight)


def test_forward_written_out(kernels, dtype):
    x, weight = np.array([[1, 3, 5, 1]], dtype), np.array([1, 1, 2, -1], dtype)
    out, rstd = np.empty_like(x), np.empty(1, dtype)
    kernels.rms_norm_forward(x, weight, 7.0, out, rstd)  # the mean of the squares is 9
    assert rstd.tolist() == pytest.approx([1 / 4])
    assert out[0].tolist() == pytest.approx([0.25, 0.75, 2.5, -0.25])


def test_backward_written_out(kernels, dtype):
    x, dout = np.array([[1, 3, 5, 1]], dtype), np.array([[8, 0, 0, 0]], dtype)
    dx, dweight = np.empty_like(x), np.ones(4, dtype)
    rstd, weight = np.array([1 / 4], dtype), np.full(4, 2, dtype)
    kernels.rms_norm_backward(dout, x, weight, rstd, dx, dweight)
    # z = (1, 3, 5, 1) / 4; dz = (16, 0, 0, 0); mean(dz z) = 1; dx = (dz - z) / 4
    assert dx[0].tolist() == pytest.approx([63 / 16, -3 / 16, -5 / 16, -1 / 16])
    assert dweight.tolist() == pytest.approx([1 + 2, 1, 1, 1])


def test_rows_come_out_with_mean_square_one(kernels, rng, close, dtype):
    x = (3 * rng.standard_normal((11, 301)) - 7).astype(dtype)
    out, rstd = np.empty_like(x), np.empty(11, dtype)
    kernels.rms_norm_forward(x, np.ones(301, dtype), 0.0, out, rstd)
    close(np.square(out, dtype=np.float64).mean(axis=1).astype(dtype), np.ones(11))


def test_backward_twice_adds_to_the_weight_and_overwrites_the_input(
    kernels, arguments, dtype, close
):
    given = arguments("rms_norm_backward", dtype, N=5, C=6)
    given["dweight"][...] = 0
    kernels.rms_norm_backward(**given)
    once = {name: given[name].copy() for name in ("dx", "dweight")}
    kernels.rms_norm_backward(**given)
    close(given["dx"], once["dx"])
    close(given["dweight"], 2 * once["dweight"])


def test_the_gradient_may_replace_the_one_it_came_from(compiled, arguments, dtype):
    given = arguments("rms_norm_backward", dtype, N=5, C=33)
    shared = given | {"dx": given["dout"].copy(), "dweight": given["dweight"].copy()}
    shared["dout"] = shared["dx"]
    compiled.rms_norm_backward(**given)
    compiled.rms_norm_backward(**shared)
    np.testing.assert_array_equal(shared["dx"], given["dx"])
    np.testing.assert_array_equal(shared["dweight"], given["dweight"])


def test_a_gradient_has_no_part_along_a_stretch(kernels, arguments, close, dtype):
    given = arguments("rms_norm_backward", dtype, N=5, C=33)
    x = given["x"].astype(np.float64)
    given["rstd"] = ((x * x).mean(axis=1) ** -0.5).astype(dtype)  # no epsilon
    kernels.rms_norm_backward(**given)
    terms = given["dx"].astype(np.float64) * x
    close(terms.sum(axis=1).astype(dtype), np.zeros(5), scale=np.abs(terms).sum())


def test_a_row_of_zeros_gives_zeros(kernels, dtype):
    x, out, rstd = np.zeros((2, 5), dtype), np.empty((2, 5), dtype), np.empty(2, dtype)
    kernels.rms_norm_forward(x, np.ones(5, dtype), 1e-5, out, rstd)
    assert not out.any()
    assert rstd.tolist() == pytest.approx([1e-5**-0.5] * 2)


def test_squares_beyond_float32_do_not_overflow(compiled, dtype):
    x = np.array([[1e20, -1e20, 1e20, -1e20]], dtype)
    out, rstd = np.empty_like(x), np.empty(1, dtype)
    compiled.rms_norm_forward(x, np.ones(4, dtype), 1e-5, out, rstd)
    assert out[0].tolist() == pytest.approx([1, -1, 1, -1])
    assert rstd.tolist() == pytest.approx([1e-20])


def test_nan_stays_in_its_row(kernels, arguments, dtype):
    given = arguments("rms_norm_forward", dtype, N=4, C=5)
    given["x"][2, 3] = np.nan
    kernels.rms_norm_forward(**given)
    assert np.isnan(given["out"]).all(axis=1).tolist() == [False, False, True, False]
    assert np.isfinite(given["out"][[0, 1, 3]]).all()
