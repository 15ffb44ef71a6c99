"""Tests of the row-major matrix products."""

import itertools

import numpy as np
import pytest

# (m, n, k): one row, one column, one term, primes, more than any block of a BLAS. A product of one
# row is a vector with a matrix, by other functions of BLAS.
SHAPES = [
    (1, 1, 1), (1, 7, 5), (1, 13, 11), (1, 130, 301), (7, 1, 5), (5, 7, 1), (2, 3, 4), (13, 11, 17),
    (130, 67, 301),
]  # fmt: skip
FLAGS = list(itertools.product([False, True], repeat=2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
@pytest.mark.parametrize("add", [False, True])
def test_matrix_product_is_numpys(kernels, arguments, dtype, close, shape, trans_a, trans_b, add):
    sizes = dict(zip("mnk", shape, strict=True)) | {"trans_a": trans_a, "trans_b": trans_b}
    given = arguments("matrix_product", dtype, add=add, **sizes)
    a, b = given["a"].astype(np.float64), given["b"].astype(np.float64)
    expected = np.einsum("ik,kj->ij", a.T if trans_a else a, b.T if trans_b else b)
    if add:
        expected += given["out"]
    kernels.matrix_product(**given)
    close(given["out"], expected)


def test_a_product_written_out(kernels, dtype):
    a = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    b = np.array([[1, 0], [0, 1], [2, -1]], dtype)
    out = np.zeros((2, 2), dtype)
    kernels.matrix_product(a, b, out)
    assert out.tolist() == [[7, -1], [16, -1]]
    kernels.matrix_product(a, b.T.copy(), out, False, True, True)
    assert out.tolist() == [[14, -2], [32, -2]]
    kernels.matrix_product(np.array([[1, 1, 1]], dtype), a, out[:1], False, True)
    assert out[0].tolist() == [6, 15]


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("add", [False, True])
def test_a_product_of_no_terms_is_zero(kernels, dtype, m, add):
    out = np.full((m, 3), 5.0 if add else np.nan, dtype)
    kernels.matrix_product(np.empty((m, 0), dtype), np.empty((0, 3), dtype), out, add=add)
    np.testing.assert_array_equal(out, 5 if add else 0)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (1, 0), (0, 0)])
def test_an_empty_product_is_left_alone(kernels, dtype, m, n):
    out = np.empty((m, n), dtype)
    kernels.matrix_product(np.ones((m, 2), dtype), np.ones((2, n), dtype), out)
    assert out.shape == (m, n)


@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
@pytest.mark.parametrize(("argument", "axis"), [("a", 0), ("a", 1), ("b", 0), ("b", 1)])
@pytest.mark.parametrize("change", [-1, 1])
def test_factors_must_fit(compiled, arguments, trans_a, trans_b, argument, axis, change):
    given = arguments("matrix_product", "float32", trans_a=trans_a, trans_b=trans_b)
    shape = list(given[argument].shape)
    shape[axis] += change
    given[argument] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=r"matrix_product: [ab] must have shape \("):
        compiled.matrix_product(**given)
    assert np.isnan(given["out"]).all()


def test_sizes_beyond_32_bits_are_refused(compiled, dtype):
    long, square, none = np.empty((2**31, 0), dtype), np.empty((0, 0), dtype), np.empty(0, dtype)
    with pytest.raises(ValueError, match=r"matrix_product: out .*too large"):
        compiled.matrix_product(long, square, long)
    with pytest.raises(ValueError, match=r"linear_forward: x .*too large"):
        compiled.linear_forward(long, square, None, long)
    with pytest.raises(ValueError, match=r"attention_forward: qkv .*too large"):
        compiled.attention_forward(long, np.array([0], np.int32), 1, long, square, none)
