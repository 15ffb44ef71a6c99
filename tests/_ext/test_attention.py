"""Tests of causal multi-head self-attention."""

import itertools
import math

import numpy as np
import pytest

from ..kernel_arguments import offsets_of

# Up to 64 rows go through products in registers, 4 at a time and 16 keys wide; more are taken 64 at
# a time, 256 keys and 64 numbers of a head wide. When decoding, fewer than 48 new rows have loops.
LENGTHS = [
    (1,), (2,), (4,), (7,), (16,), (17,), (47,), (48,), (49,), (63,), (64,), (65,), (130,), (201,),
    (323,), (), (0,), (0, 3, 0, 65, 1, 0), (5, 48, 5),
]  # fmt: skip


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("H", "D"), [(1, 1), (2, 3), (3, 8), (4, 5), (2, 16), (1, 33), (1, 70)])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, lengths, H, D):
    sizes = {"lengths": lengths, "H": H, "D": D}
    agrees(compiled, "attention_forward", arguments("attention_forward", dtype, **sizes))
    agrees(compiled, "attention_backward", arguments("attention_backward", dtype, **sizes))


# Heads of queries, of keys and values, and columns of a head.
GROUPED = [(2, 1, 1), (4, 2, 3), (6, 2, 5), (5, 1, 2), (7, 7, 2), (3, 1, 33)]


@pytest.mark.parametrize("lengths", [(1,), (17,), (64,), (65,), (201,), (0,), (0, 3, 0, 65, 1)])
@pytest.mark.parametrize(("H", "K", "D"), GROUPED)
def test_fewer_key_heads_agree_with_the_twin(compiled, arguments, agrees, dtype, lengths, H, K, D):
    for kernel in ("attention_forward", "attention_backward"):
        agrees(compiled, kernel, arguments(kernel, dtype, lengths=lengths, H=H, D=D, K=K))


@pytest.mark.parametrize(
    ("lengths", "starts", "capacity"),
    [((1,), (5,), 6), ((48,), (3,), 51), ((1, 0, 2), (70, 3, 0), 71)],
)
@pytest.mark.parametrize(("H", "K", "D"), GROUPED)
def test_decode_with_fewer_key_heads_agrees_with_the_twin(
    compiled, arguments, agrees, dtype, lengths, starts, capacity, H, K, D
):
    sizes = {"lengths": lengths, "starts": starts, "capacity": capacity, "H": H, "D": D, "K": K}
    agrees(compiled, "attention_decode", arguments("attention_decode", dtype, **sizes))


@pytest.mark.parametrize(
    ("lengths", "starts", "capacity"),
    [
        *[((1,), (0,), 1), ((1,), (5,), 6), ((3,), (0,), 9), ((47,), (3,), 50), ((48,), (3,), 51)],
        *[((70,), (0,), 70), ((66,), (64,), 140)],
        *[
            ((), (), 4),
            ((0, 0), (4, 0), 4),
            ((1, 1, 1), (70, 0, 3), 71),
            ((48, 0, 2), (0, 9, 7), 60),
        ],
    ],
)
@pytest.mark.parametrize(("H", "D"), [(1, 1), (2, 3), (4, 5)])
def test_decode_agrees_with_its_twin(
    compiled, arguments, agrees, dtype, lengths, starts, capacity, H, D
):
    sizes = {"lengths": lengths, "starts": starts, "capacity": capacity, "H": H, "D": D}
    agrees(compiled, "attention_decode", arguments("attention_decode", dtype, **sizes))


