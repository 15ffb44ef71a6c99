"""Owns softmax and cross-entropy, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix, OutVector, Vector
from rustgpt.reference.linear import add_gradients, linear_forward, product
from rustgpt.reference.share import Share, whole


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
) -> float:
    """`cross_entropy` of logits = x @ weight + bias, and back, without all logits in memory.

    Returns the sum of the losses of this thread's rows.
    """
    share = share or whole(len(x))
    if overwrite and share.index == 0:
        for gradient in (dweight, dbias):
            if gradient is not None:
                gradient[...] = 0
    share.barrier.wait()  # the others' rows of x are there
    for first in range(0, len(x), len(scratch)):
        block = slice(first, min(first + len(scratch), len(x)))
        logits = scratch[: block.stop - first]
        mine = share.part_of(len(logits))  # rows of the block
        rows = slice(first + mine.start, first + mine.stop)
        linear_forward(x[rows], weight, bias, logits[mine], transposed, bfloat16)  # (rows, V)
        if mine.start < mine.stop:
            cross_entropy(logits[mine], targets[rows], scale, max_norm, losses[rows], logits[mine])
        if dx is not None:
            dx[rows] = product(logits[mine], weight if transposed else weight.T, bfloat16)
        share.barrier.wait()
        if dx is not None and dweight is not None:
            add_gradients(logits, x[block], dweight, dbias, share, transposed, bfloat16)
            share.barrier.wait()  # before the logits are written over
    return float(losses[share.rows].sum(dtype=np.float64))


KERNELS = (softmax, cross_entropy, linear_cross_entropy)
