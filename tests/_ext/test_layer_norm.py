"""Tests of layer normalisation."""

import numpy as np
import pytest

from ..kernel_arguments import copied, widened

SHAPES = [(1, 8), (5, 3), (7, 13), (64, 65), (3, 257), (0, 4)]
NARROW = [(1, 1), (5, 1), (1, 2), (5, 2)]


@pytest.mark.parametrize(("N", "C"), [*SHAPES, *NARROW])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, C):
    agrees(compiled, "layer_norm_forward", arguments("layer_norm_forward", dtype, N=N, C=C))


@pytest.mark.parametrize(("N", "C"), SHAPES)
def test_backward_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, C):
    agrees(compiled, "layer_norm_backward", arguments("layer_norm_backward", dtype, N=N, C=C))


@pytest.mark.parametrize(("N", "C"), NARROW)
def test_backward_of_narrow_rows_agrees_with_its_twin(
    compiled, reference, arguments, close, dtype, N, C
):
    given = arguments("layer_norm_backward", dtype, N=N, C=C)
    mine, wide = copied(given), widened(given)
    compiled.layer_norm_backward(**mine)
    reference.layer_norm_backward(**wide)
    # One or two numbers come out as their signs, whatever they are: but for epsilon dx is 0. It is
    # the sum of three terms, each as large as this.
    terms = (wide["rstd"][:, None] * np.abs(wide["dout"] * wide["weight"])).max()
    close(mine["dx"], wide["dx"], scale=terms)
    close(mine["dweight"], wide["dweight"])
    close(mine["dbias"], wide["dbias"])


@pytest.mark.parametrize(("N", "C"), [(1, 1), (3, 2), (4, 7)])
@pytest.mark.parametrize(("epsilon", "spread"), [(1e-5, 1.0), (0.5, 1.0), (1e-3, 0.05)])
def test_gradients_are_those_of_finite_differences(
    kernels, rng, same_gradient, N, C, epsilon, spread
):
    x = spread * rng.standard_normal((N, C)) + 0.3
    weight, bias = rng.standard_normal(C), rng.standard_normal(C)
    dout, out = rng.standard_normal((N, C)), np.empty((N, C))
    mean, rstd = np.empty(N), np.empty(N)

    def objective():
        kernels.layer_norm_forward(x, weight, bias, epsilon, out, mean, rstd)
        return (out * dout).sum()

    objective()
    dx, dweight, dbias = np.full_like(x, np.nan), np.zeros(C), np.zeros(C)
    kernels.layer_norm_backward(dout, x, weight, mean.copy(), rstd.copy(), dx, dweight, dbias)
    if C > 1:  # the finite differences of a constant are all rounding times 1 / std
        same_gradient(dx, objective, x)
    same_gradient(dweight, objective, weight)
    same_gradient(dbias, objective, bias)


def test_forward_written_out(kernels, dtype):
    x = np.array([[1, 3, 5, 7]], dtype)  # mean 5 - 1, variance (9 + 1 + 1 + 9) / 4 = 5
    weight, bias = np.array([1, 1, 2, 1], dtype), np.array([0, 10, 0, 0], dtype)
    out, mean, rstd = np.empty_like(x), np.empty(1, dtype), np.empty(1, dtype)
    kernels.layer_norm_forward(x, weight, bias, 4.0, out, mean, rstd)
    assert mean.tolist() == [4]
    assert rstd.tolist() == pytest.approx([1 / 3])  # 1 / sqrt(5 + 4)
    assert out[0].tolist() == pytest.approx([-1, 10 - 1 / 3, 2 / 3, 1])


