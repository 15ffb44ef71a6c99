/* The C behind strips.pxd, which says what it is for. */
#ifndef RUSTGPT_STRIPS
#define RUSTGPT_STRIPS
#include "tiles.h"
/* The most rows of a block of B, and its bytes: 151 KB. */
#define RUSTGPT_DEPTH_OF_STRIPS 256
#define RUSTGPT_BLOCK_OF_STRIPS (192 * (192 + 4) * 4)
/* From a copy to the next, in rows: with DEPTH alone they would share few sets of a cache. */
#define RUSTGPT_PITCH(DEPTH) ((DEPTH) + 4)
/* Tiles of a column-wise A that are copied at a time: of float32, three cache lines. */
#define RUSTGPT_TILES_AT_ONCE 8

#define RUSTGPT_MULTIPLY_STRIPS(T, NAME)                                                      \
/* out[strip][l][W] = a block of B, filled up with zeros. */                                  \
static void copy_strips_##NAME(                                                               \
    int trans_b, Py_ssize_t depth, Py_ssize_t columns, const T* b, Py_ssize_t ldb, T* out) {  \
    enum { W = RUSTGPT_VECTORS * LANES_##NAME };                                              \
    Py_ssize_t whole = columns / W * W, rest = columns - whole, j, l;                         \
    for (j = 0; j < whole && trans_b; j += W)                                                 \
        transpose_##NAME(b + j * ldb, ldb, W, depth, out + j * RUSTGPT_PITCH(depth), W);      \
    for (l = 0; l < depth && !trans_b; l++) /* by rows: memory is read in order */            \
        for (j = 0; j < whole; j += W)                                                        \
            memcpy(out + j * RUSTGPT_PITCH(depth) + l * W, b + l * ldb + j, W * sizeof(T));   \
    if (rest == 0) return;                                                                    \
    out += whole * RUSTGPT_PITCH(depth);                                                      \
    memset(out, 0, depth * W * sizeof(T));                                                    \
    if (trans_b)                                                                              \
        transpose_##NAME(b + whole * ldb, ldb, rest, depth, out, W);                          \
    else                                                                                      \
        for (l = 0; l < depth; l++)                                                           \
            memcpy(out + l * W, b + l * ldb + whole, rest * sizeof(T));                       \
}                                                                                             \
/* out[tile][l][R] = m columns of A, as the rows of its transpose. */                         \
static void copy_rows_##NAME(                                                                 \
    Py_ssize_t m, Py_ssize_t depth, const T* a, Py_ssize_t lda, T* out) {                     \
    enum { R = RUSTGPT_TILE_ROWS, TILES = RUSTGPT_TILES_AT_ONCE };                            \
    for (Py_ssize_t l = 0; l < depth; l++, a += lda) {                                        \
        if (m == R * TILES)                                                                   \
            for (int t = 0; t < TILES; t++)                                                   \
                memcpy(out + t * R * RUSTGPT_PITCH(depth) + l * R, a + t * R, R * sizeof(T)); \
        else                                                                                  \
            for (Py_ssize_t i = 0; i < m; i++)                                                \
                out[i / R * R * RUSTGPT_PITCH(depth) + l * R + i % R] = a[i];                 \
    }                                                                                         \
}                                                                                             \
/* C (m, columns) = (C if add) + bias + A @ strips, of a few rows. */                         \
static void times_strips_##NAME(                                                              \
    Py_ssize_t m, Py_ssize_t columns, int add, const T* bias, const T* a, Py_ssize_t row_a,   \
    Py_ssize_t step_a, const T* strips, Py_ssize_t depth, T* c, Py_ssize_t ldc) {             \
    enum { W = RUSTGPT_VECTORS * LANES_##NAME };                                              \
    for (Py_ssize_t j = 0; j < columns; j += W) {                                             \
        Py_ssize_t width = columns - j < W ? columns - j : W;                                 \
        int vectors = (int)((width + LANES_##NAME - 1) / LANES_##NAME);                       \
        const T *strip = strips + j * RUSTGPT_PITCH(depth), *first = bias ? bias + j : NULL;  \
        if (width == vectors * LANES_##NAME)                                                  \
            tiles_##NAME(m, vectors, 0, add, first, a, row_a, step_a, strip, W, depth, c + j, \
                         ldc, (ahead_##NAME){a, 0, 0, 0});                                    \
        else                                                                                  \
            last_tiles_##NAME(m, vectors, width, 0, add, first, a, row_a, step_a, strip, W,   \
                              depth, c + j, ldc);                                             \
    }                                                                                         \
}                                                                                             \
/* C (m, columns) = (C if add) + bias + op(A) @ strips. */                                    \
static void rows_times_strips_##NAME(                                                         \
    int trans_a, Py_ssize_t m, Py_ssize_t columns, int add, const T* bias, const T* a,        \
    Py_ssize_t lda, const T* strips, Py_ssize_t depth, T* c, Py_ssize_t ldc) {                \
    enum { R = RUSTGPT_TILE_ROWS, SOME = R * RUSTGPT_TILES_AT_ONCE };                         \
    T copy[SOME * RUSTGPT_PITCH(RUSTGPT_DEPTH_OF_STRIPS)];                                    \
    Py_ssize_t left = (m + R - 1) / R, i, rows, t;                                            \
    for (i = 0; !trans_a && i < m; i += rows, left--) { /* divided evenly */                  \
        rows = (m - i + left - 1) / left;                                                     \
        times_strips_##NAME(rows, columns, add, bias, a + i * lda, lda, 1, strips, depth,     \
                            c + i * ldc, ldc);                                                \
    }                                                                                         \
    for (i = 0; trans_a && i < m; i += rows) {                                                \
        rows = m - i < SOME ? m - i : SOME;                                                   \
        copy_rows_##NAME(rows, depth, a + i, lda, copy);                                      \
        for (t = 0; t < rows; t += R)                                                         \
            times_strips_##NAME(rows - t < R ? rows - t : R, columns, add, bias,              \
                                copy + t * RUSTGPT_PITCH(depth), 1, R, strips, depth,         \
                                c + (i + t) * ldc, ldc);                                      \
    }                                                                                         \
}                                                                                             \
static void multiply_strips_##NAME(                                                           \
    int trans_a, int trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const T* a,           \
    Py_ssize_t lda, const T* b, Py_ssize_t ldb, int add, const T* bias, T* c,                 \
    Py_ssize_t ldc) {                                                                         \
    enum { W = RUSTGPT_VECTORS * LANES_##NAME, SIZE = RUSTGPT_BLOCK_OF_STRIPS / sizeof(T) };  \
    T strips[SIZE];                                                                           \
    Py_ssize_t left = (k + RUSTGPT_DEPTH_OF_STRIPS - 1) / RUSTGPT_DEPTH_OF_STRIPS;            \
    Py_ssize_t l, depth, j, columns, most;                                                    \
    left = left > 0 ? left : 1; /* a sum of no terms is written too */                        \
    for (l = 0; left > 0; l += depth, left--) { /* blocks of one depth */                     \
        depth = (k - l + left - 1) / left;                                                    \
        most = SIZE / RUSTGPT_PITCH(depth) / W * W;                                           \
        for (j = 0; j < n; j += columns) {                                                    \
            columns = n - j < most ? n - j : most;                                            \
            copy_strips_##NAME(trans_b, depth, columns,                                       \
                               trans_b ? b + j * ldb + l : b + l * ldb + j, ldb, strips);     \
            rows_times_strips_##NAME(trans_a, m, columns, add || l > 0,                       \
                                     bias && l == 0 ? bias + j : NULL,                        \
                                     trans_a ? a + l * lda : a + l, lda, strips, depth,       \
                                     c + j, ldc);                                             \
        }                                                                                     \
    }                                                                                         \
}
RUSTGPT_MULTIPLY_STRIPS(float, f32)
RUSTGPT_MULTIPLY_STRIPS(double, f64)
#endif
