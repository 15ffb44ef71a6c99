"""Owns the linear layer: out = x @ weight + bias, and its gradients.

A weight is stored (C_in, C_out); with `transposed` it is stored (C_out, C_in), as the embedding
table that an output projection shares. All of the cost is in the matrix products: 2 N C_in C_out
operations forward, twice that backward.
"""
from cython cimport floating

from rustgpt._ext.blas cimport gemm
from rustgpt._ext.checks cimport (
    check_blas, check_matrix, check_vector, check_weight, matrix_at, vector_at,
)


cdef void affine(
    const floating* x, const floating* weight, const floating* bias,  # bias NULL: none
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add, floating* out,
) noexcept nogil:
    """out = (out if add) + x @ weight + bias: the product adds to what was written before it."""
    cdef Py_ssize_t i, c
    cdef floating* row
    if bias != NULL:
        for i in range(n):
            row = out + i * c_out
            if add:
                for c in range(c_out):
                    row[c] += bias[c]
            else:
                for c in range(c_out):
                    row[c] = bias[c]
    gemm(False, transposed, n, c_out, c_in, <floating> 1, x, c_in,
         weight, c_in if transposed else c_out, <floating> (add or bias != NULL), out, c_out)


cdef void affine_backward(
    const floating* dout, const floating* x, const floating* weight,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed,
    bint add, floating* dx, floating* dweight, floating* dbias,  # NULL: not wanted
) noexcept nogil:
    """dx = (dx if add) + dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout's rows."""
    cdef Py_ssize_t i, c
    if dx != NULL:
        # From out = x @ weight                                               (n, c_in)
        gemm(False, not transposed, n, c_in, c_out, <floating> 1, dout, c_out,
             weight, c_in if transposed else c_out, <floating> add, dx, c_in)
    if dweight == NULL:
        pass
    elif transposed:
        #                                                                     (c_out, c_in)
        gemm(True, False, c_out, c_in, n, <floating> 1, dout, c_out, x, c_in,
             <floating> 1, dweight, c_in)
    else:
        #                                                                     (c_in, c_out)
        gemm(True, False, c_in, c_out, n, <floating> 1, x, c_in, dout, c_out,
             <floating> 1, dweight, c_out)
    if dbias != NULL:
        for i in range(n):
            for c in range(c_out):
                dbias[c] += dout[i * c_out + c]


def linear_forward(
    const floating[:, ::1] x not None,       # IN (N, C_in)
    const floating[:, ::1] weight not None,  # IN (C_in, C_out)
    const floating[::1] bias,                # IN (C_out,) or None
    floating[:, ::1] out not None,           # OUT (N, C_out)
    bint transposed=False,
):
    """out = x @ weight + bias."""
    cdef Py_ssize_t N = out.shape[0], C_in = x.shape[1], C_out = out.shape[1]
    check_matrix("x", x.shape, N, C_in)
    check_blas("x", x.shape)
    check_weight("weight", weight.shape, C_in, C_out, transposed)
    if bias is not None:
        check_vector("bias", bias.shape, C_out)
    cdef floating* x0 = matrix_at(x)
    cdef floating* weight0 = matrix_at(weight)
    cdef floating* bias0 = vector_at(bias)
    cdef floating* out0 = matrix_at[floating](out)
    with nogil:
        affine(x0, weight0, bias0, N, C_in, C_out, transposed, False, out0)


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
    check_matrix("x", x.shape, N, C_in)
    check_blas("x", x.shape)
    check_weight("weight", weight.shape, C_in, C_out, transposed)
    check_weight("dweight", dweight.shape, C_in, C_out, transposed)
    if dx is not None:
        check_matrix("dx", dx.shape, N, C_in)
    if dbias is not None:
        check_vector("dbias", dbias.shape, C_out)
    cdef floating* dout0 = matrix_at(dout)
    cdef floating* x0 = matrix_at(x)
    cdef floating* weight0 = matrix_at(weight)
    cdef floating* dx0 = matrix_at[floating](dx)
    cdef floating* dweight0 = matrix_at[floating](dweight)
    cdef floating* dbias0 = vector_at[floating](dbias)
    with nogil:
        affine_backward(dout0, x0, weight0, N, C_in, C_out, transposed, False,
                        dx0, dweight0, dbias0)
