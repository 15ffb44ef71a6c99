"""Tests of the kernel that decodes a few rows through a whole model."""

import dataclasses
import threading

import numpy as np
import pytest
from rustgpt._ext.barrier import Barrier

from rustgpt.reference.arrays import Shard

from ..kernel_arguments import copied, exactly, make
from ..kernel_specs import LLAMA, spec_of

GPT2 = {"norm": "pre", "activation": "gelu", "attention_bias": True, "tied": True, "bias": False}
RUSTGPT = {"H": 1, "D": 6, "attention_projection": False}
GROUPS = LLAMA | {"n_kv_heads": 3}
# Each weight of the feed-forward layer, and the output's, is far for one thread: see few_rows.h.
FAR = {"H": 4, "D": 18, "F": 3701, "V": 3702, "L": 1} | LLAMA | {"n_kv_heads": 2}
SHAPES = {
    "default": {},
    "RustGPT": RUSTGPT,
    "GPT-2": GPT2,
    "no blocks": {"L": 0},
    "a last norm after norms": {"last_norm": True},
    "no last norm": {"norm": "pre", "last_norm": False},
    "one column": {"H": 1, "D": 1, "F": 1, "V": 1},
    "whole vectors": {"H": 2, "D": 32, "F": 128, "V": 160} | GPT2,
    "odd": {"H": 3, "D": 11, "F": 151, "V": 149},
    "odd and tied": {"H": 3, "D": 11, "F": 151, "V": 149} | GPT2,
    "tied with a bias": {"tied": True, "V": 61},
    "Llama": LLAMA,
    "Llama, three groups of heads": {"H": 9, "D": 6, "F": 37, "V": 31} | GROUPS,
    "Llama, as many key heads": {"H": 3, "D": 10, "F": 151, "V": 149} | LLAMA | {"n_kv_heads": 3},
    "Llama, one pair": {"H": 1, "D": 2, "F": 1, "V": 1} | LLAMA,
    "Llama, norms after": {"H": 4, "D": 2} | LLAMA | {"norm": "post", "last_norm": True},
    "Llama, far weights": FAR,
    "rotary, with layer norm and biases": {"D": 2, "positions": "rotary"} | GPT2,
    "few key heads, learned positions": {"H": 6, "n_kv_heads": 2, "attention_bias": True},
    "SwiGLU with biases": {"activation": "swiglu", "F": 35},
}
LLAMAS = [shape for shape in SHAPES if "Llama" in shape]


def run(kernels, given):
    """Return the logits and the cache of a call, which leaves what it is given as it is."""
    mine = copied(exactly(kernels, "decoder_forward", given))
    kernels.decoder_forward(**mine)
    return mine["logits"], mine["kv"]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 16, 37])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_rows_of_any_shape(compiled, arguments, agrees, dtype, shape, rows):
    given = arguments("decoder_forward", dtype, lengths=(rows,), starts=(3,), **SHAPES[shape])
    agrees(compiled, "decoder_forward", given, 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [2, 7, 16])
def test_a_row_has_the_same_bits_alone_and_among_others(compiled, arguments, dtype, shape, n):
    starts = [5 * i % 40 for i in range(n)]
    given = arguments("decoder_forward", dtype, lengths=(1,) * n, starts=starts, **SHAPES[shape])
    together, kv = run(compiled, given)
    for b in range(n):
        one = given | {
            "ids": given["ids"][b : b + 1],
            "offsets": given["offsets"][:2],
            "slots": given["slots"][b : b + 1],
            "starts": given["starts"][b : b + 1],
            "logits": given["logits"][b : b + 1],
        }
        alone, kv_of_one = run(compiled, one)
        np.testing.assert_array_equal(alone[0], together[b])
        slot, row = given["slots"][b], starts[b]
        np.testing.assert_array_equal(kv_of_one[:, slot, row], kv[:, slot, row])


