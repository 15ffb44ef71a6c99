"""Owns a whole transformer block, in NumPy: forward, backward, and decoding with a cache."""

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from rustgpt.reference.activations import gelu_backward, gelu_forward, relu_backward, relu_forward
from rustgpt.reference.arrays import Array, Indices, Matrix, OutMatrix, OutVector, Vector
from rustgpt.reference.attention import attention_backward, attention_decode, attention_forward
from rustgpt.reference.layer_norm import layer_norm_backward, layer_norm_forward
from rustgpt.reference.linear import add_gradients, linear_forward, product
from rustgpt.reference.share import Share, whole


def block_kept_size(
    N: int, C: int, F: int, n_heads: int, pre_norm: bool, projection: bool, shared: bool = False
) -> int:
    """Numbers that `block_forward` keeps of N rows: here qkv, heads, lse, two sums and hidden."""
    return N * (3 * C + C + n_heads + 2 * C + F)


def block_scratch_size(N: int, longest: int, C: int, F: int, threads: int = 1) -> int:
    """Numbers of scratch for N rows: here what each thread shows the others."""
    return 0 if threads == 1 else N * (2 * F + 8 * C) + threads * 4 * C


def unpacked(parameters: Array, C: int, F: int, projection: bool, bias: bool) -> SimpleNamespace:
    """Cut the flat array into the block's parameters, in the order of a `TransformerBlock`."""
    shapes: dict[str, tuple[int, ...] | None] = {
        "qkv_weight": (C, 3 * C),
        "qkv_bias": (3 * C,) if bias else None,
        "projection_weight": (C, C) if projection else None,
        "projection_bias": (C,) if projection and bias else None,
        "norm1_weight": (C,),
        "norm1_bias": (C,),
        "weight1": (C, F),
        "bias1": (F,),
        "weight2": (F, C),
        "bias2": (C,),
        "norm2_weight": (C,),
        "norm2_bias": (C,),
    }
    parts, first = SimpleNamespace(), 0
    for name, shape in shapes.items():
        size = 0 if shape is None else int(np.prod(shape))
        part = parameters[first : first + size]
        setattr(parts, name, None if shape is None else part.reshape(shape))
        first += size
    return parts


def unpacked_rows(kept: Array, N: int, C: int, F: int, n_heads: int) -> SimpleNamespace:
    """Cut what is kept of N rows into its arrays."""
    columns = {"qkv": 3 * C, "heads": C, "lse": n_heads, "sum1": C, "sum2": C, "hidden": F}
    parts, first = SimpleNamespace(), 0
    for name, width in columns.items():
        setattr(parts, name, kept[first : first + N * width].reshape(N, width))
        first += N * width
    return parts


def unpacked_shown(scratch: Array, N: int, C: int, F: int, threads: int) -> SimpleNamespace:
    """Cut what the threads show each other for the backward pass into its arrays."""
    columns = {
        "dhidden": F, "activated": F, "dqkv": 3 * C, "dheads": C, "normal1": C, "normal2": C,
        "dsum1": C, "dsum2": C,
    }  # fmt: skip
    parts, first = SimpleNamespace(), 0
    for name, width in columns.items():
        setattr(parts, name, scratch[first : first + N * width].reshape(N, width))
        first += N * width
    parts.dnorms = scratch[first : first + threads * 4 * C].reshape(threads, 4, C)
    return parts


