"""Tests of the embedding look-up."""

import numpy as np
import pytest

from ..kernel_arguments import copied


@pytest.mark.parametrize("C", [1, 2, 7, 64, 65])
@pytest.mark.parametrize(("N", "V", "S"), [(0, 1, 1), (1, 1, 1), (4, 5, 6), (130, 7, 3)])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, V, S, C):
    sizes = {"N": N, "V": V, "S": S, "C": C}
    for kernel in ("embedding_forward", "embedding_backward"):
        agrees(compiled, kernel, arguments(kernel, dtype, **sizes))
        agrees(compiled, kernel, arguments(kernel, dtype, **sizes | {"S": 0}))  # no positions


def test_gradients_are_those_of_finite_differences(kernels, arguments, rng, same_gradient):
    given = arguments("embedding_forward", "float64", N=9)
    dout = rng.standard_normal(given["out"].shape)

    def objective():
        kernels.embedding_forward(**given)
        return (given["out"] * dout).sum()

    dtokens, dplaces = np.zeros_like(given["tokens"]), np.zeros_like(given["places"])
    kernels.embedding_backward(dout, given["ids"], given["positions"], dtokens, dplaces)
    same_gradient(dtokens, objective, given["tokens"])
    same_gradient(dplaces, objective, given["places"])


def test_written_out(kernels, dtype):
    ids, positions = np.array([2, 0, 2], np.int32), np.array([0, 2, 0], np.int32)
    tokens = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    places = np.array([[10, 20], [30, 40], [50, 60]], dtype)
    out = np.empty((3, 2), dtype)
    kernels.embedding_forward(ids, positions, tokens, places, out)
    assert out.tolist() == [[15, 26], [51, 62], [15, 26]]
    dtokens, dplaces = np.zeros_like(tokens), np.ones_like(places)
    dout = np.array([[1, 1], [2, 0], [3, 0]], dtype)
    kernels.embedding_backward(dout, ids, positions, dtokens, dplaces)
    assert dtokens.tolist() == [[2, 0], [0, 0], [4, 1]]
    assert dplaces.tolist() == [[5, 2], [1, 1], [3, 1]]


def test_backward_twice_adds(kernels, arguments, dtype, close):
    given = arguments("embedding_backward", dtype)
    given["dtokens"][...] = given["dplaces"][...] = 0
    kernels.embedding_backward(**given)
    once = given["dtokens"].copy(), given["dplaces"].copy()
    kernels.embedding_backward(**given)
    close(given["dtokens"], 2 * once[0])
    close(given["dplaces"], 2 * once[1])


@pytest.mark.parametrize("kernel", ["embedding_forward", "embedding_backward"])
@pytest.mark.parametrize(("argument", "limit"), [("ids", 5), ("positions", 6)])
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("wrong", [-1, 5, 6, 2**31 - 1, -(2**31)])
def test_an_index_outside_its_table_is_refused(
    compiled, arguments, kernel, argument, limit, at, wrong
):
    given = arguments(kernel, "float32", V=5, S=limit)  # so many tokens or positions, or more
    before = copied(given)
    given[argument][at] = wrong = max(wrong, limit) if wrong > 0 else wrong
    message = rf"{kernel}: {argument}\[{at}\] is {wrong}, but must be at least 0 and below {limit}"
    with pytest.raises(ValueError, match=message):
        getattr(compiled, kernel)(**given)
    for name in before.keys() - {argument}:
        np.testing.assert_array_equal(given[name], before[name])
