"""Tests of the kernels of a whole transformer block."""

import itertools

import numpy as np
import pytest

BOOLEANS = [False, True]
VARIANTS = [
    dict(zip(("pre_norm", "gelu", "bias", "projection"), choice, strict=True))
    for choice in itertools.product(BOOLEANS, repeat=4)
]
LENGTHS = [(1,), (3, 0, 1), (17, 5), (65, 3), (130,)]


def there_and_back(kernels, given, dout):
    """Run forward and backward; return the output and the gradients."""
    N, C = given["x"].shape
    shape = [given[name] for name in ("n_heads", "pre_norm", "projection")]
    size = kernels.block_kept_size(N, C, given["hidden_dim"], *shape)
    dtype = given["x"].dtype
    given = given | {"kept": np.full(size, np.nan, dtype), "out": np.full((N, C), np.nan, dtype)}
    kernels.block_forward(**given)
    out, dx = given.pop("out"), np.full((N, C), np.nan, dtype)
    dparameters = np.ones_like(given["parameters"])
    kept = given["kept"].copy()
    kernels.block_backward(dout, **given, dx=dx, dparameters=dparameters)
    np.testing.assert_array_equal(given["kept"], kept)
    return out, dx, dparameters - 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("F", [4, 31])  # less and more than 3 C
def test_kernels_agree_with_their_twins(
    compiled, reference, arguments, rng, close, dtype, variant, lengths, F
):
    given = arguments("block_forward", dtype, lengths=lengths, H=2, D=4, F=F, **variant)
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype != np.int32 else v
        for k, v in given.items()
    }
    dout = rng.standard_normal(given["x"].shape)
    found = there_and_back(compiled, given, dout.astype(dtype))
    expected = there_and_back(reference, wide, dout)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs, 100)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(kernels, arguments, rng, same_gradient, variant):
    given = arguments("block_forward", "float64", lengths=(3, 1), H=2, D=2, F=3, **variant)
    # Away from ReLU's corner, where a step of the differences would cross it.
    given["parameters"] *= 0.3
    dout = rng.standard_normal(given["x"].shape)

    def objective():
        return (there_and_back(kernels, given, dout)[0] * dout).sum()

    _, dx, dparameters = there_and_back(kernels, given, dout)
    same_gradient(dx, objective, given["x"])
    same_gradient(dparameters, objective, given["parameters"])


def test_the_gradient_may_replace_the_one_it_came_from(compiled, arguments, rng, dtype):
    for variant in VARIANTS:
        given = arguments("block_forward", dtype, lengths=(5, 3), **variant)
        compiled.block_forward(**given)
        del given["out"]
        dout = rng.standard_normal(given["x"].shape).astype(dtype)
        dx, shared = np.empty_like(dout), dout.copy()
        one, two = np.zeros_like(given["parameters"]), np.zeros_like(given["parameters"])
        compiled.block_backward(dout, **given, dx=dx, dparameters=one)
        compiled.block_backward(shared, **given, dx=shared, dparameters=two)
        np.testing.assert_array_equal(shared, dx)
        np.testing.assert_array_equal(two, one)


def test_no_rows_are_no_error(kernels, arguments, dtype):
    given = arguments("block_forward", dtype, lengths=(0, 0))
    dparameters = there_and_back(kernels, given, np.zeros((0, 6), dtype))[2]
    assert not dparameters.any()


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward", "block_decode"])
def test_scratch_must_be_large_enough(compiled, arguments, kernel):
    given = arguments(kernel, "float32")  # 6 columns, 7 hidden
    rows, longest = (2, 5) if kernel == "block_decode" else (4, 3)
    enough = compiled.block_scratch_size(rows, longest, 6, 7)
    given["scratch"] = np.empty(enough, np.float32)
    getattr(compiled, kernel)(**given)
    given["scratch"] = given["scratch"][:-1]
    message = rf"{kernel}: scratch must hold block_scratch_size.* = {enough} numbers"
    with pytest.raises(ValueError, match=message):
        getattr(compiled, kernel)(**given)


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward", "block_decode"])
@pytest.mark.parametrize("wrong", [-1, 2**31])
def test_a_hidden_dim_that_cannot_be_is_refused(compiled, arguments, kernel, wrong):
    with pytest.raises(ValueError, match=f"{kernel}: .*hidden_dim"):
        getattr(compiled, kernel)(**arguments(kernel, "float32") | {"hidden_dim": wrong})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [(1,), (3, 0, 1), (17, 5)])
def test_all_linear_products_can_round_to_bfloat16(
    bfloat16, reference, arguments, rng, close, variant, lengths
):
    given = arguments("block_forward", "float32", lengths=lengths, H=2, D=4, F=31, **variant)
    given["bfloat16"] = True
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype != np.int32 else v
        for k, v in given.items()
    }
    dout = rng.standard_normal(given["x"].shape).astype(np.float32)
    found = there_and_back(bfloat16, given, dout)
    expected = there_and_back(reference, wide, dout.astype(np.float64))
    # Looser, since a last digit may decide where an intermediate result is rounded to.
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs, 100)


# Decoding


@pytest.mark.parametrize(
    ("n", "start", "capacity"), [(1, 0, 1), (1, 9, 11), (3, 0, 5), (66, 2, 68)]
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("F", [13, 37])  # less and more than 3 C
def test_decoding_agrees_with_its_twin(
    compiled, arguments, agrees, dtype, n, start, capacity, variant, F
):
    given = arguments(
        "block_decode", dtype, n=n, start=start, capacity=capacity, H=2, D=5, F=F, **variant
    )
    agrees(compiled, "block_decode", given, 10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_is_forward(kernels, arguments, close, dtype, variant):
    given = arguments("block_forward", dtype, lengths=(9,), **variant)
    kept = kernels.block_kept_size(9, 6, 7, 2, variant["pre_norm"], variant["projection"])
    kernels.block_forward(**given | {"kept": np.empty(kept, dtype)})
    decoding = arguments("block_decode", dtype, n=9, start=0, capacity=9, **variant)
    decoding["parameters"] = given["parameters"]
    for start, end in ((0, 5), (5, 6), (6, 9)):
        rows = given["x"][start:end].copy()
        kernels.block_decode(**decoding | {"x": rows, "start": start})
        close(rows, given["out"][start:end], 10)


def test_no_new_rows_change_nothing(kernels, arguments, dtype):
    given = arguments("block_decode", dtype, n=0, start=3, capacity=3)
    keys = given["keys"].copy()
    kernels.block_decode(**given)
    np.testing.assert_array_equal(given["keys"], keys)


def test_a_block_without_hidden_columns_still_attends(kernels, arguments, dtype):
    given = arguments("block_decode", dtype, F=0)
    x = given["x"].copy()
    kernels.block_decode(**given)
    assert np.isfinite(given["x"]).all()
    assert (given["x"] != x).any()
