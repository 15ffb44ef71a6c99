"""What decoding shares with layer norm: one row, forward."""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.rows cimport row_square_deviations, row_sum


cdef inline void normalise(
    const floating* x, const floating* weight, const floating* bias,  # IN (C,)
    double epsilon, Py_ssize_t C,
    floating* out,                                                    # OUT (C,), may be x
    floating* mean, floating* rstd,                                   # OUT
) noexcept nogil:
    """out = (x - mean) * rstd * weight + bias for one row."""
    cdef Py_ssize_t c
    cdef floating m = <floating> (row_sum(x, C) / C)
    cdef floating s = <floating> (1.0 / sqrt(row_square_deviations(x, m, C) / C + epsilon))
    for c in range(C):
        out[c] = (x[c] - m) * s * weight[c] + bias[c]
    mean[0], rstd[0] = m, s
