"""Owns softmax and cross-entropy, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import (
    Indices,
    Matrix,
    OutMatrix,
    OutVector,
    Shard,
    Vector,
    check_whole,
)  # fmt: skip
from rustgpt.reference.linear import linear_backward, linear_forward


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
    accumulate: bool = True,  # or else dweight and dbias are overwritten
    bfloat16: bool = False,  # whether the products' factors are rounded to it
    shard: Shard | None = None,  # this thread's, of several
) -> float:
    """`cross_entropy` of logits = x @ weight + bias, and back, without all logits in memory.

    Returns the sum of the losses of this thread's rows.
    """
    check_whole(shard)
    for gradient in (dweight, dbias):
        if gradient is not None and not accumulate:
            gradient[...] = 0
    for first in range(0, len(x), len(scratch)):
        r = slice(first, min(first + len(scratch), len(x)))  # a block of rows
        logits = scratch[: r.stop - first]
        linear_forward(x[r], weight, bias, logits, transposed, bfloat16)  # (rows, V)
        cross_entropy(logits, targets[r], scale, max_norm, losses[r], logits)
        if dx is not None and dweight is not None:
            linear_backward(
                logits, x[r], weight, dx[r], dweight, dbias, transposed, bfloat16
            )  # (rows, C)
    return float(losses.sum(dtype=np.float64))


KERNELS = (softmax, cross_entropy, linear_cross_entropy)
