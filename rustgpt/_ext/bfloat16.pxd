"""Owns the matrix products that round their factors to bfloat16 and add in float32.

A bfloat16 is the upper half of a float32: its range, and 8 bits of its precision. AVX512-BF16
multiplies 32 pairs of them at once and adds each pair's products to a float32, twice what a
register of float32 can do. Factors are rounded (to nearest, ties to even) on their way into blocks
that fit the cache, two neighbours along k in one word: 2 m n k operations, m k + n k m / BLOCK
numbers rounded. Nothing of it is seen outside: factors, sums and results are float32.
"""
cdef extern from "bfloat16.h" nogil:
    enum: RUSTGPT_BFLOAT16  # whether it is compiled
    void multiply_bf16(
        bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* a,
        Py_ssize_t lda, const float* b, Py_ssize_t ldb, bint add, const float* bias, float* c,
        Py_ssize_t ldc)
