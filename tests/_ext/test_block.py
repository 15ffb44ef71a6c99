"""Tests of the kernels of a whole transformer block."""

import dataclasses
import itertools

import numpy as np
import pytest

from ..kernel_arguments import copied, exactly, offsets_of, widened
from ..kernel_specs import LLAMA

OPTIONS = {
    "norm": ("post", "pre"), "activation": ("relu", "gelu"), "attention_bias": (False, True),
    "attention_projection": (True, False),
}  # fmt: skip
VARIANTS = [
    dict(zip(OPTIONS, choice, strict=True)) for choice in itertools.product(*OPTIONS.values())
]
VARIANTS += [
    LLAMA,
    LLAMA | {"n_kv_heads": 2, "attention_bias": True, "feed_forward_bias": True},
    {"norm_type": "rms_norm", "feed_forward_bias": False},
    {"positions": "rotary", "attention_projection": False},
    {"n_kv_heads": 1, "attention_bias": True, "activation": "gelu"},
    {"activation": "swiglu", "norm": "pre"},
]
LENGTHS = [(1,), (3, 0, 1), (17, 5), (65, 3), (130,)]


def there_and_back(kernels, given, dout, before=None, **options):
    """Run forward and backward; return the output and the gradients of x and the parameters.

    The latter are added to `before`, or, without it, overwrite what is there.
    """
    N, C = given["x"].shape
    dtype, given = given["x"].dtype, exactly(kernels, "block_forward", copied(given)) | options
    kernels.block_forward(**given)
    out, saved = given.pop("out"), given["saved"].copy()
    accumulate = before is not None
    dparameters = before.copy() if accumulate else np.full_like(given["parameters"], np.nan)
    back = {"dout": dout, **given, "dx": np.full((N, C), np.nan, dtype), "dparameters": dparameters}
    back = exactly(kernels, "block_backward", back)
    kernels.block_backward(**back, accumulate=accumulate)
    np.testing.assert_array_equal(back["saved"], saved)
    return out, back["dx"], dparameters


