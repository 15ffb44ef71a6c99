"""Tests of the embedding look-up."""

import copy

import numpy as np
import pytest


@pytest.mark.parametrize("C", [1, 2, 7, 64, 65])
@pytest.mark.parametrize(("N", "V", "S"), [(0, 1, 1), (1, 1, 1), (4, 5, 6), (130, 7, 3)])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, N, V, S, C):
    sizes = {"N": N, "V": V, "S": S, "C": C}
    for start in {0, S // 2}:
        given = arguments("embedding_forward", dtype, **sizes, start=start)
        agrees(compiled, "embedding_forward", given)
    agrees(compiled, "embedding_backward", arguments("embedding_backward", dtype, **sizes))


def test_gradients_are_those_of_finite_differences(kernels, arguments, rng, same_gradient):
    given = arguments("embedding_forward", "float64", N=9)
    dout = rng.standard_normal(given["out"].shape)

    def objective():
        kernels.embedding_forward(**given)
        return (given["out"] * dout).sum()

    dtokens, dplaces = np.zeros_like(given["tokens"]), np.zeros_like(given["places"])
    kernels.embedding_backward(dout, given["ids"], given["offsets"], dtokens, dplaces)
    same_gradient(dtokens, objective, given["tokens"])
    same_gradient(dplaces, objective, given["places"])


def test_written_out(kernels, dtype):
    ids, offsets = np.array([2, 0, 2], np.int32), np.array([0, 0, 2, 2, 3], np.int32)
    tokens = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    places = np.array([[10, 20], [30, 40], [50, 60]], dtype)
    out = np.empty((3, 2), dtype)
    kernels.embedding_forward(ids, offsets, 0, tokens, places, out)
    assert out.tolist() == [[15, 26], [31, 42], [15, 26]]
    kernels.embedding_forward(ids, offsets, 1, tokens, places, out)
    assert out.tolist() == [[35, 46], [51, 62], [35, 46]]
    dtokens, dplaces = np.zeros_like(tokens), np.ones_like(places)
    dout = np.array([[1, 1], [2, 0], [3, 0]], dtype)
    kernels.embedding_backward(dout, ids, offsets, dtokens, dplaces)
    assert dtokens.tolist() == [[2, 0], [0, 0], [4, 1]]
    assert dplaces.tolist() == [[5, 2], [3, 1], [1, 1]]


def test_backward_twice_adds(kernels, arguments, dtype, close):
    given = arguments("embedding_backward", dtype)
    given["dtokens"][...] = given["dplaces"][...] = 0
    kernels.embedding_backward(**given)
    once = given["dtokens"].copy(), given["dplaces"].copy()
    kernels.embedding_backward(**given)
    close(given["dtokens"], 2 * once[0])
    close(given["dplaces"], 2 * once[1])


@pytest.mark.parametrize("name", ["embedding_forward", "embedding_backward"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_token_outside_its_table_is_refused(compiled, arguments, name, at):
    for wrong in (-1, 5, 2**31 - 1, -(2**31)):
        given = arguments(name, "float32", V=5, S=6)
        before = copy.deepcopy(given)
        given["ids"][at] = wrong
        message = rf"{name}: ids\[{at}\] is {wrong}, but must be at least 0 and below 5"
        with pytest.raises(ValueError, match=message):
            getattr(compiled, name)(**given)
        for changed in ("dtokens", "dplaces"):
            if changed in given:
                np.testing.assert_array_equal(given[changed], before[changed])


@pytest.mark.parametrize("name", ["embedding_forward", "embedding_backward"])
def test_a_text_longer_than_the_table_of_places_is_refused(compiled, arguments, name):
    given = arguments(name, "float32", N=7, S=6)
    getattr(compiled, name)(**given)
    given["offsets"] = np.array([0, 7], np.int32)
    with pytest.raises(ValueError, match=f"{name}: places must have a row for each of 7 positions"):
        getattr(compiled, name)(**given)


@pytest.mark.parametrize("start", [-1, 3, 7, 2**62, -(2**62)])
def test_a_start_that_leaves_too_few_places_is_refused(compiled, arguments, start):
    given = arguments("embedding_forward", "float32", N=4, S=6)
    compiled.embedding_forward(**given | {"start": 2})
    with pytest.raises(ValueError, match=f"4 positions from {start} on, got 6"):
        compiled.embedding_forward(**given | {"start": start})
