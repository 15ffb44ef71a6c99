"""Tests of the products that round their factors to bfloat16."""

import inspect

import numpy as np
import pytest

from rustgpt.reference.linear import rounded

from ..kernel_arguments import KERNELS, TWINS
from ..kernel_fixtures import LEVELS

# The kernel's blocks have 192 rows, 512 numbers along k and 64 columns.
SIZES = [1, 2, 7, 31, 65]
SHAPES = [(n, a, b) for n in SIZES for a in SIZES for b in SIZES]
SHAPES += [(193, 5, 17), (401, 67, 16), (5, 193, 130), (3, 513, 15), (7, 1031, 5), (6, 3, 1031)]
EMPTY = [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)]
WITH_IT = [k for k in KERNELS if "bfloat16" in inspect.signature(TWINS[k]).parameters]


@pytest.mark.parametrize(("N", "A", "B"), [*SHAPES, *EMPTY])
@pytest.mark.parametrize("transposed", [False, True])
def test_kernel_agrees_with_its_twin(bfloat16, arguments, agrees, N, A, B, transposed):
    sizes = {"N": N, "A": A, "B": B, "transposed": transposed}
    for kernel in ("linear_forward", "linear_backward"):
        for bias in (True, False):
            given = arguments(kernel, "float32", **sizes, bias=bias) | {"bfloat16": True}
            agrees(bfloat16, kernel, given)


@pytest.mark.parametrize("kernel", ["linear_forward", "linear_backward"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(("N", "A", "B"), [(1, 1, 1), (3, 5, 7), (33, 31, 65), (193, 129, 17)])
def test_nothing_outside_an_array_is_touched(
    bfloat16, arguments, guarded_all, kernel, transposed, at_end, N, A, B
):
    given = arguments(kernel, "float32", N=N, A=A, B=B, transposed=transposed)
    given["bfloat16"] = True
    inside = guarded_all(given, at_end)
    getattr(bfloat16, kernel)(**given)
    getattr(bfloat16, kernel)(**inside)  # a step outside ends the process
    for name, value in given.items():
        np.testing.assert_array_equal(inside[name], value)


def product(kernels, x, weight):
    out = np.full((len(x), weight.shape[1]), np.nan, np.float32)
    kernels.linear_forward(x, weight, None, out, bfloat16=True)
    return out


def test_factors_are_rounded_as_the_twin_rounds_them(bfloat16, rng):
    bits = rng.integers(0, 2**32, 100_000, np.uint32)
    bits[:70_000] &= 0xFFFF8000  # ties among them
    x = bits.view(np.float32)
    # Numbers that no product takes too far; denormal ones count as 0.
    x = x[np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)]
    x = x[np.isfinite(rounded(x))].reshape(-1, 1)
    one = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(product(bfloat16, x, one), rounded(x))
    np.testing.assert_array_equal(product(bfloat16, one, x.T.copy()), rounded(x).T)


def test_sums_are_not_rounded(bfloat16):
    x = np.full((1, 1000), 1.0, np.float32)
    assert product(bfloat16, x, x.T.copy())[0, 0] == 1000  # 1000 needs nine bits
    x[0, 0] = 2.0**-12
    assert product(bfloat16, x, np.ones((1000, 1), np.float32))[0, 0] == 999 + 2.0**-12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_its_row(bfloat16, rng, value):
    x = rng.standard_normal((9, 33)).astype(np.float32)
    x[4, 32] = value
    out = product(bfloat16, x, np.ones((33, 20), np.float32))
    assert np.isfinite(out).all(axis=1).tolist() == [n != 4 for n in range(9)]
    np.testing.assert_array_equal(out[4], np.full(20, value))


def test_a_products_rows_do_not_depend_on_their_number(bfloat16, rng):
    x, weight = (rng.standard_normal(s).astype(np.float32) for s in ((401, 600), (600, 70)))
    whole = product(bfloat16, x, weight)
    for rows in (slice(0, 1), slice(5, 12), slice(190, 401)):
        np.testing.assert_array_equal(product(bfloat16, x[rows], weight), whole[rows])


def test_the_loss_takes_the_same_products(bfloat16, arguments):
    for transposed in (False, True):
        sizes = {"N": 70, "C": 9, "V": 131, "R": 33, "transposed": transposed}
        given = arguments("linear_cross_entropy", "float32", **sizes)
        x, weight, bias, targets = (given[name] for name in ("x", "weight", "bias", "targets"))
        losses, dx = np.empty_like(given["losses"]), np.empty_like(x)
        dweight, dbias = given["dweight"].copy(), given["dbias"].copy()
        for first in range(0, 70, 33):
            part = slice(first, first + 33)
            logits = np.empty((len(x[part]), 131), np.float32)
            how = (transposed, True)
            bfloat16.linear_forward(x[part], weight, bias, logits, *how)
            bfloat16.cross_entropy(logits, targets[part], 0.25, np.inf, losses[part], logits)
            bfloat16.linear_backward(logits, x[part], weight, dx[part], dweight, dbias, *how)
        bfloat16.linear_cross_entropy(**given, bfloat16=True)
        for name, expected in zip(
            ("losses", "dx", "dweight", "dbias"), (losses, dx, dweight, dbias), strict=True
        ):
            np.testing.assert_array_equal(given[name], expected)


# Where it cannot be


@pytest.mark.parametrize("kernel", WITH_IT)
def test_float64_is_refused(compiled, arguments, kernel):
    given = arguments(kernel, "float64") | {"bfloat16": True}
    with pytest.raises(ValueError, match=f"{kernel}: bfloat16 is for float32 arrays, got float64"):
        getattr(compiled, kernel)(**given)


@pytest.mark.parametrize("kernel", WITH_IT)
@pytest.mark.parametrize("compiled", [n for n in LEVELS if n != "avx512"], indirect=True)
def test_kernels_without_it_refuse(compiled, arguments, kernel):
    given = arguments(kernel, "float32") | {"bfloat16": True}
    with pytest.raises(ValueError, match=f"{kernel}: bfloat16 must be False: .*AVX512-BF16"):
        getattr(compiled, kernel)(**given)
