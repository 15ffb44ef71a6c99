"""Owns softmax and cross-entropy, in NumPy."""

import math

import numpy as np

from rustgpt.reference.arrays import Array, Indices, Matrix, OutMatrix, OutVector, Vector
from rustgpt.reference.linear import add_gradients, linear_forward, product
from rustgpt.reference.share import Crew, Share, whole


def softmax(x: Matrix, out: OutMatrix) -> None:  # (N, V) -> (N, V)
    """out = exp(x) / sum(exp(x)), row by row."""
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    out[...] = exponentials / exponentials.sum(axis=1, keepdims=True)


def cross_entropy(
    logits: Matrix,  # (N, V)
    targets: Indices,  # (N,): a class, or -1 for a row that counts nothing
    scale: float,
    max_norm: float,
    losses: OutVector,  # (N,)
    dlogits: OutMatrix,  # (N, V), may be logits
) -> None:
    """losses = -log softmax(logits)[target]; dlogits = scale (softmax(logits) - one_hot(target)).

    dlogits is the gradient of scale * sum(losses), clipped as a whole to the L2 norm max_norm.
    """
    rows = np.arange(len(targets))
    counts = targets >= 0
    shifted = logits - logits.max(axis=1, keepdims=True)  # (N, V)
    log_total = np.log(np.exp(shifted).sum(axis=1))  # (N,)
    losses[...] = np.where(counts, log_total - shifted[rows, targets], 0)
    p = np.exp(shifted - log_total[:, None])  # (N, V)
    p[rows, targets] -= 1
    dlogits[...] = scale * p * counts[:, None]
    norm = np.linalg.norm(dlogits)
    if norm > max_norm:
        dlogits *= max_norm / norm


def linear_cross_entropy(
    x: Matrix,  # (N, C)
    weight: Matrix,  # (C, V), or (V, C) if transposed
    bias: Vector | None,  # (V,)
    targets: Indices,  # (N,): a class, or -1
    scale: float,
    max_norm: float,
    losses: OutVector,  # (N,)
    dx: OutMatrix | None,  # (N, C), or None if no gradient is wanted
    dweight: OutMatrix | None,  # like weight: added to; None as dx is
    dbias: OutVector | None,  # (V,): added to; None if there is no bias
    scratch: OutMatrix,  # (R, V): R rows are done at a time, of all threads
    transposed: bool = False,
    bfloat16: bool = False,  # whether the products' factors are rounded to it
    share: Share | None = None,  # this thread's, of several
    overwrite: bool = False,  # whether to write over dweight and dbias instead
    crew: Crew | None = None,  # changes nothing
) -> float:
    """`cross_entropy` of logits = x @ weight + bias, and back, without all logits in memory.

    Returns the sum of the losses of this thread's rows.
    """
    share = share or whole(len(x))
    n = len(share.edges) - 1
    at_once = len(scratch) // n
    if overwrite and share.index == 0:
        for gradient in (dweight, dbias):
            if gradient is not None:
                gradient[...] = 0
    blocks = math.ceil(share.most_rows / at_once)

    def rows_of(thread: int, block: int) -> tuple[slice, Array]:
        """Return which rows a thread does at a time, and their logits."""
        start, stop = (int(edge) for edge in share.edges[thread : thread + 2])
        first = min(start + block * at_once, stop)
        count = min(at_once, stop - first)
        where = thread * at_once
        return slice(first, first + count), scratch[where : where + count]

    for block in range(blocks):
        rows, logits = rows_of(share.index, block)
        linear_forward(x[rows], weight, bias, logits, transposed, bfloat16)  # (rows, V)
        if len(logits):
            cross_entropy(logits, targets[rows], scale, max_norm, losses[rows], logits)
        if dx is None or dweight is None:
            continue
        dx[rows] = product(logits, weight if transposed else weight.T, bfloat16)  # (rows, C)
        share.barrier.wait()
        for thread in range(n):
            rows, logits = rows_of(thread, block)
            add_gradients(logits, x[rows], dweight, dbias, share, transposed, bfloat16)
        if block + 1 < blocks:
            share.barrier.wait()
    return float(losses[share.rows].sum(dtype=np.float64))


KERNELS = (softmax, cross_entropy, linear_cross_entropy)
