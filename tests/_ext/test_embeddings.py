"""Tests of the embedding look-up."""

import numpy as np
import pytest


@pytest.mark.parametrize("C", [1, 2, 7, 64, 65])
@pytest.mark.parametrize(("N", "V", "S"), [(0, 1, 1), (1, 1, 1), (4, 5, 6), (130, 7, 3)])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, V, S, C):
    sizes = {"N": N, "V": V, "S": S, "C": C}
    agrees(compiled, "embedding_forward", arguments("embedding_forward", dtype, **sizes))
    agrees(compiled, "embedding_backward", arguments("embedding_backward", dtype, **sizes))


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
    ids, positions = np.array([2, 0, 2], np.int32), np.array([0, 1, 1], np.int32)
    tokens = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    places = np.array([[10, 20], [30, 40]], dtype)
    out = np.empty((3, 2), dtype)
    kernels.embedding_forward(ids, positions, tokens, places, out)
    assert out.tolist() == [[15, 26], [31, 42], [35, 46]]
    dtokens, dplaces = np.zeros_like(tokens), np.ones_like(places)
    dout = np.array([[1, 1], [2, 0], [3, 0]], dtype)
    kernels.embedding_backward(dout, ids, positions, dtokens, dplaces)
    assert dtokens.tolist() == [[2, 0], [0, 0], [4, 1]]
    assert dplaces.tolist() == [[2, 2], [6, 1]]


def test_backward_twice_adds(kernels, arguments, dtype, close):
    given = arguments("embedding_backward", dtype)
    given["dtokens"][...] = given["dplaces"][...] = 0
    kernels.embedding_backward(**given)
    once = given["dtokens"].copy(), given["dplaces"].copy()
    kernels.embedding_backward(**given)
    close(given["dtokens"], 2 * once[0])
    close(given["dplaces"], 2 * once[1])


@pytest.mark.parametrize("name", ["embedding_forward", "embedding_backward"])
@pytest.mark.parametrize(("argument", "limit"), [("ids", 5), ("positions", 6)])
@pytest.mark.parametrize("at", [0, 3])
def test_an_index_outside_its_table_is_refused(compiled, arguments, name, argument, limit, at):
    for wrong in (-1, limit, 2**31 - 1, -(2**31)):
        given = arguments(name, "float32", V=5, S=6)
        before = {k: v.copy() for k, v in given.items()}
        given[argument][at] = wrong
        message = (
            rf"{name}: {argument}\[{at}\] is {wrong}, but must be at least 0 and below {limit}"
        )
        with pytest.raises(ValueError, match=message):
            getattr(compiled, name)(**given)
        for changed in ("dtokens", "dplaces"):
            if changed in given:
                np.testing.assert_array_equal(given[changed], before[changed])
