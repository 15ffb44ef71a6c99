"""Owns softmax and cross-entropy, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix, OutVector


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


KERNELS = (softmax, cross_entropy)
