"""Tests of the profile of kernels."""

import threading

import numpy as np
import pytest

from rustgpt import profiler
from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.profiler import Profiler
from rustgpt.reference import kernels
from rustgpt.reference.arrays import Shard

LIMITS = {"GFLOP/s": 10.0, "GB/s": 5.0}


def amounts(profiled):
    """Return the operations or bytes that were counted, by kernel."""
    lines = profiled.lines(1, 1.0, LIMITS)
    return {f"{line.kernel}_{line.part}": line.rate * line.milliseconds * 1e6 for line in lines}


def test_kernels_are_wrapped_only_meanwhile(backend):
    before = dict(vars(ops))
    with Profiler():
        assert ops.add_into is not before["add_into"]
        assert ops.block_scratch_size is before["block_scratch_size"]
    assert vars(ops) == before


# Of the calls that `arguments` makes; pairs of tokens in texts of 3, 0 and 1: 6 + 1.
PAIRS, BLOCK = 7, 2 * 4 * (4 * 6 * 6 + 2 * 6 * 7)
EXPECTED = {
    "linear_forward": 2 * 3 * 4 * 5,
    "linear_backward": 4 * 3 * 4 * 5,
    "linear_cross_entropy": 6 * 5 * 3 * 4,
    "attention_forward": 4 * 6 * PAIRS,
    "attention_backward": 8 * 6 * PAIRS,
    "block_forward": BLOCK + 4 * 6 * PAIRS,
    "block_backward": 2 * (BLOCK + 4 * 6 * PAIRS),
    "relu_forward": 2 * 12 * 4,
    "relu_backward": 3 * 12 * 4,
    "gelu_forward": 2 * 12 * 4,
    "gelu_backward": 3 * 12 * 4,
    "layer_norm_forward": 2 * 12 * 4,
    "layer_norm_backward": 3 * 12 * 4,
    "rms_norm_forward": 2 * 12 * 4,
    "rms_norm_backward": 3 * 12 * 4,
    "swiglu_forward": 3 * 12 * 4,
    "swiglu_backward": 5 * 12 * 4,
    "rotary": 2 * 3 * 2 * 4 * 4,
    "dropout": 2 * 12 * 4,
    "embedding_forward": 3 * 12 * 4,
    "embedding_backward": 5 * 12 * 4,
    "sum_of_squares": 7 * 4,
    "add_into": 3 * 7 * 4,
    "adam_step": 7 * 7 * 4,
}


def test_work_that_threads_share_counts_once(arguments, switch_backend):
    switch_backend("cython")  # plain NumPy divides nothing
    given = arguments("embedding_backward", "float32")
    edges = np.array([0, 1, 4], np.int32)
    with Profiler() as profiled:
        for i in range(2):
            ops.embedding_backward(**given, shard=Shard(i, edges, False, threading.Barrier(2)))
    expected = EXPECTED["embedding_backward"]
    assert amounts(profiled) == {"embedding_backward": pytest.approx(expected)}


def test_what_a_call_does_is_known_of_every_kernel_that_is_counted():
    counted = {**profiler.OPERATIONS, **profiler.TRAFFIC}
    assert {*EXPECTED} == {*counted} <= {*kernels()}


@pytest.mark.parametrize("kernel", EXPECTED)
def test_operations_and_bytes_come_from_the_arguments(arguments, kernel):
    given = arguments(kernel, "float32")
    with Profiler() as profiled:
        getattr(ops, kernel)(*given.values())
        getattr(ops, kernel)(**given)
    (line,) = profiled.lines(2, 1.0, LIMITS)
    assert f"{line.kernel}_{line.part}".startswith(kernel)
    assert line.calls == 1
    seconds = line.milliseconds / 1e3  # of one call
    assert line.share == pytest.approx(2 * seconds)
    assert line.rate * 1e9 * seconds == pytest.approx(EXPECTED[kernel])
    assert line.unit == ("GFLOP/s" if kernel in profiler.OPERATIONS else "GB/s")
    assert line.share_of_limit == line.rate / LIMITS[line.unit]


def test_without_the_gradient_of_its_input_a_product_is_half(arguments):
    with Profiler() as profiled:
        ops.linear_backward(**arguments("linear_backward", "float32", with_dx=False))
        ops.linear_cross_entropy(**arguments("linear_cross_entropy", "float32", gradient=False))
    assert amounts(profiled) == {
        "linear_backward": pytest.approx(2 * 3 * 4 * 5),
        "linear_cross_entropy_both": pytest.approx(2 * 5 * 3 * 4),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_projection": False},
        {"norm": "pre", "activation": "gelu", "attention_bias": True},
    ],
)
def test_a_block_counts_as_much_as_its_parts(rng, small, changes):
    def counted(by_parts):
        block = TransformerBlock(small(**changes), rng)
        block.by_parts = by_parts
        with Profiler() as profiled:
            ctx = Context(np.array([0, 3, 8], np.int32), gradients=Gradients([block]))
            out = ctx.forward([block], np.ones((8, 6), np.float32))
            ctx.backward([block], np.ones_like(out))
        return amounts(profiled)

    whole, parts = counted(False), counted(True)
    assert {*whole} == {"block_forward", "block_backward"}
    for way in ("forward", "backward"):
        products = [parts[f"{kernel}_{way}"] for kernel in ("linear", "attention")]
        assert whole[f"block_{way}"] == pytest.approx(sum(products))


def test_a_kernel_of_which_nothing_is_known_has_no_rate():
    with Profiler() as profiled:
        ops.softmax(np.ones((2, 3)), np.empty((2, 3)))
    (line,) = profiled.lines(1, 1.0, LIMITS)
    assert (line.kernel, line.calls, line.rate, line.share_of_limit) == ("softmax", 1, None, None)


def test_the_slowest_comes_first_and_clear_forgets():
    with Profiler() as profiled:
        ops.add_into(np.ones(10), np.ones(10))
        profiled.clear()
        assert profiled.lines(1, 1.0, LIMITS) == []
        ops.sum_of_squares(np.ones(1_000_000))
        ops.add_into(np.ones(1), np.ones(1))
    times = [line.milliseconds for line in profiled.lines(1, 1.0, LIMITS)]
    assert len(times) == 2
    assert times == sorted(times, reverse=True)
