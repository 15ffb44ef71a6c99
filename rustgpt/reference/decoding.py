"""Owns one whole transformer block for the new rows of a text, in NumPy."""

import numpy as np

from rustgpt.reference.activations import gelu_forward, relu_forward
from rustgpt.reference.arrays import Array, Matrix, OutMatrix, OutVector, Vector
from rustgpt.reference.attention import attention_decode
from rustgpt.reference.layer_norm import layer_norm_forward


def block_decode_scratch_size(n: int, length: int, C: int, F: int) -> int:
    """Numbers of scratch for n new rows of a text that then has `length` rows: none here."""
    return 0


def block_decode(
    x: OutMatrix,  # (n, C): the block's input, then its output
    pre_norm: bool,
    gelu: bool,
    n_heads: int,
    start: int,
    keys: OutMatrix,  # (S, C): rows below `start` are in use
    values: OutMatrix,  # (S, C)
    qkv_weight: Matrix,  # (C, 3 C)
    qkv_bias: Vector | None,  # (3 C,)
    projection_weight: Matrix | None,  # (C, C)
    projection_bias: Vector | None,  # (C,)
    norm1_weight: Vector,  # (C,)
    norm1_bias: Vector,  # (C,)
    weight1: Matrix,  # (C, F)
    bias1: Vector,  # (F,)
    weight2: Matrix,  # (F, C)
    bias2: Vector,  # (C,)
    norm2_weight: Vector,  # (C,)
    norm2_bias: Vector,  # (C,)
    epsilon1: float,
    epsilon2: float,
    scratch: OutVector,
) -> None:
    """x = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""

    def norm(rows: Array, weight: Array, bias: Array, epsilon: float) -> Array:  # (n, C) -> (n, C)
        out = np.empty_like(rows)
        unused = np.empty(len(rows), rows.dtype)
        layer_norm_forward(rows, weight, bias, epsilon, out, unused, unused.copy())
        return out

    def attention(rows: Array) -> Array:  # (n, C) -> (n, C)
        qkv: Array = rows @ qkv_weight  # (n, 3 C)
        if qkv_bias is not None:
            qkv += qkv_bias
        heads = np.empty_like(rows)
        attention_decode(qkv, keys, values, start, n_heads, heads, scratch)
        if projection_weight is None:
            return heads
        out = heads @ projection_weight  # (n, C)
        return out if projection_bias is None else out + projection_bias

    def feed_forward(rows: Array) -> Array:  # (n, C) -> (n, C)
        hidden: Array = rows @ weight1 + bias1  # (n, F)
        (gelu_forward if gelu else relu_forward)(hidden, hidden)
        return hidden @ weight2 + bias2

    if pre_norm:
        h: Array = x + attention(norm(x, norm1_weight, norm1_bias, epsilon1))
        x[...] = h + feed_forward(norm(h, norm2_weight, norm2_bias, epsilon2))
    else:
        h = norm(x + attention(x), norm1_weight, norm1_bias, epsilon1)
        x[...] = norm(h + feed_forward(h), norm2_weight, norm2_bias, epsilon2)


KERNELS = (block_decode_scratch_size, block_decode)
