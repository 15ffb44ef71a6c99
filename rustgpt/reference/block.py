"""Owns a whole transformer block, in NumPy: forward, backward, and decoding with a cache."""

import functools
from types import SimpleNamespace

import numpy as np

from rustgpt.reference.activations import gelu_backward, gelu_forward, relu_backward, relu_forward
from rustgpt.reference.arrays import Array, Indices, Matrix, OutMatrix, OutVector, Vector
from rustgpt.reference.attention import attention_backward, attention_decode, attention_forward
from rustgpt.reference.layer_norm import layer_norm_backward, layer_norm_forward
from rustgpt.reference.linear import linear_backward, linear_forward


def block_kept_size(N: int, C: int, F: int, n_heads: int, pre_norm: bool, projection: bool) -> int:
    """Numbers that `block_forward` keeps of N rows: here qkv, heads, lse, two sums and hidden."""
    return N * (3 * C + C + n_heads + 2 * C + F)


def block_scratch_size(N: int, longest: int, C: int, F: int) -> int:
    """Numbers of scratch for N rows: none here."""
    return 0


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
) -> None:
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""
    N, C = x.shape
    p = unpacked(parameters, C, hidden_dim, projection, bias)
    k = unpacked_rows(kept, N, C, hidden_dim, n_heads)

    def attention(rows: Array) -> Array:  # (N, C) -> (N, C)
        linear_forward(rows, p.qkv_weight, p.qkv_bias, k.qkv, bfloat16=bfloat16)  # (N, 3 C)
        attention_forward(k.qkv, offsets, n_heads, k.heads, k.lse, scratch)
        return projected(k.heads, p, bfloat16)

    def feed_forward(rows: Array) -> Array:  # (N, C) -> (N, C)
        linear_forward(rows, p.weight1, p.bias1, k.hidden, bfloat16=bfloat16)  # (N, F)
        return linear(activated(k.hidden, gelu), p.weight2, p.bias2, bfloat16)

    if pre_norm:
        k.sum1[...] = x + attention(normalised(x, p.norm1_weight, p.norm1_bias, epsilon1))
        normal = normalised(k.sum1, p.norm2_weight, p.norm2_bias, epsilon2)
        out[...] = k.sum1 + feed_forward(normal)
    else:
        k.sum1[...] = x + attention(x)
        h = normalised(k.sum1, p.norm1_weight, p.norm1_bias, epsilon1)
        k.sum2[...] = h + feed_forward(h)
        out[...] = normalised(k.sum2, p.norm2_weight, p.norm2_bias, epsilon2)


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
) -> None:
    """The gradients of the input and of the parameters, from the gradient of the output."""
    N, C = x.shape
    p = unpacked(parameters, C, hidden_dim, projection, bias)
    d = unpacked(dparameters, C, hidden_dim, projection, bias)
    k = unpacked_rows(kept, N, C, hidden_dim, n_heads)

    back = functools.partial(linear_backward, bfloat16=bfloat16)

    def norm1_backward(dh: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        return normalised_backward(dh, rows, p.norm1_weight, epsilon1, d.norm1_weight, d.norm1_bias)

    def norm2_backward(dh: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        return normalised_backward(dh, rows, p.norm2_weight, epsilon2, d.norm2_weight, d.norm2_bias)

    def through_feed_forward(dsum: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        dhidden, drows = np.empty_like(k.hidden), np.empty_like(rows)
        seen = activated(k.hidden, gelu)  # (N, F)
        back(dsum, seen, p.weight2, dhidden, d.weight2, d.bias2)  # (N, F)
        (gelu_backward if gelu else relu_backward)(dhidden, k.hidden, dhidden)
        back(dhidden, rows, p.weight1, drows, d.weight1, d.bias1)  # (N, C)
        return drows

    def through_attention(dsum: Array, rows: Array) -> Array:  # (N, C) -> (N, C)
        dheads, dqkv, drows = dsum, np.empty_like(k.qkv), np.empty_like(rows)
        if projection:
            dheads = np.empty_like(dsum)
            back(dsum, k.heads, p.projection_weight, dheads, d.projection_weight, d.projection_bias)
        attention_backward(dheads, k.qkv, k.lse, offsets, n_heads, dqkv, scratch)  # (N, 3 C)
        back(dqkv, rows, p.qkv_weight, drows, d.qkv_weight, d.qkv_bias)
        return drows

    # A residual sum hands its gradient to both of its terms.
    if pre_norm:
        # forward: out = sum1 + feed_forward(norm2(sum1)), sum1 = x + attention(norm1(x))
        h = normalised(k.sum1, p.norm2_weight, p.norm2_bias, epsilon2)
        dsum1: Array = dout + norm2_backward(through_feed_forward(dout, h), k.sum1)
        normal = normalised(x, p.norm1_weight, p.norm1_bias, epsilon1)
        dx[...] = dsum1 + norm1_backward(through_attention(dsum1, normal), x)
    else:
        # forward: out = norm2(h + feed_forward(h)), h = norm1(x + attention(x))
        h = normalised(k.sum1, p.norm1_weight, p.norm1_bias, epsilon1)
        dsum2 = norm2_backward(dout, k.sum2)
        dsum1 = norm1_backward(dsum2 + through_feed_forward(dsum2, h), k.sum1)
        dx[...] = dsum1 + through_attention(dsum1, x)


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
