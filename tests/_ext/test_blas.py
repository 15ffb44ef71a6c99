"""Tests of the row-major matrix products."""

import itertools

import numpy as np
import pytest

# (m, n, k): one row, one column, one term, primes, more than any block of a BLAS.
SHAPES = [(1, 1, 1), (1, 7, 5), (7, 1, 5), (5, 7, 1), (2, 3, 4), (13, 11, 17), (130, 67, 301)]
FLAGS = list(itertools.product([False, True], repeat=2))
FACTORS = [(1.0, 0.0), (1.0, 1.0), (-0.5, 0.0), (2.0, -3.0), (0.0, 2.0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("trans_a", "trans_b"), FLAGS)
def test_matrix_product_is_numpys(kernels, arguments, dtype, close, shape, trans_a, trans_b):
    sizes = dict(zip("mnk", shape, strict=True)) | {"trans_a": trans_a, "trans_b": trans_b}
    for alpha, beta in FACTORS:
        given = arguments("matrix_product", dtype, alpha=alpha, beta=beta, **sizes)
        a, b = given["a"].astype(np.float64), given["b"].astype(np.float64)
        expected = alpha * np.einsum("ik,kj->ij", a.T if trans_a else a, b.T if trans_b else b)
        if beta:
            expected += beta * given["out"]
        kernels.matrix_product(**given)
        close(given["out"], expected)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (7, 1), (2, 3), (13, 11), (130, 301)])
@pytest.mark.parametrize("trans_a", [False, True])
def test_matrix_vector_product_is_numpys(kernels, arguments, dtype, close, m, n, trans_a):
    for alpha, beta in FACTORS:
        given = arguments(
            "matrix_vector_product", dtype, m=m, n=n, trans_a=trans_a, alpha=alpha, beta=beta
        )
        a, x = given["a"].astype(np.float64), given["x"].astype(np.float64)
        expected = alpha * np.einsum("ij,j->i", a.T if trans_a else a, x)
        if beta:
            expected += beta * given["out"]
        kernels.matrix_vector_product(**given)
        close(given["out"], expected)


def test_a_product_written_out(kernels, dtype):
    a = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    b = np.array([[1, 0], [0, 1], [2, -1]], dtype)
    out = np.zeros((2, 2), dtype)
    kernels.matrix_product(a, b, out)
    assert out.tolist() == [[7, -1], [16, -1]]
    kernels.matrix_product(a, b.T.copy(), out, False, True, 2.0, -1.0)
    assert out.tolist() == [[7, -1], [16, -1]]
    kernels.matrix_vector_product(a, np.array([1, 1, 1], dtype), out[0])
    assert out[0].tolist() == [6, 15]


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("beta", [0.0, 1.0, -2.0])
def test_a_product_of_no_terms_is_zero(kernels, dtype, m, beta):
    out = np.full((m, 3), 5.0 if beta else np.nan, dtype)
    kernels.matrix_product(np.empty((m, 0), dtype), np.empty((0, 3), dtype), out, beta=beta)
    np.testing.assert_array_equal(out, 5 * beta)
    vector = np.full(m, 5.0 if beta else np.nan, dtype)
    kernels.matrix_vector_product(np.empty((m, 0), dtype), np.empty(0, dtype), vector, beta=beta)
    np.testing.assert_array_equal(vector, 5 * beta)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_an_empty_product_is_left_alone(kernels, dtype, m, n):
    out = np.empty((m, n), dtype)
    kernels.matrix_product(np.ones((m, 2), dtype), np.ones((2, n), dtype), out)
    kernels.matrix_vector_product(np.ones((0, n), dtype), np.ones(n, dtype), np.empty(0, dtype))
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


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("argument", ["x", "out"])
@pytest.mark.parametrize("change", [-1, 1])
def test_vectors_must_fit(compiled, arguments, trans_a, argument, change):
    given = arguments("matrix_vector_product", "float32", trans_a=trans_a)
    given[argument] = np.ones(len(given[argument]) + change, np.float32)
    message = rf"matrix_vector_product: {argument} must have shape \("
    with pytest.raises(ValueError, match=message):
        compiled.matrix_vector_product(**given)


def test_sizes_beyond_32_bits_are_refused(compiled, dtype):
    long, square, none = np.empty((2**31, 0), dtype), np.empty((0, 0), dtype), np.empty(0, dtype)
    with pytest.raises(ValueError, match=r"matrix_product: out .*too large"):
        compiled.matrix_product(long, square, long)
    with pytest.raises(ValueError, match=r"matrix_vector_product: a .*too large"):
        compiled.matrix_vector_product(long, none, none)
    with pytest.raises(ValueError, match=r"linear_forward: x .*too large"):
        compiled.linear_forward(long, square, None, long)
    with pytest.raises(ValueError, match=r"attention_forward: qkv .*too large"):
        compiled.attention_forward(long, np.array([0], np.int32), 1, long, square, none)
