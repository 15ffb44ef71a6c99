"""Owns one whole transformer block for the new rows of a text, in NumPy."""

import numpy as np
from numpy.typing import NDArray

from rustgpt.reference.activations import gelu_forward, relu_forward
from rustgpt.reference.attention import attention_decode
from rustgpt.reference.layer_norm import layer_norm_forward

Array = NDArray[np.floating]


def block_decode_scratch_size(n: int, length: int, C: int, F: int) -> int:
    """Numbers of scratch for n new rows of a text that then has `length` rows: none here."""
    return 0


def block_decode(
    x: Array,  # (n, C): the block's input, then its output
    pre_norm: bool,
    gelu: bool,
    n_heads: int,
    start: int,
    keys: Array,  # (S, C): rows below `start` are in use
    values: Array,  # (S, C)
    qkv_weight: Array,  # (C, 3 C)
    qkv_bias: Array | None,  # (3 C,)
    projection_weight: Array | None,  # (C, C)
    projection_bias: Array | None,  # (C,)
    norm1_weight: Array,  # (C,)
    norm1_bias: Array,  # (C,)
    weight1: Array,  # (C, F)
    bias1: Array,  # (F,)
    weight2: Array,  # (F, C)
    bias2: Array,  # (C,)
    norm2_weight: Array,  # (C,)
    norm2_bias: Array,  # (C,)
    epsilon: float,
    scratch: Array,
) -> None:
    """x = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""

    def norm(rows: Array, weight: Array, bias: Array) -> Array:  # (n, C) -> (n, C)
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
        h: Array = x + attention(norm(x, norm1_weight, norm1_bias))
        x[...] = h + feed_forward(norm(h, norm2_weight, norm2_bias))
    else:
        h = norm(x + attention(x), norm1_weight, norm1_bias)
        x[...] = norm(h + feed_forward(h), norm2_weight, norm2_bias)


KERNELS = (block_decode_scratch_size, block_decode)
