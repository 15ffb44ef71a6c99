"""Tests of dropout: by itself, and within a whole block."""

import numpy as np
import pytest

from rustgpt.reference.dropout import random_bits

from ..kernel_arguments import copied, exactly, widened
from .test_block import VARIANTS, there_and_back

ROWS = np.arange(2048, dtype=np.int32)
PINNED = [
    [4160912812, 994978923, 3109656824],
    [3455996287, 2671016073, 2732722886],
    [3555723697, 3202384585, 2765787854],
    [3324279851, 1467063531, 1256675831],
]


def deviation(kept, share):
    """Return by how many standard deviations the share of True is off."""
    return abs(kept.mean() - share) / np.sqrt(share * (1 - share) / kept.size)


# What is kept


def test_the_bits_stay_what_they_are():
    """A training that goes on with another version of the package has the masks that it had."""
    bits = random_bits(np.array([0, 1, 2**31 - 1, -1], np.int32), 2**64 - 2, 3)
    assert bits.tolist() == PINNED


@pytest.mark.parametrize(("N", "C"), [(1, 1), (3, 7), (17, 129), (0, 5), (5, 0)])
@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.5, 0.999])
def test_every_instruction_set_keeps_what_the_twin_keeps(
    compiled, reference, arguments, dtype, N, C, rate
):
    given = arguments("dropout", dtype, N=N, C=C, rate=rate)
    other, within = copied(given), copied(given)
    within["out"] = within["x"]
    compiled.dropout(**given)
    reference.dropout(**other)
    compiled.dropout(**within)
    np.testing.assert_array_equal(given["out"], other["out"])
    np.testing.assert_array_equal(within["out"], other["out"])


def test_what_is_kept_is_multiplied_and_a_nan_comes_through(kernels, dtype):
    x, out = np.ones((2048, 64), dtype), np.empty((2048, 64), dtype)
    kernels.dropout(x, ROWS, 7, 0.2, out)
    assert np.unique(out).tolist() == [0, 1.25]
    x[...] = np.nan
    kernels.dropout(x, ROWS, 7, 0.2, out)
    assert np.isnan(out).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("key", [0, 1, 2**63])
def test_numbers_beside_each_other_are_dropped_independently(key, share):
    dropped = random_bits(ROWS, key, 256) < share * 2**32
    assert deviation(dropped, share) < 5
    for distance in (1, 2, 3, 4, 8, 16, 64, 128):
        here, there = np.s_[distance:], np.s_[:-distance]
        for one, other in (
            (dropped[here], dropped[there]),  # rows
            (dropped[:, here], dropped[:, there]),  # columns
            (dropped[here, here], dropped[there, there]),
            (dropped[here, there], dropped[there, here]),
        ):
            assert deviation(one & other, share**2) < 5
    for axis, n in ((0, 2048), (1, 256)):  # each column and each row has its share
        spread = dropped.mean(axis=axis).var() / (share * (1 - share) / n)
        assert spread == pytest.approx(1, abs=0.45)


def test_every_byte_of_the_bits_is_as_often():
    bits = random_bits(ROWS, 5, 512)
    for byte in bits.view(np.uint8).reshape(-1, 4).T:
        counts = np.bincount(byte, minlength=256)
        chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 150 < chi_square < 380  # 255 are expected, with a standard deviation of 23


def test_rows_are_dropped_by_their_numbers(kernels, rng):
    x, order = rng.standard_normal((64, 9)), rng.permutation(64)
    whole, out = np.empty((64, 9)), np.empty((64, 9))
    kernels.dropout(x, ROWS[:64], 3, 0.4, whole)
    kernels.dropout(x[order], ROWS[:64][order], 3, 0.4, out)
    np.testing.assert_array_equal(out, whole[order])


# What is refused


@pytest.mark.parametrize("call", ["dropout", "block_forward, dropout", "block_backward, dropout"])
@pytest.mark.parametrize("wrong", [-0.1, 1.0, 2.0, np.nan, np.inf])
def test_a_wrong_rate_is_refused(kernels, arguments, call, wrong):
    given = arguments(call, "float32") | {"rate": wrong}
    with pytest.raises(ValueError, match="rate must be from 0 to below 1, got"):
        getattr(kernels, call.partition(",")[0])(**given)


