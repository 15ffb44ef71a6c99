"""Owns softmax and cross-entropy: the loss of each row and its gradient in one pass over the row.

About 4 operations and one exponential a logit; the row stays in cache between its three sweeps.
"""
from cython cimport floating
from libc.math cimport INFINITY, log, sqrt

from rustgpt._ext.checks cimport check_indices, check_matrix, check_vector
from rustgpt._ext.rows cimport row_dot, row_exp, row_max


def softmax(
    const floating[:, ::1] x not None,  # IN (N, V)
    floating[:, ::1] out not None,      # OUT (N, V), may be x itself
):
    """out = exp(x) / sum(exp(x)), row by row; the largest of a row is subtracted first."""
    cdef Py_ssize_t N = x.shape[0], V = x.shape[1]
    cdef Py_ssize_t n, v
    cdef floating inverse
    check_matrix("out", out.shape, N, V)
    if N == 0 or V == 0:
        return
    with nogil:
        for n in range(N):
            inverse = <floating> (
                1.0 / row_exp(&x[n, 0], <floating> 1, row_max(&x[n, 0], V), &out[n, 0], V)
            )
            for v in range(V):
                out[n, v] *= inverse


def cross_entropy(
    const floating[:, ::1] logits not None,  # IN (N, V)
    const int[::1] targets not None,         # IN (N,): a class, or -1 for a row that counts nothing
    double scale,                            # IN: what each row's loss is worth, such as 1 / N
    double max_norm,                         # IN: L2 norm to which dlogits is clipped, or infinity
    floating[::1] losses not None,           # OUT (N,): -log softmax(logits)[target], unscaled
    floating[:, ::1] dlogits not None,       # OUT (N, V): of scale * sum(losses); may be logits
):
    """losses = log(sum(exp(logits))) - logits[target]; dlogits = scale (softmax - one_hot)."""
    cdef Py_ssize_t N = logits.shape[0], V = logits.shape[1]
    cdef Py_ssize_t n, v
    cdef floating largest, factor, target_logit
    cdef double total, squares = 0.0
    check_vector("targets", targets.shape, N)
    check_vector("losses", losses.shape, N)
    check_matrix("dlogits", dlogits.shape, N, V)
    check_indices("targets", targets, -1, V)
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0 (infinity for no clipping), got {max_norm}")
    if N == 0 or V == 0:
        return
    with nogil:
        for n in range(N):
            if targets[n] < 0:
                losses[n] = 0
                for v in range(V):
                    dlogits[n, v] = 0
                continue
            # Read before dlogits, which may be the same memory, is written.
            target_logit = logits[n, targets[n]]
            largest = row_max(&logits[n, 0], V)
            total = row_exp(&logits[n, 0], <floating> 1, largest, &dlogits[n, 0], V)
            losses[n] = <floating> (log(total) + (largest - target_logit))
            factor = <floating> (scale / total)
            for v in range(V):
                dlogits[n, v] *= factor
            dlogits[n, targets[n]] -= <floating> scale
            if max_norm < INFINITY:
                squares += row_dot(&dlogits[n, 0], &dlogits[n, 0], V)
        if squares > max_norm * max_norm:
            factor = <floating> (max_norm / sqrt(squares))
            for n in range(N):
                for v in range(V):
                    dlogits[n, v] *= factor
