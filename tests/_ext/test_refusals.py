"""Tests of calls that the kernels refuse, and of the errors, which name kernel and argument."""

import dataclasses
import inspect
import re
from typing import get_type_hints

import numpy as np
import pytest

from ..kernel_arguments import (
    ARRAYS,
    CALLS,
    KERNELS,
    TWINS,
    array_arguments,
    exactly,
    kernel_of,
    make,
    spec_of,
)  # fmt: skip


def error_of(compiled, kernel, given, change):
    """Return the kind and the message of the error that a call with changed arguments gives."""
    wrong = given | change
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(compiled, kernel)(**wrong)
    message = str(caught.value)
    assert message.startswith(f"{kernel}: "), message
    return caught.type, message


@pytest.fixture
def refuses(compiled, arguments, call, argument):
    """refuses(value_of, errors): the kernel refuses value_of(argument), and names the argument."""
    kernel = kernel_of(call)

    def check(value_of, *expected):
        given = arguments(call, "float32")
        before = {k: v.copy() for k, v in given.items() if isinstance(v, np.ndarray)}
        kind, message = error_of(compiled, kernel, given, {argument: value_of(given[argument])})
        assert kind in expected
        assert re.match(rf"{kernel}: (Argument )?'?{argument}'? must", message), message
        for name, value in before.items():
            np.testing.assert_array_equal(given[name], value, err_msg=f"{name} was changed")

    return check


# Arrays


@pytest.mark.parametrize("other", ["float16", "int64", ">f4"])
@pytest.mark.parametrize(("call", "argument"), array_arguments(indices=False))
def test_numbers_of_a_wrong_dtype_are_refused(refuses, other):
    refuses(lambda value: np.zeros(value.shape, other), TypeError)


@pytest.mark.parametrize("other", ["float32", "int64", ">i4"])
@pytest.mark.parametrize(("call", "argument"), array_arguments(indices=True))
def test_indices_of_a_wrong_dtype_are_refused(refuses, other):
    refuses(lambda value: np.zeros(value.shape, other), TypeError)


@pytest.mark.parametrize(("call", "argument"), array_arguments())
def test_what_is_no_array_is_refused(refuses):
    refuses(lambda value: value.tolist(), TypeError)
    refuses(lambda value: 3.0, TypeError)
    refuses(lambda value: 3, TypeError)
    refuses(lambda value: "text", TypeError)


@pytest.mark.parametrize(("call", "argument"), array_arguments(optional=False))
def test_none_is_refused_where_an_array_must_be(refuses):
    refuses(lambda value: None, TypeError)


@pytest.mark.parametrize(("call", "argument"), array_arguments())
def test_wrong_dimensions_are_refused(refuses):
    refuses(lambda value: value[None].copy(), ValueError, TypeError)
    refuses(lambda value: np.array(1, value.dtype), ValueError, TypeError)


@pytest.mark.parametrize(("call", "argument"), array_arguments())
def test_what_is_not_contiguous_is_refused(refuses):
    refuses(lambda value: np.repeat(value, 2, axis=-1)[..., ::2], ValueError)


@pytest.mark.parametrize(("call", "argument"), array_arguments())
def test_a_misaligned_array_is_refused(refuses):
    def shifted(value):
        raw = bytearray(b"\0" + value.tobytes())
        return np.frombuffer(raw, value.dtype, value.size, 1).reshape(value.shape)

    refuses(shifted, TypeError)


@pytest.mark.parametrize(("call", "argument"), array_arguments(written=True))
def test_an_output_that_cannot_be_written_is_refused(refuses):
    def sealed(value):
        value = value.copy()
        value.flags.writeable = False
        return value

    refuses(sealed, TypeError)
    refuses(lambda value: value.dtype.type(1), TypeError)


# Arrays whose first side no other array has: it is what the others are measured by, or at least as
# much as is needed.
FREE = {
    ("sum_of_squares", "x"), ("clip_by_global_norm", "gradients"), ("adam_step", "edges"),
    ("embedding_forward", "tokens"), ("embedding_forward", "places"),
    ("embedding_backward", "dtokens"), ("embedding_backward", "dplaces"),
    *((kernel, "table") for kernel in KERNELS),
    *((kernel, "scratch") for kernel in KERNELS),
}  # fmt: skip
SIDES = [
    (call, argument, axis)
    for call, argument in array_arguments()
    for axis in range(ARRAYS[kernel_of(call)][argument].dimensions)
    if axis > 0 or (kernel_of(call), argument) not in FREE
    # A cache may have any number of slots, and of free rows in each.
    # And there may be more columns than those that are turned.
    if (kernel_of(call), argument, axis) != ("rotary", "x", 1)
    if argument != "kv" or axis - ARRAYS[kernel_of(call)]["kv"].dimensions not in (-3, -2)
]


