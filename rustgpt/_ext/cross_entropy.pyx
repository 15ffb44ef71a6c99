"""Owns softmax and cross-entropy: the loss of each row and its gradient in one pass over the row.

About 4 operations and one exponential a logit; the row stays in cache between its three sweeps.
`linear_cross_entropy` takes the product that makes the logits with it, 6 C operations a logit, over
a block of rows at a time, so that the logits of a whole batch are never in memory at once.
"""
from cython cimport floating
from libc.math cimport INFINITY, log, sqrt

from rustgpt._ext.checks cimport (
    check_indices, check_matrix, check_norm, check_vector, check_weight,
)
from rustgpt._ext.linear cimport add_gradients, affine, check_bfloat16
from rustgpt._ext.rows cimport row_dot, row_exp, row_max
from rustgpt._ext.shard cimport Shard, edge_of, meet, shard_of
from rustgpt._ext.tiles cimport ceil_of


def softmax(
    const floating[:, ::1] x not None,  # IN (N, V)
    floating[:, ::1] out not None,      # OUT (N, V), may be x itself
):
    """out = exp(x) / sum(exp(x)), row by row; the largest of a row is subtracted first."""
    cdef Py_ssize_t N = x.shape[0], V = x.shape[1]
    cdef Py_ssize_t n, v
    cdef floating inverse
    check_matrix("x", x, N, V)
    check_matrix[floating]("out", out, N, V)
    with nogil:
        for n in range(N if V > 0 else 0):
            inverse = <floating> (
                1.0 / row_exp(&x[n, 0], <floating> 1, row_max(&x[n, 0], V), &out[n, 0], V)
            )
            for v in range(V):
                out[n, v] *= inverse


cdef void losses_of(
    const floating* logits, const int* targets, Py_ssize_t N, Py_ssize_t V, double scale,
    double max_norm, floating* losses, floating* dlogits,  # OUT (N,), (N, V); may be logits
) noexcept nogil:
    cdef Py_ssize_t n, v
    cdef floating largest, factor, target_logit
    cdef double total, squares = 0.0
    cdef const floating* row
    cdef floating* drow
    for n in range(N):
        row, drow = logits + n * V, dlogits + n * V
        if targets[n] < 0:
            losses[n] = 0
            for v in range(V):
                drow[v] = 0
            continue
        # Read before dlogits, which may be the same memory, is written.
        target_logit = row[targets[n]]
        largest = row_max(row, V)
        total = row_exp(row, <floating> 1, largest, drow, V)
        losses[n] = <floating> (log(total) + (largest - target_logit))
        factor = <floating> (scale / total)
        for v in range(V):
            drow[v] *= factor
        drow[targets[n]] -= <floating> scale
        if max_norm < INFINITY:
            squares += row_dot(drow, drow, V)
    if squares > max_norm * max_norm:
        factor = <floating> (max_norm / sqrt(squares))
        for n in range(N * V):
            dlogits[n] *= factor


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
    cdef floating* logits0 = check_matrix("logits", logits, N, V)
    cdef floating* losses0 = check_vector[floating]("losses", losses, N)
    cdef floating* dlogits0 = check_matrix[floating]("dlogits", dlogits, N, V)
    cdef const int* targets0 = check_indices("targets", targets, N, -1, V)
    check_norm(max_norm)
    if V > 0:
        with nogil:
            losses_of(logits0, targets0, N, V, scale, max_norm, losses0, dlogits0)


