"""Tests of rotary positions: frequencies, their scalings, and the table."""

import math

import numpy as np
import pytest

from rustgpt.config import ModelConfig
from rustgpt.layers.rotary import Rotary

# Of Llama 3.1, D = 128 and theta 500,000: some of the frequencies that `transformers` computes
# (modeling_rope_utils.py), in float32.
LLAMA3 = {"scaling": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original": 8192}  # fmt: skip


def test_the_first_pair_turns_by_one_and_the_last_by_almost_the_inverse_base():
    found = Rotary(8, 4, 10_000.0).frequencies()
    np.testing.assert_allclose(found, [1, 0.1, 0.01, 0.001])


def test_linear_scaling_is_as_if_positions_were_nearer():
    plain, scaled = Rotary(8, 12), Rotary(8, 12, scaling="linear", factor=3.0)
    np.testing.assert_allclose(
        scaled.table(np.float64)[3::3], plain.table(np.float64)[1:4], rtol=1e-12
    )


def test_llama3_divides_long_waves_and_leaves_short_ones():
    plain = Rotary(128, 4, 500_000.0).frequencies()
    found = Rotary(128, 4, 500_000.0, **LLAMA3).frequencies()
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    assert short.any()
    assert long.any()
    np.testing.assert_array_equal(found[short], plain[short])
    np.testing.assert_allclose(found[long], plain[long] / 8, rtol=1e-15)
    between = ~short & ~long
    assert between.sum() > 3
    smooth = (8192 / waves[between] - 1) / 3
    expected = (1 - smooth) * plain[between] / 8 + smooth * plain[between]
    np.testing.assert_allclose(found[between], expected, rtol=1e-12)


def test_the_table_has_cosines_then_sines(dtype):
    table = Rotary(4, 5, 100.0).table(dtype)
    assert table.dtype == dtype
    angles = np.arange(5)[:, None] * [1, 0.1]
    np.testing.assert_allclose(table[:, :2], np.cos(angles), rtol=1e-6)
    np.testing.assert_allclose(table[:, 2:], np.sin(angles), rtol=1e-6)
    assert not table.flags.writeable
    assert Rotary(4, 5, 100.0).table(dtype) is table  # equal ones share it


def test_far_positions_are_exact_in_float32():
    table = Rotary(2, 100_000).table(np.float32)
    assert table[99_999, 0] == np.float32(math.cos(99_999))


@pytest.mark.parametrize("given", [0, 40])
def test_what_a_configuration_says(given):
    config = ModelConfig(
        embedding_dim=12, n_heads=3, max_seq_len=30, positions="rotary", rope_theta=7.0,
        rope_scaling="llama3", rope_factor=2.0, rope_low_freq_factor=0.5,
        rope_high_freq_factor=3.0, rope_original_max_seq_len=given,
    )  # fmt: skip
    assert Rotary.of(config) == Rotary(4, 30, 7.0, "llama3", 2.0, 0.5, 3.0, given or 30)
    assert Rotary.of(ModelConfig()) is None
