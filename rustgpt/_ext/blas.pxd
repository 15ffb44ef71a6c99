from cython cimport floating

cdef void gemm(
    bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
    const floating* a, Py_ssize_t lda, const floating* b, Py_ssize_t ldb, bint add,
    floating* c, Py_ssize_t ldc,
) noexcept nogil
