"""Owns the matrix products: row-major GEMM and GEMV over SciPy's BLAS. Nobody else thinks about
column order, and nobody else names the BLAS integer type."""
from cython cimport floating
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from rustgpt._ext.checks cimport (
    check_aligned, check_blas, check_matrix, check_vector, matrix_address, matrix_at,
    vector_address, vector_at,
)


cdef void gemv(
    bint trans_a, Py_ssize_t m, Py_ssize_t n,
    floating alpha, const floating* a, Py_ssize_t lda, const floating* x, Py_ssize_t incx,
    floating beta, floating* y, Py_ssize_t incy,
) noexcept nogil:
    # y = alpha * op(A) @ x + beta * y with A (m, n) stored by rows.
    # Read by columns the same memory is A^T (n, m), so the transpose flag is turned round.
    cdef char trans = b"n" if trans_a else b"t"
    cdef int rows = <int> n, columns = <int> m, ld = max(<int> lda, 1)
    cdef int ix = <int> incx, iy = <int> incy
    cdef Py_ssize_t i
    if (m if trans_a else n) == 0:
        # A sum of no terms. BLAS would return at once and leave y as it was.
        for i in range(n if trans_a else m):
            y[i * incy] = beta * y[i * incy] if beta != 0 else <floating> 0
    elif floating is float:
        sgemv(&trans, &rows, &columns, &alpha, <float*> a, &ld, <float*> x, &ix, &beta, y, &iy)
    else:
        dgemv(&trans, &rows, &columns, &alpha, <double*> a, &ld, <double*> x, &ix, &beta, y, &iy)


cdef void gemm(
    bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
    floating alpha, const floating* a, Py_ssize_t lda, const floating* b, Py_ssize_t ldb,
    floating beta, floating* c, Py_ssize_t ldc,
) noexcept nogil:
    # C = alpha * op(A) @ op(B) + beta * C with op(A) (m, k), op(B) (k, n), C (m, n), by rows.
    # Read by columns C is C^T = op(B)^T op(A)^T: swap the factors and keep the flags.
    cdef char flag_a = b"t" if trans_a else b"n"
    cdef char flag_b = b"t" if trans_b else b"n"
    cdef int rows = <int> m, columns = <int> n, inner = <int> k
    # BLAS asks for a row length of at least 1, also of a matrix without columns.
    cdef int la = max(<int> lda, 1), lb = max(<int> ldb, 1), lc = max(<int> ldc, 1)
    if m == 1:
        # One row is a matrix-vector product, which need not pack B: several times as fast.
        if trans_b:
            gemv(False, n, k, alpha, b, ldb, a, lda if trans_a else 1, beta, c, 1)
        else:
            gemv(True, k, n, alpha, b, ldb, a, lda if trans_a else 1, beta, c, 1)
    elif floating is float:
        sgemm(&flag_b, &flag_a, &columns, &rows, &inner, &alpha, <float*> b, &lb,
              <float*> a, &la, &beta, c, &lc)
    else:
        dgemm(&flag_b, &flag_a, &columns, &rows, &inner, &alpha, <double*> b, &lb,
              <double*> a, &la, &beta, c, &lc)


def matrix_product(
    const floating[:, ::1] a not None,  # IN (m, k), or (k, m) if trans_a
    const floating[:, ::1] b not None,  # IN (k, n), or (n, k) if trans_b
    floating[:, ::1] out not None,      # IN/OUT (m, n)
    bint trans_a=False,
    bint trans_b=False,
    double alpha=1.0,
    double beta=0.0,
):
    """out = alpha * op(a) @ op(b) + beta * out.  2 m n k operations."""
    check_aligned(
        matrix_address(a) | matrix_address(b) | matrix_address[floating](out), sizeof(floating),
    )
    cdef Py_ssize_t m = out.shape[0], n = out.shape[1]
    cdef Py_ssize_t k = a.shape[0] if trans_a else a.shape[1]
    check_blas("out", out.shape)
    if trans_a:
        check_matrix("a", a.shape, k, m)
    else:
        check_matrix("a", a.shape, m, k)
    if trans_b:
        check_matrix("b", b.shape, n, k)
    else:
        check_matrix("b", b.shape, k, n)
    check_blas("a", a.shape)
    cdef floating* a0 = matrix_at(a)
    cdef floating* b0 = matrix_at(b)
    cdef floating* out0 = matrix_at[floating](out)
    with nogil:
        gemm(trans_a, trans_b, m, n, k, <floating> alpha, a0, a.shape[1], b0, b.shape[1],
             <floating> beta, out0, n)


def matrix_vector_product(
    const floating[:, ::1] a not None,  # IN (m, n)
    const floating[::1] x not None,     # IN (n,), or (m,) if trans_a
    floating[::1] out not None,         # IN/OUT (m,), or (n,) if trans_a
    bint trans_a=False,
    double alpha=1.0,
    double beta=0.0,
):
    """out = alpha * op(a) @ x + beta * out.  2 m n operations."""
    check_aligned(
        matrix_address(a) | vector_address(x) | vector_address[floating](out), sizeof(floating),
    )
    cdef Py_ssize_t m = a.shape[0], n = a.shape[1]
    check_blas("a", a.shape)
    check_vector("x", x.shape, m if trans_a else n)
    check_vector("out", out.shape, n if trans_a else m)
    cdef floating* a0 = matrix_at(a)
    cdef floating* x0 = vector_at(x)
    cdef floating* out0 = vector_at[floating](out)
    with nogil:
        gemv(trans_a, m, n, <floating> alpha, a0, n, x0, 1, <floating> beta, out0, 1)
