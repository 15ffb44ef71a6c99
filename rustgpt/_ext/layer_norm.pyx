"""Owns layer normalisation (Ba, Kiros and Hinton 2016) and RMS normalisation (Zhang and Sennrich
2019), which leaves out the mean and the bias: one row at a time, in cache.

Kept for the backward pass: mean and 1/std of each row; the normalised row is recomputed.
A row costs a read and a write forward, two reads and a write backward.
"""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.checks cimport check_matrix, check_vector
from rustgpt._ext.rows cimport (
    row_dot, row_norm_gradient, row_norm_sums, row_rms_gradient, row_square_deviations, row_sum,
)


cdef void normalise_rows(
    const floating* x, const floating* weight, const floating* bias, double epsilon,
    Py_ssize_t n, Py_ssize_t C,
    floating* out,                   # OUT (n, C), may be x
    floating* mean, floating* rstd,  # OUT (n,)
) noexcept nogil:
    """out = (x - mean) * rstd * weight + bias, row by row."""
    cdef Py_ssize_t i, c
    cdef floating m, s
    cdef const floating* row
    cdef floating* target
    for i in range(n):
        row, target = x + i * C, out + i * C
        m = <floating> (row_sum(row, C) / C)
        s = <floating> (1.0 / sqrt(row_square_deviations(row, m, C) / C + epsilon))
        for c in range(C):
            target[c] = (row[c] - m) * s * weight[c] + bias[c]
        mean[i], rstd[i] = m, s


cdef void normalise_again(
    const floating* x, const floating* weight, const floating* bias,
    const floating* mean, const floating* rstd, Py_ssize_t n, Py_ssize_t C, floating* out,
) noexcept nogil:
    """The same output from the mean and 1/std that were kept: cheaper than to keep it too."""
    cdef Py_ssize_t i, c
    cdef floating m, s
    for i in range(n):
        m, s = mean[i], rstd[i]
        for c in range(C):
            out[i * C + c] = (x[i * C + c] - m) * s * weight[c] + bias[c]


cdef void normalise_rows_backward(
    const floating* dout, const floating* x, const floating* weight,
    const floating* mean, const floating* rstd,
    const floating* residual,  # IN (n, C), may be dx, or NULL: added to dx
    Py_ssize_t n, Py_ssize_t C,
    floating* dx,              # OUT (n, C), may be dout
    floating* dweight, floating* dbias,
) noexcept nogil:
    """With z = (x - mean) rstd and dz = dout weight:
    dx = residual + rstd (dz - mean(dz) - z mean(dz z)); dweight += sum dout z; dbias += sum dout.
    """
    cdef Py_ssize_t i
    cdef double sum_dz, sum_dz_z
    for i in range(n):
        # Pass 1: the two means, over the row in cache.
        row_norm_sums(dout + i * C, weight, x + i * C, mean[i], C, &sum_dz, &sum_dz_z)
        # Pass 2: forward was out = z weight + bias.
        row_norm_gradient(
            dout + i * C, weight, x + i * C, mean[i], rstd[i], <floating> (sum_dz / C),
            <floating> (sum_dz_z * rstd[i] / C), residual + i * C if residual != NULL else NULL, C,
            dx + i * C, dweight, dbias,
        )


cdef void rms_rows(
    const floating* x, const floating* weight, double epsilon, Py_ssize_t n, Py_ssize_t C,
    floating* out,   # OUT (n, C), may be x
    floating* rstd,  # OUT (n,)
) noexcept nogil:
    """out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + epsilon), row by row."""
    cdef Py_ssize_t i
    for i in range(n):
        rstd[i] = <floating> (1.0 / sqrt(row_dot(x + i * C, x + i * C, C) / C + epsilon))
        rms_again(x + i * C, weight, rstd + i, 1, C, out + i * C)


cdef void rms_again(
    const floating* x, const floating* weight, const floating* rstd, Py_ssize_t n, Py_ssize_t C,
    floating* out,
) noexcept nogil:
    """The same output from the 1/std that was kept."""
    cdef Py_ssize_t i, c
    for i in range(n):
        for c in range(C):
            out[i * C + c] = x[i * C + c] * rstd[i] * weight[c]


