"""Tests of softmax and cross-entropy."""

import math

import numpy as np
import pytest

SHAPES = [(1, 1), (3, 1), (4, 2), (7, 3), (5, 64), (65, 130), (2, 1009), (0, 5)]


@pytest.mark.parametrize(("N", "V"), SHAPES)
@pytest.mark.parametrize("max_norm", [np.inf, 1e3, 0.01])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, V, max_norm):
    agrees(compiled, "softmax", arguments("softmax", dtype, N=N, F=V))
    given = arguments("cross_entropy", dtype, N=N, V=V, max_norm=max_norm)
    agrees(compiled, "cross_entropy", given)


@pytest.mark.parametrize(("N", "V"), [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_are_those_of_finite_differences(kernels, arguments, same_gradient, N, V, scale):
    given = arguments("cross_entropy", "float64", N=N, V=V, scale=scale)
    given["targets"][0] = -1 if N > 1 else 0

    def objective():
        kernels.cross_entropy(**given)
        return scale * given["losses"].sum()

    objective()
    same_gradient(given["dlogits"].copy(), objective, given["logits"])


def loss(kernels, logits, targets, scale=1.0, max_norm=math.inf, dtype="float64"):
    logits = np.array(logits, dtype)
    losses, dlogits = np.full(len(logits), np.nan, dtype), np.full_like(logits, np.nan)
    kernels.cross_entropy(logits, np.array(targets, np.int32), scale, max_norm, losses, dlogits)
    return losses, dlogits


def test_softmax_written_out(kernels, dtype):
    x = np.array([[0, math.log(2), math.log(5)], [7, 7, 7]], dtype)
    out = np.empty_like(x)
    kernels.softmax(x, out)
    assert out[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert out[1].tolist() == pytest.approx([1 / 3] * 3)


def test_cross_entropy_written_out(kernels, dtype):
    logits = [[0, math.log(3)], [math.log(4), 0]]
    losses, dlogits = loss(kernels, logits, [0, 0], scale=0.5, dtype=dtype)
    assert losses.tolist() == pytest.approx([math.log(4), math.log(5 / 4)])  # not scaled
    assert dlogits[0].tolist() == pytest.approx([-3 / 8, 3 / 8])
    assert dlogits[1].tolist() == pytest.approx([-1 / 10, 1 / 10])


def test_one_class_has_neither_loss_nor_gradient(kernels, dtype):
    losses, dlogits = loss(kernels, [[5], [-1e4], [0]], [0, 0, -1], dtype=dtype)
    assert losses.tolist() == [0, 0, 0]
    assert dlogits.tolist() == [[0], [0], [0]]


def test_a_row_without_target_counts_nothing(kernels, arguments, dtype, close):
    given = arguments("cross_entropy", dtype, N=5, V=7)
    given["targets"][:] = [3, -1, 0, -1, 6]
    kernels.cross_entropy(**given)
    assert given["losses"][[1, 3]].tolist() == [0, 0]
    assert not given["dlogits"][[1, 3]].any()
    rows = [0, 2, 4]
    losses, dlogits = loss(kernels, given["logits"][rows], [3, 0, 6], given["scale"], dtype=dtype)
    close(given["losses"][rows], losses)
    close(given["dlogits"][rows], dlogits)


def test_clipping_shortens_the_gradient_of_all_rows_to_the_norm(kernels, arguments, dtype, close):
    given = arguments("cross_entropy", dtype, N=6, V=9)
    kernels.cross_entropy(**given)
    whole, norm = given["dlogits"].copy(), float(np.linalg.norm(given["dlogits"]))
    kernels.cross_entropy(**given | {"max_norm": 2 * norm})
    close(given["dlogits"], whole)
    assert norm < 0.9  # where a norm is more than its square
    for part in (0.9, 0.25):
        kernels.cross_entropy(**given | {"max_norm": part * norm})
        close(given["dlogits"], part * whole)


def test_logits_of_ten_thousand(kernels, dtype):
    logits = [[1e4, 0, -1e4], [1e4, 0, -1e4], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]]
    losses, dlogits = loss(kernels, logits, [0, 2, 1, 0], dtype=dtype)
    assert losses.tolist() == pytest.approx([0, 2e4, math.log(2), math.log(3)], rel=1e-6)
    expected = [0, 0, 0], [1, 0, -1], [1 / 2, -1 / 2, 0], [-2 / 3, 1 / 3, 1 / 3]
    np.testing.assert_allclose(dlogits, expected, atol=1e-6)
    out = np.empty((4, 3), dtype)
    kernels.softmax(np.array(logits, dtype), out)
    np.testing.assert_allclose(out.sum(axis=1), 1, atol=1e-6)


def test_gradient_may_take_the_place_of_the_logits(kernels, arguments, dtype):
    given = arguments("cross_entropy", dtype, N=9, V=17)
    kernels.cross_entropy(**given)
    losses, dlogits = given["losses"].copy(), given["dlogits"].copy()
    kernels.cross_entropy(**given | {"dlogits": given["logits"]})
    np.testing.assert_array_equal(given["losses"], losses)
    np.testing.assert_array_equal(given["logits"], dlogits)
    given = arguments("softmax", dtype, N=9, F=17)
    kernels.softmax(given["x"], given["out"])
    kernels.softmax(given["x"], given["x"])
    np.testing.assert_array_equal(given["x"], given["out"])


def test_probabilities_sum_to_one_and_gradients_to_zero(kernels, arguments, close, dtype):
    given = arguments("softmax", dtype, N=20, F=533)
    given["x"] *= 10
    kernels.softmax(**given)
    assert (given["out"] >= 0).all()
    close(given["out"].sum(axis=1, dtype=np.float64).astype(dtype), np.ones(20))
    given = arguments("cross_entropy", dtype, N=20, V=533)
    kernels.cross_entropy(**given)
    sums = given["dlogits"].sum(axis=1, dtype=np.float64).astype(dtype)
    close(sums, np.zeros(20), scale=given["scale"])  # all but one of the terms sum to so much


def test_exponential_is_exact_to_its_last_digits(kernels, dtype):
    x = np.linspace(-85, 0, 100_001).astype(dtype).reshape(-1, 1)
    pairs = np.concatenate([x, np.zeros_like(x)], axis=1)  # softmax gives e / (1 + e)
    out = np.empty_like(pairs)
    kernels.softmax(pairs, out)
    e = np.exp(x[:, 0].astype(np.float64))
    error = np.abs(out[:, 0] / (e / (1 + e)) - 1).max()
    assert error <= {"float32": 3e-7, "float64": 1e-15}[dtype]


def test_a_difference_beyond_the_exponents_range_gives_next_to_nothing(kernels, dtype):
    x = np.array([[0, -88, -1e3, -3e38], [0, -np.inf, -np.inf, -np.inf]], dtype)
    out = np.empty_like(x)
    kernels.softmax(x, out)
    np.testing.assert_allclose(out, [[1, 0, 0, 0]] * 2, atol=1e-37)


def test_nan_fills_its_row_and_no_other(kernels, arguments, dtype):
    given = arguments("softmax", dtype, N=4, F=9)
    given["x"][2, 5] = np.nan
    kernels.softmax(**given)
    assert np.isnan(given["out"]).all(axis=1).tolist() == [False, False, True, False]
    assert np.isfinite(given["out"][[0, 1, 3]]).all()
    given = arguments("cross_entropy", dtype, N=4, V=9)
    given["targets"][:] = 0
    given["logits"][2, 5] = np.nan
    kernels.cross_entropy(**given)
    assert np.isnan(given["losses"]).tolist() == [False, False, True, False]


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_norm_must_be_above_zero(compiled, max_norm):
    with pytest.raises(ValueError, match=r"cross_entropy: max_norm must be above 0"):
        loss(compiled, [[0, 1]], [0], max_norm=max_norm)


# With the product that makes the logits


@pytest.mark.parametrize(
    ("N", "C", "V"), [(1, 1, 1), (5, 3, 7), (64, 2, 3), (131, 7, 65), (0, 3, 4), (5, 0, 7)]
)
@pytest.mark.parametrize("R", [1, 3, 64, 200])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "how",
    [{}, {"bias": False}, {"gradient": False}, {"accumulate": False, "bias": False},
     {"accumulate": False}],
)  # fmt: skip
def test_linear_cross_entropy_agrees_with_its_twin(
    compiled, arguments, agrees, dtype, N, C, V, R, transposed, how
):
    sizes = {"N": N, "C": C, "V": V, "R": R, "transposed": transposed}
    given = arguments("linear_cross_entropy", dtype, **sizes, **how)
    agrees(compiled, "linear_cross_entropy", given)


def test_linear_cross_entropy_clips_each_block(compiled, arguments, agrees, dtype):
    given = arguments("linear_cross_entropy", dtype, N=9, R=4, max_norm=0.1)
    agrees(compiled, "linear_cross_entropy", given)


def test_linear_cross_entropys_gradients_are_those_of_finite_differences(
    kernels, arguments, same_gradient
):
    given = arguments("linear_cross_entropy", "float64")
    start = {name: given[name].copy() for name in ("dweight", "dbias")}

    def objective():
        kernels.linear_cross_entropy(**given)
        return 0.25 * given["losses"].sum()

    objective()
    found = {"x": given["dx"].copy()}
    found |= {name[1:]: given[name] - kept for name, kept in start.items()}
    for name, gradient in found.items():
        same_gradient(gradient, objective, given[name])


@pytest.mark.parametrize("missing", ["dx", "dweight"])
def test_a_gradient_is_wanted_whole_or_not_at_all(compiled, arguments, missing):
    given = arguments("linear_cross_entropy", "float32") | {missing: None}
    with pytest.raises(ValueError, match="dx and dweight must both be given"):
        compiled.linear_cross_entropy(**given)


def test_scratch_must_have_a_row(compiled, arguments):
    given = arguments("linear_cross_entropy", "float32") | {"scratch": np.empty((0, 4), "f")}
    with pytest.raises(ValueError, match="scratch must have at least one row"):
        compiled.linear_cross_entropy(**given)