@pytest.mark.parametrize("wrong", [-1, 2**64])
def test_a_key_of_more_than_64_bits_is_refused(compiled, arguments, wrong):
    with pytest.raises(ValueError, match="dropout: "):
        compiled.dropout(**arguments("dropout", "float32") | {"key": wrong})


@pytest.mark.parametrize("call", ["block_forward", "block_backward"])
def test_a_block_with_dropout_needs_the_rows_numbers(kernels, arguments, call):
    with pytest.raises(ValueError, match="row_numbers must be given where rate is above 0"):
        getattr(kernels, call)(**arguments(call, "float32") | {"rate": 0.1})


def test_a_cache_has_no_dropout(kernels, arguments):
    given = arguments("block_forward, cache", "float32", rate=0.1)
    with pytest.raises(ValueError, match="rate must be 0 where there is a cache"):
        kernels.block_forward(**given)


# A block


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [(3, 0, 1), (17, 5), (130,)])
def test_a_block_agrees_with_its_twin(
    compiled, reference, arguments, rng, close, dtype, variant, lengths, accumulate
):
    given = arguments("block_forward", dtype, lengths=lengths, D=4, F=31, rate=0.3, **variant)
    dout = rng.standard_normal(given["x"].shape).astype(dtype)
    before = rng.standard_normal(given["spec"].size).astype(dtype) if accumulate else None
    wide = widened({"dout": dout, "before": before})
    found = there_and_back(compiled, given, dout, before)
    expected = there_and_back(reference, widened(given), **wide)
    without = there_and_back(compiled, given | {"rate": 0.0}, dout, before)
    for mine, theirs, other in zip(found, expected, without, strict=True):
        close(mine, theirs)
        assert np.abs(mine - other).max() > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_blocks_gradients_are_those_of_finite_differences(
    kernels, arguments, rng, same_gradient, variant
):
    given = arguments("block_forward", "float64", lengths=(3, 1), D=2, F=3, rate=0.4, **variant)
    dout = rng.standard_normal(given["x"].shape)

    def objective():
        return (there_and_back(kernels, given, dout)[0] * dout).sum()

    _, dx, dparameters = there_and_back(kernels, given, dout)
    same_gradient(dx, objective, given["x"])
    same_gradient(dparameters, objective, given["parameters"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_without_a_rate_is_one_without_dropout(kernels, arguments, rng, dtype, variant):
    given = arguments("block_forward", dtype, lengths=(5, 66), rate=0.3, **variant)
    dout = rng.standard_normal(given["x"].shape).astype(dtype)
    bare = {name: given[name] for name in given if name not in ("row_numbers", "key", "rate")}
    found = there_and_back(kernels, given | {"rate": 0.0}, dout)
    expected = there_and_back(kernels, bare, dout)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_is_the_same_without_a_way_back(kernels, arguments, dtype, variant):
    sizes = {"lengths": (5, 0, 66), "rate": 0.3} | variant
    saving, alone = (
        arguments("block_forward", dtype, save=save, **sizes) for save in (True, False)
    )
    kernels.block_forward(**exactly(kernels, "block_forward", saving))
    kernels.block_forward(**exactly(kernels, "block_forward", alone))
    np.testing.assert_array_equal(alone["out"], saving["out"])


def test_each_sub_layer_has_a_mask_of_its_own(kernels, arguments):
    """With parameters of 0 but for biases the sub-layers give constants, and the sums show both."""
    given = arguments(
        "block_forward", "float64", lengths=(64,), rate=0.5, norm="pre", attention_bias=True
    )
    named = given["spec"].unpacked(given["parameters"])
    for value in named.values():
        value[...] = 0
    named["attention.projection_bias"][...] = 1
    named["feed_forward.bias2"][...] = 10
    kernels.block_forward(**exactly(kernels, "block_forward", given))
    added = given["out"] - given["x"]
    values, counts = np.unique(added.round(9), return_counts=True)
    assert values.tolist() == [0, 2, 20, 22]
    assert counts.min() > 0.15 * added.size
