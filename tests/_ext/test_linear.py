"""Tests of the linear layer's kernels."""

import numpy as np
import pytest

SHAPES = [
    (1, 1, 1), (1, 5, 3), (3, 1, 5), (3, 5, 1), (7, 4, 6), (65, 13, 31), (130, 67, 201),
    # Whole tiles; every sum longer than what is copied at once; too large to be made in place.
    (48, 64, 128), (521, 263, 259), (3, 2053, 2063), (300, 30, 601), (7, 601, 607),
    # In several parts, blocks of rows and slices.
    (301, 1409, 3067),
]  # fmt: skip
# One part only, or many; and of many rows.
LONG = [(5, 61, 70_001), (2, 70_001, 61), (70_001, 3, 61)]
LONG_SUMS = 6  # what rounding costs more in a sum of 70,001 terms
NOTHING = [(0, 4, 5), (3, 0, 5), (1, 0, 5), (3, 4, 0), (2049, 0, 2053), (0, 2049, 2053)]


@pytest.mark.parametrize(("N", "A", "B"), [*SHAPES, *LONG, *NOTHING])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, A, B, transposed, bias):
    sizes = {"N": N, "A": A, "B": B, "transposed": transposed, "bias": bias}
    factor = LONG_SUMS if (N, A, B) in LONG else 1
    for kernel in ("linear_forward", "linear_backward"):
        agrees(compiled, kernel, arguments(kernel, dtype, **sizes), factor)


@pytest.mark.parametrize(("N", "A", "B"), [(1, 1, 1), (3, 4, 5), (1, 3, 2)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_finite_differences(
    kernels, rng, same_gradient, N, A, B, transposed, with_bias
):
    x, weight = rng.standard_normal((N, A)), rng.standard_normal((A, B))
    if transposed:
        weight = weight.T.copy()
    bias = rng.standard_normal(B) if with_bias else None
    dout, out = rng.standard_normal((N, B)), np.empty((N, B))

    def objective():
        kernels.linear_forward(x, weight, bias, out, transposed)
        return (out * dout).sum()

    dx, dweight = np.full_like(x, np.nan), np.zeros_like(weight)
    dbias = np.zeros(B) if with_bias else None
    kernels.linear_backward(dout, x, weight, dx, dweight, dbias, transposed)
    same_gradient(dx, objective, x)
    same_gradient(dweight, objective, weight)
    if with_bias:
        same_gradient(dbias, objective, bias)


def test_forward_and_backward_written_out(kernels, dtype):
    x, weight = np.array([[1, 2], [3, 4]], dtype), np.array([[1, 0, 2], [0, 1, -1]], dtype)
    bias, out = np.array([10, 20, 30], dtype), np.empty((2, 3), dtype)
    kernels.linear_forward(x, weight, bias, out)
    assert out.tolist() == [[11, 22, 30], [13, 24, 32]]
    dout = np.array([[1, 0, 0], [0, 1, 1]], dtype)
    dx, dweight, dbias = np.empty_like(x), np.zeros_like(weight), np.zeros_like(bias)
    kernels.linear_backward(dout, x, weight, dx, dweight, dbias)
    assert dx.tolist() == [[1, 0], [2, 0]]
    assert dweight.tolist() == [[1, 3, 3], [2, 4, 4]]
    assert dbias.tolist() == [1, 1, 1]


def test_transposed_means_that_the_weight_is_stored_by_outputs(kernels, arguments, dtype, close):
    given = arguments("linear_forward", dtype)
    kernels.linear_forward(**given)
    turned = given | {"weight": given["weight"].T.copy(), "transposed": True}
    turned["out"] = np.full_like(given["out"], np.nan)
    kernels.linear_forward(**turned)
    close(turned["out"], given["out"])


def test_backward_twice_adds_to_parameters_and_overwrites_the_input(
    kernels, arguments, dtype, close
):
    given = arguments("linear_backward", dtype)
    given["dweight"][...] = given["dbias"][...] = 0
    kernels.linear_backward(**given)
    once = {name: given[name].copy() for name in ("dx", "dweight", "dbias")}
    kernels.linear_backward(**given)
    close(given["dx"], once["dx"])
    close(given["dweight"], 2 * once["dweight"])
    close(given["dbias"], 2 * once["dbias"])


def test_without_dx_the_parameters_get_the_same_gradient(kernels, arguments, dtype):
    with_dx, without = arguments("linear_backward", dtype), arguments("linear_backward", dtype)
    without["dx"] = None
    kernels.linear_backward(**with_dx)
    kernels.linear_backward(**without)
    np.testing.assert_array_equal(without["dweight"], with_dx["dweight"])
    np.testing.assert_array_equal(without["dbias"], with_dx["dbias"])


def test_rows_do_not_see_each_other(kernels, arguments, dtype):
    given = arguments("linear_forward", dtype, N=9, A=5, B=7)
    kernels.linear_forward(**given)
    before = given["out"].copy()
    given["x"][4] += 1
    kernels.linear_forward(**given)
    same = (given["out"] == before).all(axis=1)
    assert same.tolist() == [n != 4 for n in range(9)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "argument"),
    [("linear_forward", "weight"), ("linear_backward", "weight"), ("linear_backward", "dweight")],
)
def test_weights_must_fit(compiled, arguments, transposed, axis, kernel, argument):
    for change in (-1, 1):
        given = arguments(kernel, "float32", transposed=transposed)
        shape = list(given[argument].shape)
        shape[axis] += change
        given[argument] = np.ones(shape, np.float32)
        with pytest.raises(ValueError, match=rf"{kernel}: {argument} must have shape \("):
            getattr(compiled, kernel)(**given)