# Forward and backward


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("F", [4, 31])  # less and more than 3 C
def test_kernels_agree_with_their_twins(
    compiled, reference, arguments, rng, close, dtype, variant, lengths, F, accumulate
):
    given = arguments("block_forward", dtype, lengths=lengths, H=2, D=4, F=F, **variant)
    dout = rng.standard_normal(given["x"].shape).astype(dtype)
    before = rng.standard_normal(given["spec"].size).astype(dtype) if accumulate else None
    wide = widened({"dout": dout, "before": before})
    found = there_and_back(compiled, given, dout, before)
    expected = there_and_back(reference, widened(given), **wide)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(kernels, arguments, rng, same_gradient, variant):
    given = arguments("block_forward", "float64", lengths=(3, 1), H=2, D=2, F=3, **variant)
    dout = rng.standard_normal(given["x"].shape)

    def objective():
        return (there_and_back(kernels, given, dout)[0] * dout).sum()

    _, dx, dparameters = there_and_back(kernels, given, dout)
    same_gradient(dx, objective, given["x"])
    same_gradient(dparameters, objective, given["parameters"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_way_back_the_output_is_the_same(kernels, arguments, dtype, variant):
    saving = arguments("block_forward", dtype, lengths=(5, 0, 66), **variant)
    alone = arguments("block_forward, nothing saved", dtype, lengths=(5, 0, 66), **variant)
    kernels.block_forward(**exactly(kernels, "block_forward", saving))
    kernels.block_forward(**exactly(kernels, "block_forward", alone))
    np.testing.assert_array_equal(alone["out"], saving["out"])


@pytest.mark.parametrize("call", ["block_backward", "block_backward, dropout"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_may_replace_the_one_it_came_from(compiled, arguments, dtype, call, variant):
    given = arguments(call, dtype, lengths=(5, 3), **variant)
    shared = copied(given)
    shared["dx"] = shared["dout"]
    compiled.block_backward(**given)
    compiled.block_backward(**shared)
    np.testing.assert_array_equal(shared["dx"], given["dx"])
    np.testing.assert_array_equal(shared["dparameters"], given["dparameters"])


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_no_rows_are_no_error(kernels, arguments, dtype, lengths):
    given = arguments("block_forward", dtype, lengths=lengths)
    dout, before = np.zeros((0, 6), dtype), np.ones(given["spec"].size, dtype)
    np.testing.assert_array_equal(there_and_back(kernels, given, dout, before)[2], before)
    assert not there_and_back(kernels, given, dout)[2].any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [(1,), (2, 0, 1), (17, 5)])
def test_all_linear_products_can_round_to_bfloat16(
    bfloat16, reference, arguments, rng, close, variant, lengths
):
    """Of sizes at which no number is so near the middle between two bfloat16 that either is right.

    With others, a last digit of a float32 may decide which, and move the outputs a thousand times
    as much.
    """
    given = arguments("block_forward", "float32", lengths=lengths, H=2, D=4, F=30, **variant)
    dout = rng.standard_normal(given["x"].shape).astype(np.float32)
    found = there_and_back(bfloat16, given, dout, bfloat16=True)
    expected = there_and_back(reference, widened(given), dout.astype(float), bfloat16=True)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs)


# With a cache


@pytest.mark.parametrize(
    ("lengths", "starts", "slots"),
    [
        ((1,), (0,), (0,)),
        ((3,), (9,), (2,)),
        ((1, 1, 1, 1), (5, 0, 70, 2), (2, 0, 3, 1)),
        ((66, 0, 2), (2, 7, 0), (4, 1, 0)),
        ((0, 48, 1), (3, 0, 130), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("F", [13, 37])  # less and more than 3 C
def test_texts_that_go_on_agree_with_the_twin(
    compiled, arguments, agrees, dtype, lengths, starts, slots, variant, F
):
    D = 6 if variant.get("positions") == "rotary" else 5
    sizes = {"lengths": lengths, "starts": starts, "slots": slots, "H": 2, "D": D, "F": F}
    agrees(compiled, "block_forward", arguments("block_forward", dtype, **sizes, **variant))


# How many new rows each of three texts has in each call.
CALLS = {
    "one by one": [(1, 0, 0), (1, 1, 0), (0, 1, 1), (3, 3, 4), (1, 1, 1), (1, 1, 1), (2, 3, 0)],
    "long": [(9, 0, 0), (0, 0, 7), (0, 10, 0)],
    "in turn": [(4, 3, 1), (0, 6, 0), (5, 1, 6)],
}


@pytest.mark.parametrize("slots", [(0, 1, 2), (3, 0, 1)])
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_in_several_calls_come_out_as_all_at_once(
    kernels, arguments, close, dtype, variant, calls, slots
):
    lengths = (9, 10, 7)
    whole = arguments("block_forward", dtype, lengths=lengths, **variant)
    whole = exactly(kernels, "block_forward", whole)
    kernels.block_forward(**whole)
    edges, starts = whole["offsets"], np.zeros(3, np.int32)
    C, columns = whole["x"].shape[1], 2 * whole["spec"].kv_dim
    cache = {"kv": np.full((4, 10, columns), np.nan, dtype)}
    for new in CALLS[calls]:
        order = np.array([2, 0, 1])  # of the texts: another than that of the slots
        rows = [np.arange(edges[t] + starts[t], edges[t] + starts[t] + new[t]) for t in order]
        rows = np.concatenate(rows).astype(int)
        given = whole | cache | {
            "x": whole["x"][rows], "offsets": offsets_of([new[t] for t in order]),
            "out": np.full((len(rows), C), np.nan, dtype), "saved": None,
            "slots": np.array(slots, np.int32)[order], "starts": starts[order],
        }  # fmt: skip
        kernels.block_forward(**exactly(kernels, "block_forward", given))
        close(given["out"], whole["out"][rows])
        starts += np.array(new, np.int32)
    assert starts.tolist() == list(lengths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_that_go_on_can_round_to_bfloat16(bfloat16, arguments, agrees, variant):
    given = arguments("block_forward, cache, nothing saved", "float32", **variant)
    agrees(bfloat16, "block_forward", given | {"bfloat16": True})


def test_no_new_rows_change_nothing(kernels, arguments, dtype):
    given = arguments("block_forward, cache", dtype, lengths=(0, 0), starts=(3, 1), capacity=3)
    before = copied(given)
    kernels.block_forward(**exactly(kernels, "block_forward", given))
    np.testing.assert_array_equal(given["kv"], before["kv"])


@pytest.mark.parametrize("call", ["block_forward", "block_forward, cache", "block_backward"])
def test_the_angles_must_fit_the_positions(compiled, arguments, call):
    kernel = call.partition(",")[0]
    turned, plain = arguments(f"{call}, Llama", "float32"), arguments(call, "float32", D=4)
    table = turned["table"]
    for given, wrong, message in (
        (turned, None, "table must be given where positions are rotary, and else be None"),
        (plain, table, "table must be given where positions are rotary, and else be None"),
        (turned, table[:-1], f"a row for each of {len(table)} positions, got {len(table) - 1}"),
        (turned, table[:, :2].copy(), "table must have shape"),
    ):
        with pytest.raises(ValueError, match=f"{kernel}: .*{message}"):
            getattr(compiled, kernel)(**given | {"table": wrong})


@pytest.mark.parametrize("call", ["block_forward", "block_forward, cache"])
def test_a_block_without_hidden_columns_still_attends(compiled, arguments, agrees, dtype, call):
    given = arguments(call, dtype)
    none = {"weight1": (6, 0), "bias1": (0,), "weight2": (0, 6)}
    shapes = given["spec"].shapes | {f"feed_forward.{name}": none[name] for name in none}
    given["spec"] = dataclasses.replace(given["spec"], hidden_dim=0, shapes=shapes)
    given["parameters"] = given["parameters"][: given["spec"].size]
    agrees(compiled, "block_forward", given)
