"""Owns layer normalisation (Ba, Kiros and Hinton 2016): one row at a time, in cache.

Kept for the backward pass: mean and 1/std of each row; the normalised row is recomputed.
"""
from cython cimport floating

from rustgpt._ext.checks cimport check_matrix, check_vector
from rustgpt._ext.rows cimport row_dot_deviations, row_sum


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
    cdef Py_ssize_t n
    check_vector("weight", weight.shape, C)
    check_vector("bias", bias.shape, C)
    check_matrix("out", out.shape, N, C)
    check_vector("mean", mean.shape, N)
    check_vector("rstd", rstd.shape, N)
    if N == 0 or C == 0:
        return
    with nogil:
        for n in range(N):
            normalise(&x[n, 0], &weight[0], &bias[0], epsilon, C, &out[n, 0], &mean[n], &rstd[n])


def layer_norm_backward(
    const floating[:, ::1] dout not None,  # IN (N, C)
    const floating[:, ::1] x not None,     # IN (N, C)
    const floating[::1] weight not None,   # IN (C,)
    const floating[::1] mean not None,     # IN (N,)
    const floating[::1] rstd not None,     # IN (N,)
    floating[:, ::1] dx not None,          # OUT (N, C): overwritten
    floating[::1] dweight not None,        # IN/OUT (C,): added to
    floating[::1] dbias not None,          # IN/OUT (C,): added to
):
    """With z = (x - mean) rstd and dz = dout weight:
    dx = rstd (dz - mean(dz) - z mean(dz z)); dweight += sum dout z; dbias += sum dout."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef Py_ssize_t n, c
    cdef floating m, s, z, dz, mean_dz, mean_dz_z
    cdef const floating* row
    cdef const floating* gradient
    cdef floating* target
    check_matrix("dout", dout.shape, N, C)
    check_vector("weight", weight.shape, C)
    check_vector("mean", mean.shape, N)
    check_vector("rstd", rstd.shape, N)
    check_matrix("dx", dx.shape, N, C)
    check_vector("dweight", dweight.shape, C)
    check_vector("dbias", dbias.shape, C)
    if N == 0 or C == 0:
        return
    with nogil:
        for n in range(N):
            row, gradient, target = &x[n, 0], &dout[n, 0], &dx[n, 0]
            m, s = mean[n], rstd[n]
            # Pass 1: the two means, over the row in cache; dx holds dz meanwhile.
            for c in range(C):
                target[c] = gradient[c] * weight[c]
            mean_dz = <floating> (row_sum(target, C) / C)
            mean_dz_z = <floating> (row_dot_deviations(target, row, m, C) * s / C)
            # Pass 2: forward was out = z weight + bias.
            for c in range(C):
                z = (row[c] - m) * s
                dz = target[c]
                dweight[c] += gradient[c] * z
                dbias[c] += gradient[c]
                target[c] = s * (dz - mean_dz - z * mean_dz_z)
