"""Tests of the kernel that decodes a whole transformer block at once."""

import itertools

import numpy as np
import pytest

BOOLEANS = [False, True]
VARIANTS = list(itertools.product(BOOLEANS, BOOLEANS, BOOLEANS))


@pytest.mark.parametrize(
    ("n", "start", "capacity"), [(1, 0, 1), (1, 9, 11), (3, 0, 5), (66, 2, 68)]
)
@pytest.mark.parametrize(("pre_norm", "gelu", "bias"), VARIANTS)
@pytest.mark.parametrize("projection", [False, True])
def test_kernel_agrees_with_its_twin(
    compiled, arguments, agrees, dtype, n, start, capacity, pre_norm, gelu, bias, projection
):
    given = arguments(
        "block_decode", dtype, n=n, start=start, capacity=capacity, H=2, D=5, F=13,
        pre_norm=pre_norm, gelu=gelu, bias=bias, projection=projection,
    )  # fmt: skip
    agrees(compiled, "block_decode", given, 10)


@pytest.mark.parametrize(("pre_norm", "gelu", "bias"), VARIANTS)
def test_it_is_the_kernels_of_the_steps(kernels, arguments, dtype, close, pre_norm, gelu, bias):
    given = arguments(
        "block_decode", dtype, n=3, start=2, capacity=5, pre_norm=pre_norm, gelu=gelu, bias=bias
    )
    n, _C = given["x"].shape

    def norm(x, i):
        out, mean, rstd = np.empty_like(x), np.empty(n, dtype), np.empty(n, dtype)
        weight, offset = given[f"norm{i}_weight"], given[f"norm{i}_bias"]
        kernels.layer_norm_forward(x, weight, offset, given[f"epsilon{i}"], out, mean, rstd)
        return out

    def linear(x, weight, offset):
        out = np.empty((n, weight.shape[1]), dtype)
        kernels.linear_forward(x, weight, offset, out)
        return out

    def attention(x):
        qkv = linear(x, given["qkv_weight"], given["qkv_bias"])
        heads, scratch = np.empty_like(x), np.empty(1000, dtype)
        keys, values = given["keys"].copy(), given["values"].copy()
        kernels.attention_decode(qkv, keys, values, 2, given["n_heads"], heads, scratch)
        return linear(heads, given["projection_weight"], given["projection_bias"])

    def feed_forward(x):
        hidden = linear(x, given["weight1"], given["bias1"])
        (kernels.gelu_forward if gelu else kernels.relu_forward)(hidden, hidden)
        return linear(hidden, given["weight2"], given["bias2"])

    x = given["x"].copy()
    if pre_norm:
        x += attention(norm(x, 1))
        x += feed_forward(norm(x, 2))
    else:
        x = norm(x + attention(x), 1)
        x = norm(x + feed_forward(x), 2)
    kernels.block_decode(**given)
    close(given["x"], x, 10)


def test_no_new_rows_change_nothing(kernels, arguments, dtype):
    given = arguments("block_decode", dtype, n=0, start=3, capacity=3)
    keys = given["keys"].copy()
    kernels.block_decode(**given)
    np.testing.assert_array_equal(given["keys"], keys)


def test_scratch_must_be_large_enough(compiled, arguments):
    given = arguments("block_decode", "float32")  # n 2, C 6, F 7, start 3
    enough = compiled.block_decode_scratch_size(2, 5, 6, 7)
    given["scratch"] = np.empty(enough, np.float32)
    compiled.block_decode(**given)
    given["scratch"] = given["scratch"][:-1]
    message = rf"block_decode: scratch must hold .*block_decode_scratch_size.* {enough} numbers"
    with pytest.raises(ValueError, match=message):
        compiled.block_decode(**given)
