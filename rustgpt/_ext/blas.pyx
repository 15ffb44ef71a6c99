"""Owns the matrix products: row-major GEMM over SciPy's BLAS. Nobody else thinks about
column order, and nobody else names the BLAS integer type."""
from cython cimport floating
from libc.string cimport memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from rustgpt._ext.checks cimport check_matrix, check_weight


cdef void gemm(
    bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
    const floating* a, Py_ssize_t lda, const floating* b, Py_ssize_t ldb, bint add,
    floating* c, Py_ssize_t ldc,
) noexcept nogil:
    # C = (C if add) + op(A) @ op(B) with op(A) (m, k), op(B) (k, n), C (m, n), by rows.
    # Read by columns C is C^T = op(B)^T op(A)^T: swap the factors and keep the flags.
    cdef char flag_a = b"t" if trans_a else b"n"
    cdef char flag_b = b"t" if trans_b else b"n"
    cdef int rows = <int> m, columns = <int> n, inner = <int> k
    # BLAS asks for a row length of at least 1, also of a matrix without columns.
    cdef int la = max(<int> lda, 1), lb = max(<int> ldb, 1), lc = max(<int> ldc, 1)
    cdef floating one = 1, beta = add
    if m == 1:
        # One row is a matrix-vector product, which need not pack B: several times as fast.
        row_product(trans_b, n, k, a, lda if trans_a else 1, b, ldb, add, c)
    elif floating is float:
        sgemm(&flag_b, &flag_a, &columns, &rows, &inner, &one, <float*> b, &lb,
              <float*> a, &la, &beta, c, &lc)
    else:
        dgemm(&flag_b, &flag_a, &columns, &rows, &inner, &one, <double*> b, &lb,
              <double*> a, &la, &beta, c, &lc)


cdef void row_product(
    bint trans_b, Py_ssize_t n, Py_ssize_t k, const floating* a, Py_ssize_t step_a,
    const floating* b, Py_ssize_t ldb, bint add, floating* c,
) noexcept nogil:
    # c = (c if add) + a @ op(B) with a (k,), op(B) (k, n), c (n,).
    # Read by columns B is B^T, so that B^T @ a, what is wanted without trans_b, is its plain form.
    cdef char trans = b"t" if trans_b else b"n"
    cdef int rows = <int> (k if trans_b else n), columns = <int> (n if trans_b else k)
    cdef int ld = max(<int> ldb, 1), ia = <int> step_a, ic = 1
    cdef floating one = 1, beta = add
    if k == 0:
        # A sum of no terms. BLAS would return at once and leave c as it was.
        if not add:
            memset(c, 0, n * sizeof(floating))
    elif floating is float:
        sgemv(&trans, &rows, &columns, &one, <float*> b, &ld, <float*> a, &ia, &beta, c, &ic)
    else:
        dgemv(&trans, &rows, &columns, &one, <double*> b, &ld, <double*> a, &ia, &beta, c, &ic)


def matrix_product(
    const floating[:, ::1] a not None,  # IN (m, k), or (k, m) if trans_a
    const floating[:, ::1] b not None,  # IN (k, n), or (n, k) if trans_b
    floating[:, ::1] out not None,      # IN/OUT (m, n)
    bint trans_a=False,
    bint trans_b=False,
    bint add=False,                     # IN: to out, or else it is overwritten
):
    """out = (out if add) + op(a) @ op(b).  2 m n k operations."""
    cdef Py_ssize_t m = out.shape[0], n = out.shape[1]
    cdef Py_ssize_t k = a.shape[0] if trans_a else a.shape[1]
    cdef floating* out0 = check_matrix[floating]("out", out, m, n)
    cdef floating* a0 = check_weight("a", a, m, k, trans_a)
    cdef floating* b0 = check_weight("b", b, k, n, trans_b)
    with nogil:
        gemm(trans_a, trans_b, m, n, k, a0, a.shape[1], b0, b.shape[1], add, out0, n)