@pytest.mark.parametrize(("call", "argument", "axis"), SIDES)
@pytest.mark.parametrize("change", [1, -1])
def test_a_wrong_shape_is_refused(compiled, arguments, call, argument, axis, change):
    given = arguments(call, "float32")
    shape = list(given[argument].shape)
    shape[axis] += change
    wrong = np.ones(shape, given[argument].dtype)
    kind, message = error_of(compiled, kernel_of(call), given, {argument: wrong})
    assert kind is ValueError
    assert re.search("shape|offsets|columns", message), message


VECTORS = [k for k in KERNELS if "scratch" in ARRAYS[k] and ARRAYS[k]["scratch"].dimensions == 1]


@pytest.mark.parametrize("kernel", VECTORS)
def test_scratch_must_be_large_enough(compiled, arguments, kernel):
    given = exactly(compiled, kernel, arguments(kernel, "float32"))
    getattr(compiled, kernel)(**given)
    enough = len(given["scratch"])
    kind, message = error_of(compiled, kernel, given, {"scratch": given["scratch"][:-1]})
    assert kind is ValueError
    assert re.search(rf"scratch must hold .*_scratch_size\(.*\) = {enough} numbers", message)


# Numbers


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (call, name)
        for call in CALLS
        for name, kind in get_type_hints(TWINS[kernel_of(call)]).items()
        if kind in (int, float) and name in make(call, "float32")
    ],
)
def test_a_scalar_that_is_no_number_is_refused(refuses):
    refuses(lambda value: "three", TypeError)
    refuses(lambda value: None, TypeError)
    refuses(lambda value: np.ones(3), TypeError)


SIZES = {
    "attention_scratch_size": {"length": 7, "head_dim": 4},
    "block_saved_size": {"spec": spec_of(2, 4, 16), "N": 7},
    "block_scratch_size": {"spec": spec_of(2, 4, 16), "N": 7, "longest": 5, "threads": 2},
}
LARGEST = 2**31 - 1


@pytest.mark.parametrize(
    ("kernel", "argument"),
    [(kernel, name) for kernel, given in SIZES.items() for name in given if name != "spec"],
)
@pytest.mark.parametrize("wrong", [-1, 2**31, 2**40, 2**62, 2**63 - 1])
def test_a_giant_size_is_refused(compiled, kernel, argument, wrong):
    size, given = getattr(compiled, kernel), SIZES[kernel]
    assert size(**given) > 0
    with pytest.raises(ValueError, match=f"{kernel}: {argument} must be from"):
        size(**given | {argument: wrong})


def test_sizes_never_overflow(compiled):
    assert compiled.attention_scratch_size(LARGEST, LARGEST) >= 2 * LARGEST
    giant = dataclasses.replace(
        spec_of(1, 2, 2),
        hidden_dim=LARGEST,
        shapes=spec_of(1, 2, 2).shapes
        | {"feed_forward.weight1": (2, LARGEST), "feed_forward.bias1": (LARGEST,)}
        | {"feed_forward.weight2": (LARGEST, 2)},
    )
    assert compiled.block_saved_size(giant, 3) > 3 * LARGEST
    assert compiled.block_scratch_size(giant, 3, 3) > 3 * LARGEST
    with pytest.raises(ValueError, match=r"block_saved_size: .* are too many"):
        compiled.block_saved_size(giant, LARGEST)
    for wrong in ((LARGEST, 3, 1), (3, LARGEST, LARGEST)):
        with pytest.raises(ValueError, match=r"block_scratch_size: .* are too many"):
            compiled.block_scratch_size(giant, *wrong)


def test_numbers_too_large_for_the_machine_are_refused(compiled, arguments):
    given = arguments("attention_forward", "float32")
    kind, _ = error_of(compiled, "attention_forward", given, {"n_heads": 2**70})
    assert kind is ValueError


# Signatures


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_calls_name_the_kernel(compiled, arguments, kernel):
    given = arguments(kernel, "float32")
    function, first = getattr(compiled, kernel), next(iter(given))
    with pytest.raises(TypeError, match=rf"{kernel}: .*'{first}'"):
        function(**{k: v for k, v in given.items() if k != first})
    with pytest.raises(TypeError, match=rf"{kernel}: .*'colour'"):
        function(**given, colour=1)
    with pytest.raises(TypeError, match=rf"{kernel}: too many"):
        function(*given.values(), *[None] * len(inspect.signature(TWINS[kernel]).parameters))


