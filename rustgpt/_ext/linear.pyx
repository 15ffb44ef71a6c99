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
from rustgpt._ext.tiles cimport in_place, multiply


cdef void affine(
    const floating* x, const floating* weight, const floating* bias,  # bias NULL: none
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add, floating* out,
) noexcept nogil:
    """out = (out if add) + x @ weight + bias."""
    cdef Py_ssize_t i, c
    cdef Py_ssize_t ldw = c_in if transposed else c_out
    cdef floating* row
    if in_place(n, c_out, c_in):
        multiply(transposed, n, c_out, c_in, x, c_in, 1, weight, ldw, add, bias, out, c_out)
        return
    if bias != NULL:
        # The product adds to what is written here.
        for i in range(n):
            row = out + i * c_out
            if add:
                for c in range(c_out):
                    row[c] += bias[c]
            else:
                for c in range(c_out):
                    row[c] = bias[c]
    gemm(False, transposed, n, c_out, c_in, <floating> 1, x, c_in, weight, ldw,
         <floating> (add or bias != NULL), out, c_out)


cdef void affine_backward(
    const floating* dout, const floating* x, const floating* weight,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed,
    bint add, floating* dx, floating* dweight, floating* dbias,  # NULL: not wanted
) noexcept nogil:
    """dx = (dx if add) + dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout's rows."""
    cdef Py_ssize_t i, c
    cdef Py_ssize_t ldw = c_in if transposed else c_out
    if dx != NULL:
        # From out = x @ weight                                               (n, c_in)
        if in_place(n, c_in, c_out):
            multiply(not transposed, n, c_in, c_out, dout, c_out, 1, weight, ldw, add,
                     <const floating*> NULL, dx, c_in)
        else:
            gemm(False, not transposed, n, c_in, c_out, <floating> 1, dout, c_out, weight, ldw,
                 <floating> add, dx, c_in)
    if dweight != NULL and transposed:
        add_outer(dout, x, n, c_out, c_in, dweight)  # (c_out, c_in)
    elif dweight != NULL:
        add_outer(x, dout, n, c_in, c_out, dweight)  # (c_in, c_out)
    if dbias != NULL:
        for i in range(n):
            for c in range(c_out):
                dbias[c] += dout[i * c_out + c]


cdef void add_outer(
    const floating* a, const floating* b, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t columns,
    floating* out,
) noexcept nogil:
    """out (rows, columns) += a.T @ b: the sum over n rows of the outer products."""
    if in_place(rows, columns, n):
        multiply(False, rows, columns, n, a, 1, rows, b, columns, True, <const floating*> NULL,
                 out, columns)
    else:
        gemm(True, False, rows, columns, n, <floating> 1, a, rows, b, columns, <floating> 1,
             out, columns)


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
