"""Tests of rotary positions, whose kernel is beside the embedding look-up."""

import math

import numpy as np
import pytest

from ..kernel_arguments import copied, offsets_of

LENGTHS = [(), (0,), (1,), (7,), (3, 0, 1), (5, 65)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("H", "D"), [(1, 2), (2, 4), (3, 6), (5, 34)])
@pytest.mark.parametrize("back", [False, True])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, lengths, H, D, back):
    for starts in (None, [9, 0, 4][: len(lengths)]):
        sizes = {"lengths": lengths, "H": H, "D": D, "back": back, "starts": starts}
        agrees(compiled, "rotary", arguments("rotary", dtype, **sizes))


def test_written_out(kernels, dtype):
    # Two heads of four columns; the third column of each is that of the first's pair.
    x = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 2, dtype)
    c, s = math.cos(0.5), math.sin(0.5)
    table = np.array([[1, 1, 0, 0], [c, 0, s, 1]], dtype)
    kernels.rotary(x, offsets_of([2]), table, 2)
    assert x[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    expected = [c - 3 * s, -4, 3 * c + s, 2, 5 * c - 7 * s, -8, 7 * c + 5 * s, 6, 9]
    assert x[1].tolist() == pytest.approx(expected)


def test_every_text_begins_at_its_own_position(kernels, rng, dtype, close):
    table = rng.standard_normal((9, 4)).astype(dtype)
    x = rng.standard_normal((6, 4)).astype(dtype)
    found, expected = x.copy(), x.copy()
    kernels.rotary(found, offsets_of([2, 0, 1, 3]), table, 1, False, np.array([4, 9, 0, 6], "i4"))
    for row, position in enumerate([4, 5, 0, 6, 7, 8]):
        one = expected[row : row + 1]
        kernels.rotary(one, offsets_of([1]), table[position : position + 1].copy(), 1)
    close(found, expected)


def test_back_is_the_gradient(kernels, arguments, rng, same_gradient):
    given = arguments("rotary", "float64", lengths=(3, 2), H=2, D=4)
    x, dout = given["x"], rng.standard_normal(given["x"].shape)

    def objective():
        turned = copied(given)
        kernels.rotary(**turned)
        return (turned["x"] * dout).sum()

    dx = dout.copy()
    kernels.rotary(**given | {"x": dx, "back": True})
    same_gradient(dx, objective, x)


def test_a_product_depends_on_the_distance_alone(kernels, rng, close):
    frequencies = np.array([1.0, 0.1, 0.003])
    angles = np.arange(50)[:, None] * frequencies
    table = np.hstack([np.cos(angles), np.sin(angles)])
    query, key = rng.standard_normal((2, 1, 6))

    def product(t, s):
        rows = np.vstack([query, key])
        kernels.rotary(rows, offsets_of([1, 1]), table, 1, False, np.array([t, s], np.int32))
        return rows[0] @ rows[1]

    for t, s in ((0, 0), (5, 2), (30, 11)):
        close(product(t, s), product(t + 19, s + 19))
    assert abs(product(5, 2) - product(6, 2)) > 1e-3


@pytest.mark.parametrize(("change", "message"), [
    ({"n_heads": 3}, "table must have an even number of columns, and x 3 times as many"),
    ({"n_heads": -1}, "table must have an even number of columns"),
    ({"n_heads": 2**61}, "table must have an even number of columns"),
    ({"starts": np.array([1, 0, 0], np.int32)}, "a row for each of 3 positions, got 2"),
    ({"starts": np.array([0, -1, 0], np.int32)}, r"starts\[1\] is -1"),
    ({"starts": np.array([0, 2**31 - 1, 0], np.int32)}, r"starts\[1\] is 2147483647"),
    ({"starts": np.zeros(2, np.int32)}, r"starts must have shape \(3,\)"),
])  # fmt: skip
def test_nothing_outside_the_table_is_read(compiled, arguments, change, message):
    given = arguments("rotary", "float32")
    before = given["x"].copy()
    with pytest.raises(ValueError, match=f"rotary: .*{message}"):
        compiled.rotary(**given | change)
    np.testing.assert_array_equal(given["x"], before)
