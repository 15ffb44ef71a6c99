"""Owns the linear layer: out = x @ weight + bias, and its gradients.

A weight is stored (C_in, C_out); with `transposed` it is stored (C_out, C_in), as the embedding
table that an output projection shares. All of the cost is in the matrix products: 2 N C_in C_out
operations forward, twice that backward.
"""
from cython cimport floating

from rustgpt._ext.blas cimport gemm
from rustgpt._ext.checks cimport check_blas, check_matrix, check_vector


cdef int check_weight(
    const Py_ssize_t* weight, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, str name
) except -1:
    check_blas(name, weight)
    if transposed:
        return check_matrix(name, weight, c_out, c_in)
    return check_matrix(name, weight, c_in, c_out)


def linear_forward(
    const floating[:, ::1] x not None,       # IN (N, C_in)
    const floating[:, ::1] weight not None,  # IN (C_in, C_out)
    const floating[::1] bias,                # IN (C_out,) or None
    floating[:, ::1] out not None,           # OUT (N, C_out)
    bint transposed=False,
):
    """out = x @ weight + bias."""
    cdef Py_ssize_t N = out.shape[0], C_in = x.shape[1], C_out = out.shape[1]
    cdef Py_ssize_t n, c
    cdef bint with_bias = bias is not None
    check_matrix("x", x.shape, N, C_in)
    check_blas("x", x.shape)
    check_weight(weight.shape, C_in, C_out, transposed, "weight")
    if with_bias:
        check_vector("bias", bias.shape, C_out)
    if N == 0 or C_out == 0:
        return
    with nogil:
        if with_bias:
            for n in range(N):
                for c in range(C_out):
                    out[n, c] = bias[c]
        # out = x @ weight (+ out)
        gemm(False, transposed, N, C_out, C_in, <floating> 1, &x[0, 0], max(C_in, 1),
             &weight[0, 0], max(weight.shape[1], 1), <floating> with_bias, &out[0, 0], C_out)


def linear_backward(
    const floating[:, ::1] dout not None,    # IN (N, C_out)
    const floating[:, ::1] x not None,       # IN (N, C_in)
    const floating[:, ::1] weight not None,  # IN (C_in, C_out)
    floating[:, ::1] dx,                     # OUT (N, C_in) or None: overwritten
    floating[:, ::1] dweight not None,       # IN/OUT (C_in, C_out): added to
    floating[::1] dbias,                     # IN/OUT (C_out,) or None: added to
    bint transposed=False,
):
    """dx = dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout over the rows."""
    cdef Py_ssize_t N = dout.shape[0], C_in = x.shape[1], C_out = dout.shape[1]
    cdef Py_ssize_t n, c
    cdef bint with_bias = dbias is not None, with_dx = dx is not None
    check_matrix("x", x.shape, N, C_in)
    check_blas("x", x.shape)
    check_weight(weight.shape, C_in, C_out, transposed, "weight")
    check_weight(dweight.shape, C_in, C_out, transposed, "dweight")
    if with_dx:
        check_matrix("dx", dx.shape, N, C_in)
    if with_bias:
        check_vector("dbias", dbias.shape, C_out)
    if N == 0:
        return
    with nogil:
        if with_dx and C_in > 0:
            # dx = dout @ weight.T, from out = x @ weight
            gemm(False, not transposed, N, C_in, C_out, <floating> 1, &dout[0, 0], max(C_out, 1),
                 &weight[0, 0], max(weight.shape[1], 1), <floating> 0, &dx[0, 0], C_in)
        if C_in == 0 or C_out == 0:
            pass
        elif transposed:
            # dweight += dout.T @ x
            gemm(True, False, C_out, C_in, N, <floating> 1, &dout[0, 0], C_out,
                 &x[0, 0], C_in, <floating> 1, &dweight[0, 0], C_in)
        else:
            # dweight += x.T @ dout
            gemm(True, False, C_in, C_out, N, <floating> 1, &x[0, 0], C_in,
                 &dout[0, 0], C_out, <floating> 1, &dweight[0, 0], C_out)
        if with_bias:
            for n in range(N):
                for c in range(C_out):
                    dbias[c] += dout[n, c]