cdef void rms_rows_backward(
    const floating* dout, const floating* x, const floating* weight, const floating* rstd,
    const floating* residual,  # IN (n, C), may be dx, or NULL: added to dx
    Py_ssize_t n, Py_ssize_t C,
    floating* dx,              # OUT (n, C), may be dout
    floating* dweight,
) noexcept nogil:
    """With z = x rstd and dz = dout weight:
    dx = residual + rstd (dz - z mean(dz z)); dweight += sum dout z.
    """
    cdef Py_ssize_t i
    cdef double sum_dz, sum_dz_x
    for i in range(n):
        # Pass 1: the mean, over the row in cache.
        row_norm_sums(dout + i * C, weight, x + i * C, <floating> 0, C, &sum_dz, &sum_dz_x)
        # Pass 2: forward was out = z weight.
        row_rms_gradient(
            dout + i * C, weight, x + i * C, rstd[i], <floating> (sum_dz_x * rstd[i] / C),
            residual + i * C if residual != NULL else NULL, C, dx + i * C, dweight,
        )


def layer_norm_forward(
    const floating[:, ::1] x not None,    # IN (N, C)
    const floating[::1] weight not None,  # IN (C,)
    const floating[::1] bias not None,    # IN (C,)
    double epsilon,                       # IN: added to the variance
    floating[:, ::1] out not None,        # OUT (N, C)
    floating[::1] mean not None,          # OUT (N,)
    floating[::1] rstd not None,          # OUT (N,): 1 / sqrt(variance + epsilon)
):
    """out = (x - mean) * rstd * weight + bias, row by row."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* weight0 = check_vector("weight", weight, C)
    cdef floating* bias0 = check_vector("bias", bias, C)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    cdef floating* mean0 = check_vector[floating]("mean", mean, N)
    cdef floating* rstd0 = check_vector[floating]("rstd", rstd, N)
    if C > 0:
        with nogil:
            normalise_rows(x0, weight0, bias0, epsilon, N, C, out0, mean0, rstd0)


def layer_norm_backward(
    const floating[:, ::1] dout not None,  # IN (N, C)
    const floating[:, ::1] x not None,     # IN (N, C)
    const floating[::1] weight not None,   # IN (C,)
    const floating[::1] mean not None,     # IN (N,)
    const floating[::1] rstd not None,     # IN (N,)
    floating[:, ::1] dx not None,          # OUT (N, C): overwritten; may be dout itself
    floating[::1] dweight not None,        # IN/OUT (C,): added to
    floating[::1] dbias not None,          # IN/OUT (C,): added to
):
    """With z = (x - mean) rstd and dz = dout weight:
    dx = rstd (dz - mean(dz) - z mean(dz z)); dweight += sum dout z; dbias += sum dout."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, C)
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* weight0 = check_vector("weight", weight, C)
    cdef floating* mean0 = check_vector("mean", mean, N)
    cdef floating* rstd0 = check_vector("rstd", rstd, N)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, C)
    cdef floating* dweight0 = check_vector[floating]("dweight", dweight, C)
    cdef floating* dbias0 = check_vector[floating]("dbias", dbias, C)
    with nogil:
        normalise_rows_backward(dout0, x0, weight0, mean0, rstd0, <const floating*> NULL, N, C,
                                dx0, dweight0, dbias0)


def rms_norm_forward(
    const floating[:, ::1] x not None,    # IN (N, C)
    const floating[::1] weight not None,  # IN (C,)
    double epsilon,                       # IN: added to the mean of the squares
    floating[:, ::1] out not None,        # OUT (N, C)
    floating[::1] rstd not None,          # OUT (N,): 1 / sqrt(mean(x^2) + epsilon)
):
    """out = x * rstd * weight, row by row."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* weight0 = check_vector("weight", weight, C)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    cdef floating* rstd0 = check_vector[floating]("rstd", rstd, N)
    if C > 0:
        with nogil:
            rms_rows(x0, weight0, epsilon, N, C, out0, rstd0)


def rms_norm_backward(
    const floating[:, ::1] dout not None,  # IN (N, C)
    const floating[:, ::1] x not None,     # IN (N, C)
    const floating[::1] weight not None,   # IN (C,)
    const floating[::1] rstd not None,     # IN (N,)
    floating[:, ::1] dx not None,          # OUT (N, C): overwritten; may be dout itself
    floating[::1] dweight not None,        # IN/OUT (C,): added to
):
    """With z = x rstd and dz = dout weight:
    dx = rstd (dz - z mean(dz z)); dweight += sum dout z."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, C)
    cdef floating* x0 = check_matrix("x", x, N, C)
    cdef floating* weight0 = check_vector("weight", weight, C)
    cdef floating* rstd0 = check_vector("rstd", rstd, N)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, C)
    cdef floating* dweight0 = check_vector[floating]("dweight", dweight, C)
    with nogil:
        rms_rows_backward(dout0, x0, weight0, rstd0, <const floating*> NULL, N, C, dx0, dweight0)
