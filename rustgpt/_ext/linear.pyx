"""Owns the linear layer: out = x @ weight + bias, and its gradients.

A weight is stored (C_in, C_out); with `transposed` it is stored (C_out, C_in), as the embedding
table that an output projection shares. All of the cost is in the matrix products: 2 N C_in C_out
operations forward, twice that backward. With `bfloat16` the factors of the products are rounded to
that, and sums and results stay float32.
"""
from cython cimport floating
from libc.string cimport memset

from rustgpt._ext.bfloat16 cimport RUSTGPT_BFLOAT16, multiply_bf16
from rustgpt._ext.blas cimport gemm
from rustgpt._ext.checks cimport check_matrix, check_vector, check_weight
from rustgpt._ext.cpu cimport has_bfloat16
from rustgpt._ext.shard cimport Shard, alone, edge_of
from rustgpt._ext.strips cimport in_strips, multiply_strips, sum_in_strips
from rustgpt._ext.tiles cimport (
    ceil_of, columns_a_part, in_parts, in_place, is_far, multiply, rows_a_slice, rows_beside,
)


cdef int check_bfloat16(bint bfloat16, Py_ssize_t itemsize) except -1:
    if bfloat16 and itemsize != sizeof(float):
        raise ValueError("bfloat16 is for float32 arrays, got float64")
    if bfloat16 and not (RUSTGPT_BFLOAT16 and has_bfloat16()):
        raise ValueError("bfloat16 must be False: these kernels or this processor lack AVX512-BF16")
    return 0


cdef void affine(
    const floating* x, const floating* weight, const floating* bias,  # bias NULL: none
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add, bint bfloat16,
    floating* out,
) noexcept nogil:
    """out = (out if add) + x @ weight + bias."""
    cdef Py_ssize_t i, c, ldw = c_in if transposed else c_out
    cdef floating* row
    if floating is float:
        if bfloat16:
            multiply_bf16(False, transposed, n, c_out, c_in, x, c_in, weight, ldw, add, bias,
                          out, c_out)
            return
    if in_place(n, c_out, c_in):
        multiply(transposed, n, c_out, c_in, x, c_in, 1, weight, ldw, NULL, is_far(c_in * c_out),
                 add, bias, out, c_out)
    elif in_strips(n):
        multiply_strips(False, transposed, n, c_out, c_in, x, c_in, weight, ldw, add, bias, out,
                        c_out)
    elif n > 1 and in_parts():
        affine_in_parts(x, weight, bias, n, c_in, c_out, transposed, add, out)
    else:
        for i in range(n if bias != NULL else 0):  # the product adds to what is written here
            row = out + i * c_out
            for c in range(c_out):
                row[c] = row[c] + bias[c] if add else bias[c]
        gemm(False, transposed, n, c_out, c_in, x, c_in, weight, ldw, add or bias != NULL, out,
             c_out)


cdef void affine_in_parts(
    const floating* x, const floating* weight, const floating* bias,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add, floating* out,
) noexcept nogil:
    """`affine`, with a part of the weight's columns and a block of rows at a time."""
    cdef Py_ssize_t width = c_in if transposed else c_out
    cdef Py_ssize_t step = columns_a_part(width), j, first, some, blocks, i, row, rows
    for j in range(ceil_of(width, step)):
        first = j * step
        some = min(step, width - first)
        blocks = ceil_of(n, rows_beside(some))
        for i in range(blocks):
            row = edge_of(n, i, blocks)
            rows = edge_of(n, i + 1, blocks) - row
            if transposed:
                # out += x[:, part] @ weight[:, part].T
                multiply(True, rows, c_out, some, x + row * c_in + first, c_in, 1, weight + first,
                         c_in, NULL, is_far(some * c_out), add or first > 0,
                         bias if first == 0 else NULL, out + row * c_out, c_out)
            else:
                # out[:, part] = x @ weight[:, part]
                affine_in_slices(x + row * c_in, weight + first,
                                 bias + first if bias != NULL else NULL, rows, c_in, some, c_out,
                                 add, out + row * c_out + first)


cdef void affine_in_slices(
    const floating* x, const floating* weight, const floating* bias, Py_ssize_t n,
    Py_ssize_t c_in, Py_ssize_t columns, Py_ssize_t c_out, bint add, floating* out,
) noexcept nogil:
    """Some columns of `affine`, as a sum of products with some of the weight's rows at a time."""
    cdef Py_ssize_t step = rows_a_slice(columns), i, first, rows
    cdef const floating* slice
    for i in range(ceil_of(c_in, step)):
        first = i * step
        rows = min(step, c_in - first)
        slice = weight + first * c_out
        multiply(False, n, columns, rows, x + first, c_in, 1, slice, c_out,
                 slice + rows * c_out if first + rows < c_in else NULL, True, add or first > 0,
                 bias if first == 0 else NULL, out, c_out)