def linear_cross_entropy(
    const floating[:, ::1] x not None,       # IN (N, C)
    const floating[:, ::1] weight not None,  # IN (C, V), or (V, C) if transposed
    const floating[::1] bias,                # IN (V,) or None
    const int[::1] targets not None,         # IN (N,): a class, or -1
    double scale,                            # IN: what each row's loss is worth
    double max_norm,                         # IN: to which the gradient of a block is clipped
    floating[::1] losses not None,           # OUT (N,)
    floating[:, ::1] dx,                     # OUT (N, C), or None if no gradient is wanted
    floating[:, ::1] dweight,                # IN/OUT like weight: added to; None as dx is
    floating[::1] dbias,                     # IN/OUT (V,): added to; None if there is no bias
    floating[:, ::1] scratch not None,       # (R, V): R rows are done at a time, of all threads
    bint transposed=False,
    bint accumulate=True,                    # IN: or else dweight and dbias are overwritten
    bint bfloat16=False,                     # IN: whether the products' factors are rounded to it
    object shard=None,                       # IN: this thread's, of several
):
    """`cross_entropy` of logits = x @ weight + bias, and back, without all logits in memory.

    Returns the sum of the losses of this thread's rows.
    """
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], R = scratch.shape[0], V = scratch.shape[1]
    cdef object barrier = getattr(shard, "barrier", None)
    cdef Shard s = shard_of(shard, barrier, N)
    cdef Output o
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* weight0 = check_weight("weight", weight, C, V, transposed)
    cdef floating* bias0 = check_vector("bias", bias, V)
    o.targets = check_indices("targets", targets, N, -1, V)
    cdef floating* losses0 = check_vector[floating]("losses", losses, N)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, C)
    cdef floating* dweight0 = check_weight[floating]("dweight", dweight, C, V, transposed)
    cdef floating* dbias0 = check_vector[floating]("dbias", dbias, V)
    cdef floating* scratch0 = check_matrix[floating]("scratch", scratch, R, V)
    check_norm(max_norm)
    check_bfloat16(bfloat16, sizeof(floating))
    if R < 1:
        raise ValueError("scratch must have at least one row, got none")
    if (dx is None) != (dweight is None):
        raise ValueError("dx and dweight must both be given, or both be None")
    o.N, o.C, o.V, o.R, o.transposed, o.bfloat16 = N, C, V, R, transposed, bfloat16
    o.scale, o.max_norm, o.gradient, o.accumulate = scale, max_norm, dx is not None, accumulate
    with nogil:
        blocks_of_rows(&o, &s, x0, weight0, bias0, losses0, dx0, dweight0, dbias0, scratch0)
    cdef double total = 0.0
    cdef Py_ssize_t n
    for n in range(s.first, s.stop):
        total += losses[n]
    return total


cdef struct Output:
    Py_ssize_t N, C, V, R
    bint transposed, bfloat16, gradient, accumulate
    double scale, max_norm
    const int* targets


cdef int blocks_of_rows(
    const Output* o, const Shard* s, const floating* x, const floating* weight,
    const floating* bias, floating* losses, floating* dx, floating* dweight, floating* dbias,
    floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t N = o.N, C = o.C, V = o.V, i, block, n, start, rows
    meet(s)  # the others' rows of x are there
    for i in range(ceil_of(N, o.R)):
        block = i * o.R
        n = min(o.R, N - block)
        start = edge_of(n, s.index, s.n)  # this thread's of the block's rows
        rows = edge_of(n, s.index + 1, s.n) - start
        affine(x + (block + start) * C, weight, bias, rows, C, V, o.transposed, False,
               o.bfloat16, scratch + start * V)                                   # (rows, V)
        losses_of(scratch + start * V, o.targets + block + start, rows, V, o.scale, o.max_norm,
                  losses + block + start, scratch + start * V)
        if o.gradient:
            # forward: logits = x @ weight + bias
            affine(scratch + start * V, weight, <const floating*> NULL, rows, V, C,
                   not o.transposed, False, o.bfloat16, dx + (block + start) * C)  # (rows, C)
        meet(s)
        if o.gradient:
            add_gradients(s, scratch, x + block * C, n, C, V, o.transposed,
                          block > 0 or o.accumulate, o.bfloat16, dweight, dbias)
            if block + n < N:
                meet(s)  # before the logits are written over
    return 0