# What is in the arrays


@pytest.mark.parametrize("wrong", [-2, -(2**31), 4, 2**31 - 1])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("kernel", ["cross_entropy", "linear_cross_entropy"])
def test_a_target_outside_the_vocabulary_is_refused(compiled, arguments, kernel, wrong, at):
    given = arguments(kernel, "float32")
    given["targets"][at] = wrong
    kind, message = error_of(compiled, kernel, given, {})
    assert kind is ValueError
    assert f"targets[{at}] is {wrong}, but must be at least -1 and below 4" in message
    assert np.isnan(given["losses"]).all()  # refused before anything is written


@pytest.mark.parametrize(("call", "argument"), [
    (call, argument) for call, argument in array_arguments(indices=True) if argument == "offsets"
])  # fmt: skip
@pytest.mark.parametrize(
    "wrong", [[], [0], [1, 4], [0, 3], [0, 5], [-1, 4], [0, 3, 2, 4], [0, -1, 4], [0, 9, 4], [4]]
)
def test_offsets_must_rise_from_zero_to_the_number_of_rows(
    compiled, arguments, call, argument, wrong
):
    given = arguments(call, "float32", lengths=(3, 0, 1))
    given[argument] = np.array(wrong, np.int32)
    kind, message = error_of(compiled, kernel_of(call), given, {})
    assert kind is ValueError
    assert "offsets" in message


@pytest.mark.parametrize("wrong", [[3, 2], [-1], [8], [0, 9], [2**31 - 1]])
def test_edges_must_rise_inside_the_buffer(compiled, arguments, wrong):
    change = {"edges": np.array(wrong, np.int32)}  # of seven parameters
    kind, message = error_of(compiled, "adam_step", arguments("adam_step", "float32"), change)
    assert kind is ValueError
    assert "edges[" in message


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.startswith("attention")])
@pytest.mark.parametrize("wrong", [0, -1, 4, 7, 2**62])
def test_heads_must_divide_the_columns(compiled, arguments, kernel, wrong):
    kind, message = error_of(compiled, kernel, arguments(kernel, "float32"), {"n_heads": wrong})
    assert kind is ValueError
    assert f"n_heads must divide the 6 columns, got {wrong}" in message


# The cache

CACHED = ["attention_decode", "block_forward, cache"]


@pytest.fixture
def cache_error(compiled, arguments, call):
    """cache_error(change): what a call says of a change to a cache of 6 rows.

    The cache has four slots; its three texts have 1, 4 and 0 rows there, and 2, 0 and 1 new ones.
    """

    def found(change):
        given = arguments(call, "float32", capacity=6)
        before = {name: given[name].copy() for name in ("kv", "out")}
        kind, message = error_of(compiled, kernel_of(call), given, change)
        assert kind is ValueError
        for name, value in before.items():
            np.testing.assert_array_equal(given[name], value)
        return message

    return found


@pytest.mark.parametrize("call", CACHED)
@pytest.mark.parametrize(("text", "n", "wrong"), [
    (0, 2, -1), (0, 2, 5), (0, 2, 2**31 - 1), (0, 2, -(2**31)), (1, 0, 7), (2, 1, 6), (2, 1, -1),
])  # fmt: skip
def test_decoding_stays_inside_its_cache(cache_error, text, n, wrong):
    starts = np.array([1, 4, 0], np.int32)
    starts[text] = wrong
    expected = f"starts[{text}] must leave room for {n} rows in a cache of 6, got {wrong}"
    assert expected in cache_error({"starts": starts})


@pytest.mark.parametrize("call", CACHED)
@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_slot_that_is_not_there_is_refused(cache_error, wrong):
    message = cache_error({"slots": np.array([3, wrong, 1], np.int32)})
    assert f"slots[1] is {wrong}, but must be at least 0 and below 4" in message


@pytest.mark.parametrize("call", CACHED)
def test_two_texts_in_one_slot_are_refused(cache_error):
    message = cache_error({"slots": np.array([2, 1, 2], np.int32)})
    assert "slots must differ, but texts 0 and 2 have the same" in message


@pytest.mark.parametrize("call", ["block_forward, cache"])
@pytest.mark.parametrize("missing", ["kv", "slots", "starts"])
def test_a_cache_is_given_whole_or_not_at_all(cache_error, missing):
    expected = "kv, slots and starts must all be given, or none"
    assert expected in cache_error({missing: None})