@pytest.mark.parametrize(
    ("lengths", "H", "D", "K"),
    [
        ((3, 0, 1, 4), 2, 3, 2), ((66,), 1, 1, 1), ((1,), 1, 2, 1), ((5,), 3, 1, 3),
        ((11,), 1, 5, 1), ((3, 0, 1, 4), 4, 3, 2), ((66,), 3, 1, 1), ((5, 2), 6, 2, 3),
    ],
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(
    kernels, arguments, rng, same_gradient, lengths, H, D, K
):
    given = arguments("attention_forward", "float64", lengths=lengths, H=H, D=D, K=K)
    dout, qkv = rng.standard_normal(given["out"].shape), given["qkv"]

    def objective():
        kernels.attention_forward(**given)
        return (given["out"] * dout).sum()

    objective()
    dqkv, lse = np.full_like(qkv, np.nan), given["lse"].copy()
    kernels.attention_backward(dout, qkv, lse, given["offsets"], H, dqkv, given["scratch"], K)
    same_gradient(dqkv, objective, qkv)


def forward(kernels, qkv, lengths, H):
    """Return output and log of the softmax's denominator."""
    N, C = len(qkv), qkv.shape[1] // 3
    out, lse = np.full((N, C), np.nan, qkv.dtype), np.full((N, H), np.nan, qkv.dtype)
    scratch = np.full(kernels.attention_scratch_size(max(lengths), C // H), np.nan, qkv.dtype)
    kernels.attention_forward(qkv, offsets_of(lengths), H, out, lse, scratch)
    return out, lse


def test_two_rows_written_out(kernels, dtype):
    # One head of four columns: the second row's scores are 0 and 2 * 3 / sqrt(4) = 3.
    qkv = np.zeros((2, 12), dtype)
    qkv[1, 0], qkv[1, 4] = 2, 3
    qkv[:, 8] = 10, 20
    out, lse = forward(kernels, qkv, (2,), 1)
    share = math.exp(3) / (1 + math.exp(3))  # 0.9526
    assert out[:, 0].tolist() == pytest.approx([10, 10 + 10 * share])
    assert out[:, 1:].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert lse[:, 0].tolist() == pytest.approx([0, math.log(1 + math.exp(3))])


def test_two_heads_have_their_own_columns(kernels, dtype):
    # D = 1: queries are columns 0 and 1, keys 2 and 3, values 4 and 5.
    qkv = np.array([[0, 0, 0, 0, 1, 100], [1, 0, math.log(3), 9, 5, 300]], dtype)
    out, lse = forward(kernels, qkv, (2,), 2)
    # The first head's scores are 0 and log 3, the second's 0 and 0.
    assert out.tolist() == [pytest.approx([1, 100]), pytest.approx([1 / 4 + 15 / 4, 200])]
    assert lse.tolist() == [[0, 0], pytest.approx([math.log(4), math.log(2)])]


@pytest.mark.parametrize("T", [3, 70])
def test_fewer_key_heads_are_keys_and_values_that_are_repeated(kernels, rng, dtype, close, T):
    H, K, D = 6, 2, 3
    q, k, v = (rng.standard_normal((T, heads, D)).astype(dtype) for heads in (H, K, K))
    repeated = [np.repeat(part, H // K, axis=1) for part in (k, v)]  # each for three heads
    expected, lse = forward(kernels, np.hstack([x.reshape(T, -1) for x in (q, *repeated)]), (T,), H)
    qkv = np.hstack([x.reshape(T, -1) for x in (q, k, v)])
    out, found = np.full((T, H * D), np.nan, dtype), np.full((T, H), np.nan, dtype)
    scratch = np.full(kernels.attention_scratch_size(T, D), np.nan, dtype)
    kernels.attention_forward(qkv, offsets_of([T]), H, out, found, scratch, K)
    close(out, expected)
    close(found, lse)


@pytest.mark.parametrize("T", [1, 2, 64, 130])
def test_without_a_query_the_output_is_the_mean_of_the_values_so_far(kernels, rng, close, dtype, T):
    qkv = rng.standard_normal((T, 9)).astype(dtype)
    qkv[:, :3] = 0
    out, lse = forward(kernels, qkv, (T,), 1)
    seen = np.arange(1, T + 1)
    expected = np.cumsum(qkv[:, 6:], axis=0, dtype=np.float64) / seen[:, None]
    close(out, expected)
    close(lse[:, 0], np.log(seen))


@pytest.mark.parametrize(
    ("T", "t"), [(30, 0), (30, 7), (30, 29), *((130, t) for t in (0, 1, 40, 63, 64, 65, 129))]
)
def test_no_row_sees_a_later_one(kernels, rng, dtype, T, t):
    qkv = rng.standard_normal((T, 18)).astype(dtype)
    out, lse = forward(kernels, qkv, (T,), 2)
    qkv[t] += 1
    changed, changed_lse = forward(kernels, qkv, (T,), 2)
    np.testing.assert_array_equal(changed[:t], out[:t])
    np.testing.assert_array_equal(changed_lse[:t], lse[:t])
    assert (changed[t:] != out[t:]).any(axis=1).all()


@pytest.mark.parametrize(("T", "t"), [(30, 11), (130, 70)])
def test_no_gradient_reaches_a_later_row(kernels, arguments, dtype, T, t):
    given = arguments("attention_backward", dtype, lengths=(T,), H=2, D=3)
    given["dout"][t:] = 0
    kernels.attention_backward(**given)
    assert not given["dqkv"][t:].any()
    assert given["dqkv"][:t].any(axis=1).all()


def test_no_sequence_sees_another(kernels, rng, close, dtype):
    lengths, H = (3, 0, 66, 2), 2
    qkv = rng.standard_normal((71, 18)).astype(dtype)
    together, _ = forward(kernels, qkv, lengths, H)
    for first, end in [(0, 3), (3, 69), (69, 71)]:
        alone, _ = forward(kernels, qkv[first:end].copy(), (end - first,), H)
        close(together[first:end], alone)


@pytest.mark.parametrize("T", [20, 70])
def test_scores_of_thousands_do_not_overflow(kernels, arguments, dtype, T):
    given = arguments("attention_forward", dtype, lengths=(T,), H=2, D=4)
    given["qkv"] *= 100
    kernels.attention_forward(**given)
    assert np.isfinite(given["out"]).all()
    assert np.isfinite(given["lse"]).all()
    assert (np.abs(given["out"]) <= np.abs(given["qkv"][:, 16:]).max()).all()
    dqkv = np.full_like(given["qkv"], np.nan)
    kernels.attention_backward(
        given["out"], given["qkv"], given["lse"], given["offsets"], 2, dqkv, given["scratch"]
    )
    assert np.isfinite(dqkv).all()


@pytest.mark.parametrize("pieces", [(1,) * 70, (5, 1, 1), (64, 1), (63, 4, 66)])
def test_decode_piece_by_piece_is_forward(kernels, rng, dtype, close, pieces):
    T, H, C = sum(pieces), 2, 6
    qkv = rng.standard_normal((T, 3 * C)).astype(dtype)
    expected, _ = forward(kernels, qkv, (T,), H)
    kv = np.full((3, T + 3, 2 * C), np.nan, dtype)  # three slots
    scratch = np.full(kernels.attention_scratch_size(T, C // H), np.nan, dtype)
    out, start = np.full((T, C), np.nan, dtype), 0
    for n in pieces:
        rows, (slot, before) = slice(start, start + n), np.array([[1], [start]], np.int32)
        kernels.attention_decode(
            qkv[rows], offsets_of([n]), H, kv, slot, before, out[rows], scratch
        )
        start += n
    close(out, expected)
    np.testing.assert_array_equal(kv[1, :T], qkv[:, C:])
    kv[1, :T] = np.nan
    assert np.isnan(kv).all()


def test_texts_go_on_each_in_its_slot(kernels, dtype, rng, close):
    H, C = 2, 6
    texts = [rng.standard_normal((T, 3 * C)).astype(dtype) for T in (9, 4, 6)]
    expected = [forward(kernels, qkv, (len(qkv),), H)[0] for qkv in texts]
    kv = np.full((5, 9, 2 * C), np.nan, dtype)
    scratch = np.full(kernels.attention_scratch_size(9, C // H), np.nan, dtype)
    slots, done = np.array([4, 0, 2], np.int32), np.zeros(3, np.int32)
    for new in [(3, 0, 1), (1, 1, 1), (0, 3, 0), (5, 0, 4)]:
        order = [1, 2, 0]
        rows = [texts[t][done[t] : done[t] + new[t]] for t in order]
        out = np.full((sum(new), C), np.nan, dtype)
        kernels.attention_decode(
            np.concatenate(rows), offsets_of([new[t] for t in order]), H, kv,
            slots[order], done[order], out, scratch,
        )  # fmt: skip
        close(out, np.concatenate([expected[t][done[t] : done[t] + new[t]] for t in order]))
        done += np.array(new, np.int32)
    assert done.tolist() == [9, 4, 6]


@pytest.mark.parametrize(("T", "D"), [(1, 65), (48, 3), (63, 33), (64, 33), (65, 3), (130, 1)])
def test_as_much_scratch_as_is_asked_for_is_enough(compiled, arguments, guarded, dtype, T, D):
    scratch = guarded(np.empty(compiled.attention_scratch_size(T, D), dtype))
    for kernel in ("attention_forward", "attention_backward"):
        given = arguments(kernel, dtype, lengths=(T,), H=1, D=D) | {"scratch": scratch}
        getattr(compiled, kernel)(**given)  # a step outside ends the process
    given = arguments("attention_decode", dtype, lengths=(T,), starts=(0,), H=1, D=D)
    compiled.attention_decode(**given | {"scratch": scratch})


def test_scratch_grows_with_the_longest_sequence(compiled):
    sizes = [compiled.attention_scratch_size(T, 32) for T in (0, 1, 64, 1000)]
    assert all(small < large for small, large in itertools.pairwise(sizes))
    assert sizes[3] < 1000 * 1000 / 2  # never the scores of all rows
