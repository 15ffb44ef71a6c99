"""Owns dropout of a whole matrix, forward and backward: each is the other.

Cost: a read and a write a number, and two 32-bit products, which vectorise.
"""
from cython cimport floating
from libc.stdint cimport uint64_t

from rustgpt._ext.checks cimport check_matrix
from rustgpt._ext.dropout cimport Dropout, drop, dropout_of
from rustgpt._ext.shard cimport Shard, shard_of


def dropout(
    const floating[:, ::1] x not None,     # IN (N, C)
    const int[::1] row_numbers not None,   # IN (N,): of each row in the batch of the whole step
    uint64_t key,                          # IN: of the step and the place in the model
    double rate,                           # IN
    floating[:, ::1] out not None,         # OUT (N, C), may be x itself
    object shard=None,                     # IN: this thread's, of several: it has some rows
):
    """out = x / (1 - rate) where random bits say so, else 0: of a gradient as of what it is of."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef Shard s = shard_of(shard, getattr(shard, "barrier", None), N)
    cdef Dropout d = dropout_of(row_numbers, N, key, rate)
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    if x0 == NULL:
        return
    d.rows = &row_numbers[0]
    with nogil:
        drop(&d, 0, x0 + s.first * C, s.first, s.stop - s.first, C, False, out0 + s.first * C)
