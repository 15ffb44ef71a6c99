"""Tests of the kernels in plain NumPy: against torch, and against numbers written out."""

import numpy as np
import pytest

import rustgpt.reference
from rustgpt.reference import kernels
from rustgpt.reference.linear import rounded

from ..kernel_arguments import CALLS, kernel_of


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def tensor(torch, rng):
    """tensor(*shape): random numbers in float64, of which torch keeps the gradient."""
    return lambda *shape: torch.tensor(rng.standard_normal(shape), requires_grad=True)


def arrays(*tensors):
    return [t.detach().numpy().copy() for t in tensors]


def waves(*shape):
    """The same numbers on every machine: 2 sin(1), 2 sin(2) ... and what weighs an output."""
    steps = np.arange(np.prod(shape))
    return 2 * np.sin(1.0 + steps).reshape(shape)


def weights(*shape):
    return np.cos(np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# Against torch


@pytest.mark.parametrize("transposed", [False, True])
def test_linear_is_torchs(torch, tensor, reference, transposed):
    x, weight, bias, dout = tensor(5, 3), tensor(4, 3), tensor(4), tensor(5, 4)
    expected = torch.nn.functional.linear(x, weight, bias)
    expected.backward(dout)
    ax, aw, ab, adout, aexpected = arrays(x, weight, bias, dout, expected)
    stored = aw if transposed else aw.T.copy()
    out, dx = np.empty((5, 4)), np.empty((5, 3))
    dweight, dbias = np.zeros_like(stored), np.zeros(4)
    reference.linear_forward(ax, stored, ab, out, transposed)
    reference.linear_backward(adout, ax, stored, dx, dweight, dbias, transposed)
    same(out, aexpected)
    same(dx, x.grad)
    same(dweight if transposed else dweight.T, weight.grad)
    same(dbias, bias.grad)


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_activations_are_torchs(torch, tensor, reference, name):
    x, dout = tensor(6, 7), tensor(6, 7)
    options = {"approximate": "tanh"} if name == "gelu" else {}
    expected = getattr(torch.nn.functional, name)(x, **options)
    expected.backward(dout)
    ax, adout = arrays(x, dout)
    out, dx = np.empty_like(ax), np.empty_like(ax)
    getattr(reference, f"{name}_forward")(ax, out)
    getattr(reference, f"{name}_backward")(adout, ax, dx)
    same(out, expected.detach())
    same(dx, x.grad)


@pytest.mark.parametrize("epsilon", [1e-5, 0.5])
def test_layer_norm_is_torchs(torch, tensor, reference, epsilon):
    x, weight, bias, dout = tensor(5, 7), tensor(7), tensor(7), tensor(5, 7)
    expected = torch.nn.functional.layer_norm(x, (7,), weight, bias, epsilon)
    expected.backward(dout)
    ax, aw, ab, adout = arrays(x, weight, bias, dout)
    out, mean, rstd = np.empty((5, 7)), np.empty(5), np.empty(5)
    reference.layer_norm_forward(ax, aw, ab, epsilon, out, mean, rstd)
    dx, dweight, dbias = np.empty((5, 7)), np.zeros(7), np.zeros(7)
    reference.layer_norm_backward(adout, ax, aw, mean, rstd, dx, dweight, dbias)
    same(out, expected.detach())
    same(dx, x.grad)
    same(dweight, weight.grad)
    same(dbias, bias.grad)


def test_attention_is_torchs(torch, tensor, reference):
    lengths, H, D = (4, 0, 1, 7), 3, 5
    N, C = sum(lengths), H * D
    qkv, dout = tensor(N, 3 * C), tensor(N, C)
    parts = []
    for rows in qkv.split(lengths):
        q, k, v = (part.reshape(len(rows), H, D).transpose(0, 1) for part in rows.split(C, dim=1))
        one = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        parts.append(one.transpose(0, 1).reshape(len(rows), C))
    expected = torch.cat(parts)
    expected.backward(dout)
    aqkv, adout = arrays(qkv, dout)
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    out, lse, dqkv, scratch = np.empty((N, C)), np.empty((N, H)), np.empty_like(aqkv), np.empty(0)
    reference.attention_forward(aqkv, offsets, H, out, lse, scratch)
    reference.attention_backward(adout, aqkv, lse, offsets, H, dqkv, scratch)
    same(out, expected.detach())
    same(dqkv, qkv.grad)


def test_cross_entropy_is_torchs(torch, tensor, reference):
    logits, targets = tensor(6, 9), np.array([0, 8, -1, 3, 3, -1], np.int32)
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets).long(), ignore_index=-1, reduction="none"
    )
    (0.25 * expected.sum()).backward()
    (alogits,) = arrays(logits)
    losses, dlogits, out = np.empty(6), np.empty((6, 9)), np.empty((6, 9))
    reference.cross_entropy(alogits, targets, 0.25, np.inf, losses, dlogits)
    same(losses, expected.detach())
    same(dlogits, logits.grad)
    reference.softmax(alogits, out)
    same(out, torch.softmax(logits, dim=1).detach())
    reference.cross_entropy(alogits, targets, 0.25, 0.1, losses, dlogits)
    torch.nn.utils.clip_grad_norm_([logits], 0.1)
    np.testing.assert_allclose(dlogits, logits.grad, rtol=1e-5)


