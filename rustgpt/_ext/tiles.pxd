"""Owns the matrix products that need no BLAS: a tile of the result stays in registers while its
sums are made, and the factors are read where they lie.

BLAS copies both factors into an order of its own before it multiplies. For products of a few dozen
rows that costs more than the sums, and it cannot leave out the part of a causal attention that a
mask would delete. With the 32 registers of AVX-512 a tile is so large that reading the factors in
place is no slower than reading copies, at any size whose factors stay in the cache; larger ones
are taken in parts that do. With the 16 of AVX2 one factor is copied after all: see `strips.pxd`.
"""
from cython cimport floating

cdef extern from "tiles.h" nogil:
    enum: RUSTGPT_FAST_TILES
    enum: RUSTGPT_TILE_ROWS
    enum: RUSTGPT_VECTOR
    # out (columns, rows) = x.T
    void transpose "transpose_f32"(const float* x, Py_ssize_t ld, Py_ssize_t rows,
                                   Py_ssize_t columns, float* out, Py_ssize_t ldo)
    void transpose "transpose_f64"(const double* x, Py_ssize_t ld, Py_ssize_t rows,
                                   Py_ssize_t columns, double* out, Py_ssize_t ldo)
    # C = (C if add) + bias + A @ op(B), where A[i, l] is a[i * row_a + l * step_a].
    # op(B) is (k, n), C is (m, n); bias (n,) may be NULL. If B or C is `far`, in no near cache, the
    # memory is asked for what comes next of it: at last for `next`, B of the next product, or NULL.
    void multiply "multiply_f32"(
        bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* a, Py_ssize_t row_a,
        Py_ssize_t step_a, const float* b, Py_ssize_t ldb, const float* next, bint far, bint add,
        const float* bias, float* c, Py_ssize_t ldc)
    void multiply "multiply_f64"(
        bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const double* a, Py_ssize_t row_a,
        Py_ssize_t step_a, const double* b, Py_ssize_t ldb, const double* next, bint far, bint add,
        const double* bias, double* c, Py_ssize_t ldc)


cdef inline void product(
    const floating* a, Py_ssize_t row_a, Py_ssize_t step_a, const floating* b, Py_ssize_t ldb,
    Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, floating* c, Py_ssize_t ldc,
) noexcept nogil:
    """C (m, n) = A (m, k) @ B (k, n), where A[i, l] is a[i * row_a + l * step_a]."""
    multiply(False, m, n, k, a, row_a, step_a, b, ldb, NULL, False, False, NULL, c, ldc)


# Numbers of the largest second factor, or result, that is made in place: about what a cache holds.
# And those that the second-level cache holds.
cdef enum:
    IN_PLACE = 4194304
    NEAR = 262144


cdef inline bint is_far(Py_ssize_t size) noexcept nogil:
    """Whether a matrix is larger than the second-level cache."""
    return size > NEAR


cdef inline bint in_place(Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Whether a product (m, k) @ (k, n) is better made in place than by BLAS."""
    return in_parts() and m > 1 and n * k <= IN_PLACE and m * n <= IN_PLACE


# A larger matrix is taken in parts of at most so many columns, and these in slices of rows: of a
# slice the second-level cache holds so many numbers. Beside them it holds so many of the other
# factor, or of the result. So memory is read in order, and not by a tile's columns.
cdef enum:
    WIDTH = 768
    SLICE = 98304
    BESIDE = 196608


cdef inline bint in_parts() noexcept nogil:
    """Whether a product with a matrix that is too large in place is better made so than by BLAS."""
    return RUSTGPT_FAST_TILES and RUSTGPT_VECTOR == 64


cdef inline Py_ssize_t columns_a_part(Py_ssize_t width) noexcept nogil:
    """How many of so many columns a part has: whole tiles of 64."""
    return ceil_of(ceil_of(width, ceil_of(width, WIDTH)), 64) * 64


cdef inline Py_ssize_t rows_a_slice(Py_ssize_t width) noexcept nogil:
    """Rows of this width in a slice: whole tiles of 64."""
    return SLICE // max(1, width) // 64 * 64


cdef inline Py_ssize_t rows_beside(Py_ssize_t width) noexcept nogil:
    """Rows of this width of the other factor, or of the result, that go with slices at once."""
    return BESIDE // max(1, width)


cdef inline Py_ssize_t ceil_of(Py_ssize_t size, Py_ssize_t step) noexcept nogil:
    """How many steps a size takes: at least one."""
    return max(1, (size + step - 1) // step)
