"""Owns the matrix products with AVX2, whose 16 registers hold a tile of 6 x 16 numbers.

A tile so narrow reads one cache line of each row of the second factor, and those lie far apart. So
a block of that factor is copied first, into strips of a tile's width that the second-level cache
holds; a few rows of the first factor then pass by all strips, and their sums go to memory in order.
The first factor is read where it lies, or copied a few rows at a time if its rows are columns. BLAS
copies both factors, in pieces for products of thousands of rows. With the few dozen to few
hundred of a small model, it needs up to twice the time of this.

A product (m, k) @ (k, n) is 2 m n k operations. The second factor is read, written and read again
from the cache once; the first and the result are read once for some 150 columns of the second.
"""
from rustgpt._ext.tiles cimport RUSTGPT_FAST_TILES, RUSTGPT_VECTOR

cdef extern from "strips.h" nogil:
    # C (m, n) = (C if add) + bias + op(A) @ op(B), by rows; bias (n,) may be NULL.
    void multiply_strips "multiply_strips_f32"(
        bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* a,
        Py_ssize_t lda, const float* b, Py_ssize_t ldb, bint add, const float* bias, float* c,
        Py_ssize_t ldc)
    void multiply_strips "multiply_strips_f64"(
        bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const double* a,
        Py_ssize_t lda, const double* b, Py_ssize_t ldb, bint add, const double* bias, double* c,
        Py_ssize_t ldc)


cdef inline bint in_strips(Py_ssize_t m) noexcept nogil:
    """Whether a product of m rows, read where they lie, is better made in strips than by BLAS."""
    return RUSTGPT_FAST_TILES and RUSTGPT_VECTOR == 32 and m > 1


cdef inline bint sum_in_strips(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Whether a sum of k outer products (m, n) is better made in strips than by BLAS.

    Many rows of a large result are BLAS's, whose copies of both factors are then read more often.
    """
    return in_strips(m) and (k <= 128 or m * n <= 262144)