def test_embedding_is_torchs(torch, tensor, reference):
    tokens, places, dout = tensor(5, 3), tensor(4, 3), tensor(6, 3)
    ids, positions = np.array([4, 0, 4, 2, 0, 4], np.int32), np.array([0, 1, 2, 3, 0, 1], np.int32)
    lookup = torch.nn.functional.embedding
    expected = lookup(torch.tensor(ids), tokens) + lookup(torch.tensor(positions), places)
    expected.backward(dout)
    atokens, aplaces, adout = arrays(tokens, places, dout)
    out, dtokens, dplaces = np.empty((6, 3)), np.zeros((5, 3)), np.zeros((4, 3))
    reference.embedding_forward(ids, positions, atokens, aplaces, out)
    reference.embedding_backward(adout, ids, positions, dtokens, dplaces)
    same(out, expected.detach())
    same(dtokens, tokens.grad)
    same(dplaces, places.grad)


# Against numbers that torch gave once, in float64


def test_attention_written_out(reference):
    qkv, offsets = waves(3, 12), np.array([0, 3], np.int32)
    out, lse, dqkv = np.empty((3, 4)), np.empty((3, 2)), np.empty((3, 12))
    reference.attention_forward(qkv, offsets, 2, out, lse, np.empty(0))
    reference.attention_backward(weights(3, 4), qkv, lse, offsets, 2, dqkv, np.empty(0))
    expected = [
        [0.82423697, -1.08804222, -1.99998041, -1.07314584],
        [1.00264231, -0.86314519, -1.90920989, -1.29097026],
        [1.16843682, -0.57125263, -1.90627018, -1.23994152],
    ]
    np.testing.assert_allclose(out, expected, atol=1e-8)
    queries = [
        [0, 0, 0, 0],
        [0.00014592, 0.02782359, 0.03895469, 0.00586983],
        [-0.08319974, 0.29041912, 0.06641399, 0.02101967],
    ]
    keys = [
        [-0.03786781, 0.41946075, 0.13383286, 0.00164407],
        [0.00036626, -0.20339161, -0.09595593, 0.00908506],
        [0.03750156, -0.21606914, -0.03787694, -0.01072913],
    ]
    values = [
        [0.39019928, 0.17886535, -0.39501472, -0.45514681],
        [-0.17118627, -0.15233296, 0.12654094, 0.2233421],
        [-0.01815666, -0.11369816, -0.0265743, 0.00014017],
    ]
    np.testing.assert_allclose(dqkv, np.hstack([queries, keys, values]), atol=1e-8)


def test_layer_norm_written_out(reference):
    x, dout = waves(2, 4), weights(2, 4)
    weight, bias = np.array([1, -2, 0.5, 3]), np.array([0.1, 0.2, 0.3, 0.4])
    out, mean, rstd = np.empty((2, 4)), np.empty(2), np.empty(2)
    reference.layer_norm_forward(x, weight, bias, 0.1, out, mean, rstd)
    dx, dweight, dbias = np.empty((2, 4)), np.zeros(4), np.zeros(4)
    reference.layer_norm_backward(dout, x, weight, mean, rstd, dx, dweight, dbias)
    expected = [
        [0.90803634, -1.61261663, 0.19665799, -4.12298193],
        [-1.25107199, 1.1714565, 0.65338254, 3.79010545],
    ]
    np.testing.assert_allclose(out, expected, atol=1e-8)
    expected = [
        [0.67810621, -0.90657126, 0.60224499, -0.37377994],
        [0.21355982, -0.28988894, -0.39248277, 0.46881189],
    ]
    np.testing.assert_allclose(dx, expected, atol=1e-8)
    np.testing.assert_allclose(dweight, [1.69115593, 0.35189774, 0.76462574, 2.34450877], atol=1e-8)
    np.testing.assert_allclose(dbias, [0.34635638, 0.82396449, 0.54402345, -0.23609024], atol=1e-8)


def test_cross_entropy_written_out(reference):
    losses, dlogits = np.empty(3), np.empty((3, 4))
    targets = np.array([2, -1, 0], np.int32)
    reference.cross_entropy(waves(3, 4), targets, 0.5, np.inf, losses, dlogits)
    np.testing.assert_allclose(losses, [2.28966729, 0, 0.30531981], atol=1e-8)
    expected = [
        [0.20554043, 0.23540223, -0.44934992, 0.00840726],
        [0, 0, 0, 0],
        [-0.13155617, 0.0544351, 0.02186902, 0.05525205],
    ]
    np.testing.assert_allclose(dlogits, expected, atol=1e-8)


def test_bfloat16_written_out():
    one = 2.0**-7  # the last digit of a bfloat16 between 1 and 2
    cases = {
        1 + one: 1 + one,
        1 + 0.49 * one: 1,
        1 + 0.51 * one: 1 + one,
        1 + 0.5 * one: 1,  # a tie goes to the even one
        1 + 1.5 * one: 1 + 2 * one,
        -1 - 1.5 * one: -1 - 2 * one,
        0.0: 0,
        2 - 0.1 * one: 2,
        3.4e38: np.inf,  # half a digit above the largest
        np.inf: np.inf,
        -np.inf: -np.inf,
        np.nan: np.nan,
    }
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(rounded(np.array([*cases], dtype)), [*cases.values()])


def test_bfloat16_is_torchs(torch, rng):
    x = rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    expected = torch.tensor(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded(x), expected)


# By itself


# What `block_backward` is given was saved by the compiled kernel: see _ext/test_block.py.
@pytest.mark.parametrize("call", [c for c in CALLS if kernel_of(c) != "block_backward"])
def test_float32_is_float64_rounded(reference, arguments, agrees, call):
    agrees(reference, kernel_of(call), arguments(call, "float32"))


def test_names_are_those_of_the_modules():
    found = kernels()
    assert all(name == function.__name__ for name, function in found.items())
    homes = {function.__module__.rpartition(".")[2] for function in found.values()}
    assert homes == set(rustgpt.reference.MODULES)