@pytest.mark.parametrize("shape", ["default", "GPT-2", "odd and tied", *LLAMAS])
def test_rows_of_one_text_have_the_same_bits_one_after_the_other(compiled, arguments, shape):
    n = 16
    given = arguments("decoder_forward", "float32", lengths=(n,), starts=(2,), **SHAPES[shape])
    together, kv = run(compiled, given)
    rest = given | {"offsets": given["offsets"] // n, "kv": given["kv"].copy()}
    for i in range(n):
        one = rest | {"ids": given["ids"][i : i + 1], "starts": given["starts"] + np.int32(i)}
        alone, rest["kv"] = run(compiled, one)
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(rest["kv"], kv)


def test_a_cache_is_filled_to_its_last_row(compiled, arguments, agrees, dtype):
    given = arguments("decoder_forward", dtype, lengths=(2, 1), starts=(7, 8), capacity=9)
    agrees(compiled, "decoder_forward", given)


@pytest.mark.parametrize("norms", [("pre", "post"), ("post", "pre"), ("pre", "post", "pre")])
def test_blocks_may_differ(compiled, arguments, agrees, dtype, norms):
    given = arguments("decoder_forward", dtype, L=len(norms))
    blocks = tuple(spec_of(2, 3, 7, norm=norm) for norm in norms)
    given["spec"] = dataclasses.replace(given["spec"], blocks=blocks)
    agrees(compiled, "decoder_forward", given)


@pytest.fixture
def sums(compiled, arguments):
    """sums(dtype, stream, F, weight): a row of equal numbers, to which equal terms are added.

    The terms are 8 times 1 by the attention and F times `weight` by the feed-forward
    layer; every logit is the sum.
    """

    def run_sums(dtype, stream, F, weight):
        options = {"norm": "pre", "attention_bias": True, "last_norm": False, "bias": False}
        given = arguments("decoder_forward", dtype, lengths=(1,), H=2, D=4, F=F, L=1, **options)
        model, parameters = given["spec"], given["parameters"]
        parameters[:] = 0
        parts = model.unpacked(parameters)
        block = model.blocks[0].unpacked(parameters[model.firsts[0] :][: model.blocks[0].size])
        parts["tokens"][:], parts["output.weight"][:] = stream, 1 / 8
        block["attention.qkv_bias"][:], block["attention.projection_weight"][:] = 1, 1
        block["norm2.bias"][:], block["feed_forward.weight1"][:] = 1, 1 / 8
        block["feed_forward.weight2"][:] = weight
        return run(compiled, given | {"starts": given["starts"] * 0})[0]

    return run_sums


def test_small_terms_are_added_to_a_large_row_together(sums, dtype):
    """One by one they would be lost to rounding: beside 2^24, float32 does not see a 1."""
    np.testing.assert_array_equal(sums(dtype, 2**24, 1000, 1), 2**24 + 8 + 1000)


def test_many_terms_are_added_in_short_sums(sums):
    """One sum of 20,000 terms would be wrong by 2e-4 of itself."""
    np.testing.assert_allclose(sums("float32", 0, 20_000, 0.1), 8 + 2000, rtol=3e-5)


# Several threads


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        GPT2,
        {"H": 5, "D": 7, "F": 70, "V": 67},
        {"H": 3, "D": 1, "F": 3, "V": 2},
        {"H": 5, "D": 7, "F": 451, "V": 67} | GPT2,
        {"H": 6, "D": 2, "F": 33} | GROUPS,
        {"H": 9, "D": 6, "F": 151, "V": 67, "tied": True} | GROUPS,
        {"H": 6, "D": 2, "F": 33} | GROUPS | {"norm": "post"},
        FAR | {"n_kv_heads": 4},
    ],
)
def test_threads_that_divide_the_columns_give_the_same(compiled, arguments, dtype, shape, threads):
    given = arguments("decoder_forward", dtype, **{"H": 3, "L": 3} | shape)
    expected, expected_kv = run(compiled, given)
    barrier, K = Barrier(threads), given["spec"].n_kv_heads
    edges = np.array([K * i // threads for i in range(threads + 1)], np.int32)
    mine = copied(given | {"shard": Shard(0, edges, True, barrier)})
    mine = exactly(compiled, "decoder_forward", mine)
    errors = []

    def work(i):
        try:
            compiled.decoder_forward(**mine | {"shard": Shard(i, edges, True, barrier)})
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    np.testing.assert_array_equal(mine["logits"], expected)
    np.testing.assert_array_equal(mine["kv"], expected_kv)


# What is refused


def refusal(compiled, given, **change):
    given = exactly(compiled, "decoder_forward", given) | change
    with pytest.raises((ValueError, TypeError)) as found:
        compiled.decoder_forward(**given)
    assert np.isnan(given["logits"]).all()
    return str(found.value)


def test_a_spec_is_checked(compiled, arguments):
    given = arguments("decoder_forward", "float32")
    spec = given["spec"]

    def with_(**change):
        return refusal(compiled, given, spec=dataclasses.replace(spec, **change))

    for name in spec.offsets:
        assert name in with_(offsets=spec.offsets | {name: spec.size})
    assert "block 1" in with_(firsts=(1, spec.size - 1))
    assert "a place for each block" in with_(firsts=(1,))
    assert "columns, but block 0 has 4" in with_(blocks=(spec_of(2, 2, 7), *spec.blocks[1:]))
    assert "epsilon" in with_(epsilon=-1.0)
    assert "epsilon" in with_(epsilon=np.nan)
    assert "whole numbers" in with_(vocab_size=1.5)
    assert "spec" in refusal(compiled, given, spec=None)
    assert "DecoderSpec" in refusal(compiled, given, spec=spec.blocks[0])


def test_rows_must_fit(compiled, arguments):
    given = arguments("decoder_forward", "float32", capacity=6)
    assert "a context of 5" in refusal(
        compiled, given, spec=dataclasses.replace(given["spec"], max_seq_len=5),
        starts=np.array([1, 5], np.int32),
    )  # fmt: skip
    assert "room for 2 rows in a cache of 6" in refusal(
        compiled, given, starts=np.array([5, 4], np.int32)
    )
    assert "slots must differ" in refusal(compiled, given, slots=np.array([1, 1], np.int32))
    assert "slots[1] is 3" in refusal(compiled, given, slots=np.array([1, 3], np.int32))
    assert "slots must have shape (2,)" in refusal(compiled, given, slots=np.zeros(3, np.int32))
    assert "ids[0] is 5" in refusal(compiled, given, ids=np.array([5, 0, 0], np.int32))
    none = {"offsets": np.array([0, 0, 3], np.int32), "starts": np.zeros(2, np.int32)}
    assert "text 0 has none" in refusal(compiled, given, **none)
    assert "kv must have 2 blocks and 12 columns" in refusal(compiled, given, kv=given["kv"][:1])


def test_heads_must_be_those_that_threads_divide(compiled, arguments):
    given = make("decoder_forward", "float32")
    edges, barrier = np.array([0, 1, 3], np.int32), Barrier(2)
    assert "edges from 0" in refusal(compiled, given, shard=Shard(0, edges, True, barrier))
    blocks = (given["spec"].blocks[0], spec_of(1, 6, 7))
    spec = dataclasses.replace(given["spec"], blocks=blocks)
    edges = np.array([0, 1, 2], np.int32)
    shard = Shard(0, edges, True, barrier)
    given |= {"spec": spec, "shard": shard}
    assert "differ in their heads" in refusal(compiled, given)


def test_angles_must_be_those_of_the_positions(compiled, arguments):
    given = arguments("decoder_forward", "float32", **LLAMA)
    plain, table = arguments("decoder_forward", "float32"), given["table"]
    rows, D = table.shape
    assert "table must be given where positions are rotary" in refusal(compiled, given, table=None)
    assert "and else be None" in refusal(compiled, plain, table=table)
    # The longest text has as many rows as the angles, and the context is one longer.
    assert f"table must have shape (6, {D}), got (4, {D})" in refusal(
        compiled, given, table=table[:4]
    )
    for width in (D - 2, D - 1, D + 1):
        wrong = np.zeros((rows, width), np.float32)
        assert f"table must have shape (6, {D}), got ({rows}, {width})" in refusal(
            compiled, given, table=wrong
        )


def test_blocks_must_have_their_keys_in_one_cache(compiled, arguments):
    given = arguments("decoder_forward", "float32", H=6, n_kv_heads=2)
    spec = given["spec"]
    blocks = (spec.blocks[0], spec_of(6, 3, 7, n_kv_heads=3))
    assert "equally many columns of keys and values" in refusal(
        compiled, given, spec=dataclasses.replace(spec, blocks=blocks)
    )
    assert "kv must have 2 blocks and 12 columns, got 2 and 36" in refusal(
        compiled, given, kv=np.zeros((*given["kv"].shape[:3], 36), np.float32)
    )