cdef void add_gradients(
    const Shard* s,
    const floating* dout, const floating* x, Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out,
    bint transposed, bint add, bint bfloat16,
    floating* dweight, floating* dbias,  # dbias NULL: not wanted
) noexcept nogil:
    """dweight = (dweight if add) + x.T @ dout, a thread's part of its rows; dbias likewise."""
    cdef Py_ssize_t i, c
    cdef Py_ssize_t rows = c_out if transposed else c_in
    cdef Py_ssize_t first = edge_of(rows, s.index, s.n), stop = edge_of(rows, s.index + 1, s.n)
    if transposed:
        outer(dout + first, c_out, x, n, rows, stop - first, c_in, add, bfloat16,
              dweight + first * c_in)
    else:
        outer(x + first, c_in, dout, n, rows, stop - first, c_out, add, bfloat16,
              dweight + first * c_out)
    if dbias != NULL:
        first, stop = edge_of(c_out, s.index, s.n), edge_of(c_out, s.index + 1, s.n)
        if not add:
            memset(dbias + first, 0, (stop - first) * sizeof(floating))
        for i in range(n):
            for c in range(first, stop):
                dbias[c] += dout[i * c_out + c]


cdef void outer(
    const floating* a, Py_ssize_t lda, const floating* b, Py_ssize_t n, Py_ssize_t all_rows,
    Py_ssize_t rows, Py_ssize_t columns, bint add, bint bfloat16,
    floating* out,
) noexcept nogil:
    """out (rows, columns) = (out if add) + a.T @ b: the sum over n rows of the outer products.

    The rows are a thread's of `all_rows`, on which it depends how the product is made.
    """
    cdef Py_ssize_t i, j, first, few, slice, column, some, step
    if rows == 0 or columns == 0:
        return
    if n == 0:
        if not add:
            memset(out, 0, rows * columns * sizeof(floating))
        return
    if floating is float:
        if bfloat16:
            multiply_bf16(True, False, rows, columns, n, a, lda, b, columns, add, NULL, out,
                          columns)
            return
    if in_place(all_rows, columns, n):
        multiply(False, rows, columns, n, a, 1, lda, b, columns, NULL, is_far(all_rows * columns),
                 add, NULL, out, columns)
    elif sum_in_strips(all_rows, columns, n):
        multiply_strips(True, False, rows, columns, n, a, lda, b, columns, add, NULL, out, columns)
    elif in_parts():
        step = columns_a_part(columns)
        for j in range(ceil_of(columns, step)):
            column = j * step
            some = min(step, columns - column)
            slice = rows_a_slice(some)
            for i in range(ceil_of(rows, slice)):
                first = i * slice
                few = min(slice, rows - first)
                multiply(False, few, some, n, a + first, 1, lda, b + column, columns, NULL, True,
                         add, NULL, out + first * columns + column, columns)
    else:
        gemm(True, False, rows, columns, n, a, lda, b, columns, add, out, columns)


def linear_forward(
    const floating[:, ::1] x not None,       # IN (N, C_in)
    const floating[:, ::1] weight not None,  # IN (C_in, C_out)
    const floating[::1] bias,                # IN (C_out,) or None
    floating[:, ::1] out not None,           # OUT (N, C_out)
    bint transposed=False,
    bint bfloat16=False,                     # IN: whether the products' factors are rounded to it
):
    """out = x @ weight + bias."""
    cdef Py_ssize_t N = out.shape[0], C_in = x.shape[1], C_out = out.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, C_in)
    cdef floating* weight0 = check_weight("weight", weight, C_in, C_out, transposed)
    cdef floating* bias0 = check_vector("bias", bias, C_out)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C_out)
    check_bfloat16(bfloat16, sizeof(floating))
    with nogil:
        affine(x0, weight0, bias0, N, C_in, C_out, transposed, False, bfloat16, out0)


def linear_backward(
    const floating[:, ::1] dout not None,    # IN (N, C_out)
    const floating[:, ::1] x not None,       # IN (N, C_in)
    const floating[:, ::1] weight not None,  # IN (C_in, C_out)
    floating[:, ::1] dx,                     # OUT (N, C_in) or None: overwritten
    floating[:, ::1] dweight not None,       # IN/OUT (C_in, C_out): added to
    floating[::1] dbias,                     # IN/OUT (C_out,) or None: added to
    bint transposed=False,
    bint bfloat16=False,                     # IN: whether the products' factors are rounded to it
):
    """dx = dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout over the rows."""
    cdef Py_ssize_t N = dout.shape[0], C_in = x.shape[1], C_out = dout.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, C_out)
    cdef floating* x0 = check_matrix("x", x, N, C_in)
    cdef floating* weight0 = check_weight("weight", weight, C_in, C_out, transposed)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, C_in)
    cdef floating* dweight0 = check_weight[floating]("dweight", dweight, C_in, C_out, transposed)
    cdef floating* dbias0 = check_vector[floating]("dbias", dbias, C_out)
    check_bfloat16(bfloat16, sizeof(floating))
    cdef Shard s = alone(N)
    with nogil:
        if dx0 != NULL:
            # From out = x @ weight                                           (N, C_in)
            affine(dout0, weight0, <const floating*> NULL, N, C_out, C_in, not transposed,
                   False, bfloat16, dx0)
        add_gradients(&s, dout0, x0, N, C_in, C_out, transposed, True, bfloat16, dweight0, dbias0)