def normalised(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:  # (N, C) -> (N, C)
    out, mean, rstd = np.empty_like(x), np.empty_like(x[:, 0]), np.empty_like(x[:, 0])
    layer_norm_forward(x, weight, bias, epsilon, out, mean, rstd)
    return out


def normalised_backward(
    dout: Array, x: Array, weight: Array, epsilon: float, dweight: Array, dbias: Array
) -> Array:  # (N, C) -> (N, C)
    dx, rstd = np.empty_like(x), 1 / np.sqrt(x.var(axis=1) + epsilon)
    layer_norm_backward(dout, x, weight, x.mean(axis=1), rstd, dx, dweight, dbias)
    return dx


def linear(
    x: Array, weight: Array, bias: Array | None, bfloat16: bool = False
) -> Array:  # (N, C_in) -> (N, C_out)
    out = np.empty((len(x), weight.shape[1]), x.dtype)
    linear_forward(x, weight, bias, out, bfloat16=bfloat16)
    return out


def projected(
    heads: Array, p: SimpleNamespace, bfloat16: bool = False
) -> Array:  # (N, C) -> (N, C)
    if p.projection_weight is None:
        return heads
    return linear(heads, p.projection_weight, p.projection_bias, bfloat16)


def activated(hidden: Array, gelu: bool) -> Array:  # (N, F) -> (N, F)
    out = np.empty_like(hidden)
    (gelu_forward if gelu else relu_forward)(hidden, out)
    return out


def block_forward(
    x: Matrix,  # (N, C)
    offsets: Indices,  # (B + 1,)
    parameters: Vector,  # (P,)
    n_heads: int,
    hidden_dim: int,
    pre_norm: bool,
    gelu: bool,
    projection: bool,
    bias: bool,
    epsilon1: float,
    epsilon2: float,
    out: OutMatrix,  # (N, C)
    kept: OutVector,  # (block_kept_size(...),)
    scratch: OutVector,
    bfloat16: bool = False,  # whether the linear products round to it
    share: Share | None = None,  # this thread's, of several
) -> None:
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""
    N, C = x.shape
    p = unpacked(parameters, C, hidden_dim, projection, bias)
    k = unpacked_rows(kept, N, C, hidden_dim, n_heads)
    share = share or whole(N)
    mine, x = share.rows, x[share.rows]

    def attention(rows: Array) -> Array:  # (n, C) -> (n, C)
        linear_forward(rows, p.qkv_weight, p.qkv_bias, k.qkv[mine], bfloat16=bfloat16)  # (n, 3 C)
        for these, heads in attended(share, offsets, n_heads):
            attention_forward(k.qkv, these, n_heads, k.heads, k.lse, scratch, *heads)
        return projected(k.heads[mine], p, bfloat16)

    def feed_forward(rows: Array) -> Array:  # (n, C) -> (n, C)
        linear_forward(rows, p.weight1, p.bias1, k.hidden[mine], bfloat16=bfloat16)  # (n, F)
        return linear(activated(k.hidden[mine], gelu), p.weight2, p.bias2, bfloat16)

    if pre_norm:
        k.sum1[mine] = x + attention(normalised(x, p.norm1_weight, p.norm1_bias, epsilon1))
        normal = normalised(k.sum1[mine], p.norm2_weight, p.norm2_bias, epsilon2)
        out[mine] = k.sum1[mine] + feed_forward(normal)
    else:
        k.sum1[mine] = x + attention(x)
        h = normalised(k.sum1[mine], p.norm1_weight, p.norm1_bias, epsilon1)
        k.sum2[mine] = h + feed_forward(h)
        out[mine] = normalised(k.sum2[mine], p.norm2_weight, p.norm2_bias, epsilon2)


def attended(
    share: Share, offsets: Indices, n_heads: int
) -> Iterator[tuple[Indices, tuple[int, int]]]:
    """Yield the texts and heads that a thread attends: its own texts, or its heads of all."""
    if share.heads:
        share.barrier.wait()
        n = len(share.edges) - 1
        yield offsets, (n_heads * share.index // n, n_heads * (share.index + 1) // n)
        share.barrier.wait()
    else:
        rows = share.rows
        yield offsets[(offsets >= rows.start) & (offsets <= rows.stop)], (0, n_heads)


def block_backward(
    dout: Matrix,  # (N, C)
    x: Matrix,  # (N, C)
    offsets: Indices,  # (B + 1,)
    parameters: Vector,  # (P,)
    n_heads: int,
    hidden_dim: int,
    pre_norm: bool,
    gelu: bool,
    projection: bool,
    bias: bool,
    epsilon1: float,
    epsilon2: float,
    kept: Vector,  # what block_forward kept
    dx: OutMatrix,  # (N, C): overwritten
    dparameters: OutVector,  # (P,): added to
    scratch: OutVector,
    bfloat16: bool = False,
    share: Share | None = None,  # this thread's, of several
    overwrite: bool = False,  # whether to write over dparameters instead
) -> None:
    """The gradients of the input and of the parameters, from the gradient of the output."""
    N, C = x.shape
    F = hidden_dim
    p = unpacked(parameters, C, F, projection, bias)
    d = unpacked(dparameters, C, F, projection, bias)
    k = unpacked_rows(kept, N, C, F, n_heads)
    share = share or whole(N)
    n = len(share.edges) - 1
    if overwrite and share.index == 0:
        dparameters[...] = 0
    # Each thread fills in its own rows of what is shown to all; each has a row of `dnorms`.
    if n == 1:
        scratch = np.zeros(block_scratch_size(N, 0, C, F, 2), x.dtype)
    shown = unpacked_shown(scratch, N, C, F, n)
    mine = share.rows
    x1, sum1, hidden = x[mine], k.sum1[mine], k.hidden[mine]
    dnorm1_weight, dnorm1_bias, dnorm2_weight, dnorm2_bias = shown.dnorms[share.index]
    shown.dnorms[share.index] = 0

    def back(dout: Array, weight: Array) -> Array:  # (n, C_out) -> (n, C_in)
        return product(dout, weight.T, bfloat16)

    def norm1_backward(dh: Array, rows: Array) -> Array:  # (n, C) -> (n, C)
        return normalised_backward(dh, rows, p.norm1_weight, epsilon1, dnorm1_weight, dnorm1_bias)

    def norm2_backward(dh: Array, rows: Array) -> Array:  # (n, C) -> (n, C)
        return normalised_backward(dh, rows, p.norm2_weight, epsilon2, dnorm2_weight, dnorm2_bias)

    def through_feed_forward(dsum: Array, rows: Array) -> Array:  # (n, C) -> (n, C)
        dhidden = back(dsum, p.weight2)  # (n, F)
        (gelu_backward if gelu else relu_backward)(dhidden, hidden, dhidden)
        shown.dsum2[mine], shown.normal2[mine], shown.dhidden[mine] = dsum, rows, dhidden
        shown.activated[mine] = activated(hidden, gelu)
        return back(dhidden, p.weight1)

    def through_attention(dsum: Array, rows: Array) -> Array:  # (n, C) -> (n, C)
        shown.dsum1[mine], shown.normal1[mine] = dsum, rows
        shown.dheads[mine] = back(dsum, p.projection_weight) if projection else dsum
        for these, heads in attended(share, offsets, n_heads):
            attention_backward(
                shown.dheads, k.qkv, k.lse, these, n_heads, shown.dqkv, scratch, *heads
            )  # (N, 3 C)
        return back(shown.dqkv[mine], p.qkv_weight)

    # A residual sum hands its gradient to both of its terms.
    dout = dout[mine]
    if pre_norm:
        # forward: out = sum1 + feed_forward(norm2(sum1)), sum1 = x + attention(norm1(x))
        h = normalised(sum1, p.norm2_weight, p.norm2_bias, epsilon2)
        dsum1: Array = dout + norm2_backward(through_feed_forward(dout, h), sum1)
        normal = normalised(x1, p.norm1_weight, p.norm1_bias, epsilon1)
        dx[mine] = dsum1 + norm1_backward(through_attention(dsum1, normal), x1)
    else:
        # forward: out = norm2(h + feed_forward(h)), h = norm1(x + attention(x))
        h = normalised(sum1, p.norm1_weight, p.norm1_bias, epsilon1)
        dsum2 = norm2_backward(dout, k.sum2[mine])
        dsum1 = norm1_backward(dsum2 + through_feed_forward(dsum2, h), sum1)
        dx[mine] = dsum1 + through_attention(dsum1, x1)

    # The weights' gradients: of all rows, but a thread's part of them.
    share.barrier.wait()
    add = functools.partial(add_gradients, share=share, bfloat16=bfloat16)
    add(shown.dsum2, shown.activated, d.weight2, d.bias2)
    add(shown.dhidden, shown.normal2, d.weight1, d.bias1)
    if projection:
        add(shown.dsum1, k.heads, d.projection_weight, d.projection_bias)
    add(shown.dqkv, shown.normal1, d.qkv_weight, d.qkv_bias)
    if share.index == 0:
        for total, name in enumerate(("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")):
            getattr(d, name)[...] += shown.dnorms[:, total].sum(axis=0)


def block_decode(
    x: OutMatrix,  # (n, C): the block's input, then its output
    parameters: Vector,  # (P,)
    n_heads: int,
    hidden_dim: int,
    pre_norm: bool,
    gelu: bool,
    projection: bool,
    bias: bool,
    epsilon1: float,
    epsilon2: float,
    start: int,
    keys: OutMatrix,  # (S, C): rows below `start` are in use
    values: OutMatrix,  # (S, C)
    scratch: OutVector,
) -> None:
    """`block_forward` for the new rows of one text, whose rows before are in the cache."""
    p = unpacked(parameters, x.shape[1], hidden_dim, projection, bias)

    def attention(rows: Array) -> Array:  # (n, C) -> (n, C)
        heads = np.empty_like(rows)
        qkv = linear(rows, p.qkv_weight, p.qkv_bias)  # (n, 3 C)
        attention_decode(qkv, keys, values, start, n_heads, heads, scratch)
        return projected(heads, p)

    def feed_forward(rows: Array) -> Array:  # (n, C) -> (n, C)
        return linear(activated(linear(rows, p.weight1, p.bias1), gelu), p.weight2, p.bias2)

    if pre_norm:
        h: Array = x + attention(normalised(x, p.norm1_weight, p.norm1_bias, epsilon1))
        x[...] = h + feed_forward(normalised(h, p.norm2_weight, p.norm2_bias, epsilon2))
    else:
        h = normalised(x + attention(x), p.norm1_weight, p.norm1_bias, epsilon1)
        x[...] = normalised(h + feed_forward(h), p.norm2_weight, p.norm2_bias, epsilon2)


KERNELS = (block_kept_size, block_scratch_size, block_forward, block_backward, block_decode)