def test_backward_written_out(kernels, dtype):
    x = np.array([[1, 3, 5, 7]], dtype)
    dout = np.array([[6, 0, 0, 0]], dtype)
    dx, dweight, dbias = np.empty_like(x), np.zeros(4, dtype), np.zeros(4, dtype)
    mean, rstd = np.array([4], dtype), np.array([1 / 3], dtype)
    kernels.layer_norm_backward(dout, x, np.ones(4, dtype), mean, rstd, dx, dweight, dbias)
    # z = (-1, -1/3, 1/3, 1); mean(dz) = 1.5; mean(dz z) = -1.5; dx = (dz - 1.5 + 1.5 z) / 3
    assert dx[0].tolist() == pytest.approx([1, -2 / 3, -1 / 3, 0], abs=1e-6)
    assert dweight.tolist() == pytest.approx([-6, 0, 0, 0])
    assert dbias.tolist() == [6, 0, 0, 0]


def test_rows_come_out_with_mean_zero_and_variance_one(kernels, rng, close, dtype):
    x = (3 * rng.standard_normal((11, 301)) - 7).astype(dtype)
    out, mean, rstd = np.empty_like(x), np.empty(11, dtype), np.empty(11, dtype)
    kernels.layer_norm_forward(x, np.ones(301, dtype), np.zeros(301, dtype), 0.0, out, mean, rstd)
    # The terms of the mean are about 1.
    close(out.mean(axis=1, dtype=np.float64).astype(dtype), np.zeros(11), scale=1)
    close(np.square(out, dtype=np.float64).mean(axis=1).astype(dtype), np.ones(11))


def test_backward_twice_adds_to_parameters_and_overwrites_the_input(
    kernels, arguments, dtype, close
):
    given = arguments("layer_norm_backward", dtype, N=5, C=6)
    given["dweight"][...] = given["dbias"][...] = 0
    kernels.layer_norm_backward(**given)
    once = {name: given[name].copy() for name in ("dx", "dweight", "dbias")}
    kernels.layer_norm_backward(**given)
    close(given["dx"], once["dx"])
    close(given["dweight"], 2 * once["dweight"])
    close(given["dbias"], 2 * once["dbias"])


def test_a_gradient_has_no_part_along_a_shift_or_a_stretch(kernels, arguments, close, dtype):
    given = arguments("layer_norm_backward", dtype, N=5, C=33)
    x = given["x"].astype(np.float64)
    given["rstd"] = (x.var(axis=1) ** -0.5).astype(dtype)  # no epsilon, which would leave a part
    kernels.layer_norm_backward(**given)
    dx, centred = given["dx"].astype(np.float64), x - x.mean(axis=1, keepdims=True)
    for along in (np.ones_like(x), centred):
        terms = dx * along
        close(terms.sum(axis=1).astype(dtype), np.zeros(5), scale=np.abs(terms).sum())


def test_equal_numbers_in_a_row_give_the_bias(kernels, dtype):
    x = np.array([[2.5] * 6, [0] * 6, [-1e6] * 6], dtype)
    weight, bias = np.full(6, 3, dtype), np.arange(6, dtype=dtype)
    out, mean, rstd = np.empty_like(x), np.empty(3, dtype), np.empty(3, dtype)
    kernels.layer_norm_forward(x, weight, bias, 1e-5, out, mean, rstd)
    np.testing.assert_array_equal(out, np.tile(bias, (3, 1)))
    assert rstd.tolist() == pytest.approx([1e-5**-0.5] * 3)


def test_squares_beyond_float32_do_not_overflow(compiled, dtype):
    x = np.array([[1e20, -1e20, 1e20, -1e20]], dtype)
    out, mean, rstd = np.empty_like(x), np.empty(1, dtype), np.empty(1, dtype)
    compiled.layer_norm_forward(x, np.ones(4, dtype), np.zeros(4, dtype), 1e-5, out, mean, rstd)
    assert out[0].tolist() == pytest.approx([1, -1, 1, -1])
    assert rstd.tolist() == pytest.approx([1e-20])


def test_nan_stays_in_its_row(kernels, arguments, dtype):
    given = arguments("layer_norm_forward", dtype, N=4, C=5)
    given["x"][2, 3] = np.nan
    kernels.layer_norm_forward(**given)
    assert np.isnan(given["out"]).all(axis=1).tolist() == [False, False, True, False]
    assert np.isfinite(given["out"][[0, 1, 3]]).all()
