"""Owns causal multi-head self-attention, in NumPy (Vaswani et al. 2017, section 3.2)."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from rustgpt.reference.arrays import Array, Indices, Matrix, OutCache, OutMatrix, OutVector


def attention_scratch_size(length: int, head_dim: int) -> int:
    """Numbers of scratch for a text of `length` rows: none here."""
    return 0


def heads(
    offsets: Indices, C: int, H: int, K: int
) -> Iterator[tuple[slice, slice, slice, slice, int]]:
    """Yield (rows, query columns, key columns, value columns, h) of each sequence and head.

    H / K heads of queries share one of keys and values (Ainslie et al. 2023).
    """
    D, K = C // H, K or H
    for first, end in pairwise(offsets):
        for h in range(H):
            key = C + h * K // H * D
            value = key + K * D
            yield (
                slice(first, end), slice(h * D, (h + 1) * D), slice(key, key + D),
                slice(value, value + D), h,
            )  # fmt: skip


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
    qkv: Matrix,  # (N, W): queries, keys and values side by side
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    out: OutMatrix,  # (N, C)
    lse: OutMatrix,  # (N, H): log of the softmax's denominator
    scratch: OutVector,
    n_kv_heads: int = 0,  # K; 0 for as many as heads
) -> None:
    """out = p @ v, p = softmax(mask(q @ k.T / sqrt(D))), for each sequence and head."""
    for rows, q, k, v, h in heads(offsets, out.shape[1], n_heads, n_kv_heads):
        if rows.start == rows.stop:
            continue
        p, lse[rows, h] = softmax(scores(qkv[rows, q], qkv[rows, k]))  # (T, T), (T,)
        out[rows, q] = mix(p, qkv[rows, v])  # (T, D)


def attention_backward(
    dout: Matrix,  # (N, C)
    qkv: Matrix,  # (N, W)
    lse: Matrix,  # (N, H)
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    dqkv: OutMatrix,  # (N, W): overwritten
    scratch: OutVector,
    n_kv_heads: int = 0,  # K; 0 for as many as heads
) -> None:
    """The gradients of queries, keys and values, from the gradient of the output."""
    dqkv[...] = 0
    for rows, q, k, v, h in heads(offsets, dout.shape[1], n_heads, n_kv_heads):
        do = dout[rows, q]  # (T, D)
        p = np.exp(scores(qkv[rows, q], qkv[rows, k]) - lse[rows, h, None])  # (T, T)
        # forward: out = mix(p, v) = p @ v
        dqkv[rows, v] += p.T @ do
        dp = do @ qkv[rows, v].T  # (T, T)
        # forward: p = softmax(s)
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))  # (T, T)
        # forward: s = scores(q, k) = q @ k.T / sqrt(D)
        ds /= np.sqrt(do.shape[1])
        dqkv[rows, q] = ds @ qkv[rows, k]
        dqkv[rows, k] += ds.T @ qkv[rows, q]


def attention_decode(
    qkv: Matrix,  # (N, W): the new rows of each text
    offsets: Indices,  # (B + 1,)
    n_heads: int,
    kv: OutCache,  # (slots, S, 2 K D): keys and values; rows below the start are used
    slots: Indices,  # (B,): the slot of each text, all different
    starts: Indices,  # (B,): how many of its rows came before
    out: OutMatrix,  # (N, C)
    scratch: OutVector,
    n_kv_heads: int = 0,  # K; 0 for as many as heads
) -> None:
    """Append the new rows' keys and values to the cache; each text attends to all of its own."""
    C, K = out.shape[1], n_kv_heads or n_heads
    D = C // n_heads
    for (first, stop), slot, start in zip(pairwise(offsets), slots, starts, strict=True):
        end = start + stop - first
        kv[slot, start:end] = qkv[first:stop, C:]
        keys, values = kv[slot, :end, : K * D], kv[slot, :end, K * D :]  # (end, K D) each
        for h in range(n_heads if first < stop else 0):
            head, own = h * D, h * K // n_heads * D
            q, shared = slice(head, head + D), slice(own, own + D)
            p, _ = softmax(scores(qkv[first:stop, q], keys[:, shared]))  # (n, end)
            out[first:stop, q] = mix(p, values[:, shared])  # (n, D)


KERNELS = (attention_scratch_size, attention_forward, attention_backward, attention_decode)
