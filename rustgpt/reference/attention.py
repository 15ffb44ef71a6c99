"""Owns causal multi-head self-attention, in NumPy (Vaswani et al. 2017, section 3.2)."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from rustgpt.reference.arrays import Array, Indices, Matrix, OutCache, OutMatrix, OutVector


def attention_scratch_size(length: int, head_dim: int) -> int:
    """Numbers of scratch for a text of `length` rows: none here."""
    return 0


def heads(offsets: Indices, C: int, H: int) -> Iterator[tuple[slice, slice, slice, slice, int]]:
    """Yield (rows, query columns, key columns, value columns, h) of each sequence and head."""
    D = C // H
    for first, end in pairwise(offsets):
        for h in range(H):
            yield (
                slice(first, end),
                slice(h * D, (h + 1) * D),
                slice(C + h * D, C + (h + 1) * D),
                slice(2 * C + h * D, 2 * C + (h + 1) * D),
                h,
            )


def scores(q: Array, k: Array) -> Array:  # (n, D), (L, D) -> (n, L)
    """q @ k.T / sqrt(D); a row sees no key that comes after it. The rows are the last n of L."""
    n, L = len(q), len(k)
    seen = np.tri(n, L, L - n, dtype=bool)  # row i sees the keys 0 .. L - n + i
    return np.where(seen, q @ k.T / np.sqrt(q.shape[1]), -np.inf)


def softmax(s: Array) -> tuple[Array, Array]:  # (n, L) -> (n, L), (n,)
    """Return exp(s) / sum(exp(s)), row by row, and the log of that sum."""
    largest = s.max(axis=1)
    lse = largest + np.log(np.exp(s - largest[:, None]).sum(axis=1))
    return np.exp(s - lse[:, None]), lse


def mix(p: Array, v: Array) -> Array:  # (n, L), (L, D) -> (n, D)
    """Return p @ v: each row's mean of the values, weighted by its probabilities."""
    return p @ v


def attention_forward(
    qkv: Matrix,  # (N, 3 C): queries, keys and values side by side
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    out: OutMatrix,  # (N, C)
    lse: OutMatrix,  # (N, H): log of the softmax's denominator
    scratch: OutVector,
) -> None:
    """out = p @ v, p = softmax(mask(q @ k.T / sqrt(D))), for each sequence and head."""
    for rows, q, k, v, h in heads(offsets, out.shape[1], n_heads):
        if rows.start == rows.stop:
            continue
        p, lse[rows, h] = softmax(scores(qkv[rows, q], qkv[rows, k]))  # (T, T), (T,)
        out[rows, q] = mix(p, qkv[rows, v])  # (T, D)


def attention_backward(
    dout: Matrix,  # (N, C)
    qkv: Matrix,  # (N, 3 C)
    lse: Matrix,  # (N, H)
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    dqkv: OutMatrix,  # (N, 3 C): overwritten
    scratch: OutVector,
) -> None:
    """The gradients of queries, keys and values, from the gradient of the output."""
    for rows, q, k, v, h in heads(offsets, dout.shape[1], n_heads):
        do = dout[rows, q]  # (T, D)
        p = np.exp(scores(qkv[rows, q], qkv[rows, k]) - lse[rows, h, None])  # (T, T)
        # forward: out = mix(p, v) = p @ v
        dqkv[rows, v] = p.T @ do
        dp = do @ qkv[rows, v].T  # (T, T)
        # forward: p = softmax(s)
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))  # (T, T)
        # forward: s = scores(q, k) = q @ k.T / sqrt(D)
        ds /= np.sqrt(do.shape[1])
        dqkv[rows, q] = ds @ qkv[rows, k]
        dqkv[rows, k] = ds.T @ qkv[rows, q]


def attention_decode(
    qkv: Matrix,  # (N, 3 C): the new rows of each text
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    kv: OutCache,  # (slots, S, 2 C): keys and values; rows below the start are used
    slots: Indices,  # (B,): the slot of each text, all different
    starts: Indices,  # (B,): how many of its rows came before
    out: OutMatrix,  # (N, C)
    scratch: OutVector,
) -> None:
    """Append the new rows' keys and values to the cache; each text attends to all of its own."""
    C = out.shape[1]
    for (first, stop), slot, start in zip(pairwise(offsets), slots, starts, strict=True):
        end = start + stop - first
        kv[slot, start:end] = qkv[first:stop, C:]
        keys, values = kv[slot, :end, :C], kv[slot, :end, C:]  # (end, C) each
        for h in range(n_heads if first < stop else 0):
            head = slice(h * C // n_heads, (h + 1) * C // n_heads)
            p, _ = softmax(scores(qkv[first:stop, head], keys[:, head]))  # (n, end)
            out[first:stop, head] = mix(p, values[:, head])  # (n, D)


KERNELS = (attention_scratch_size, attention_forward, attention_backward, attention_decode)
