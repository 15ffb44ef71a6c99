/* The C behind tile_softmax.pxd, which says what it is for. */
#ifndef RUSTGPT_TILE_SOFTMAX
#include "rows.h"
#include "tiles.h"
/* Softmax of a tile of scores, 16 n numbers a row, of which row i counts the first seen + i.
   Loops over a constant need no code for numbers that fill no vector. Each step is done for
   all rows before the next: rows do not wait for each other, but steps do. */
#define RUSTGPT_OF_WIDTH(FUNCTION, ...) switch (n) {                                          \
    case 1: FUNCTION(1, __VA_ARGS__); break;                                                  \
    case 2: FUNCTION(2, __VA_ARGS__); break;                                                  \
    case 3: FUNCTION(3, __VA_ARGS__); break;                                                  \
    default: FUNCTION(4, __VA_ARGS__);                                                        \
}
#define RUSTGPT_TILE_SOFTMAX(T, NAME)                                                         \
/* x = softmax(scale * x), 0 where it does not count; lse = the log of its denominator. */    \
static RUSTGPT_INLINE void softmax_of_##NAME(                                                 \
    const int n, T* x, Py_ssize_t ld, int rows, int seen, T scale, T* lse,                    \
    Py_ssize_t ld_lse) {                                                                      \
    T largest[RUSTGPT_TILE_ROWS], total[RUSTGPT_TILE_ROWS];                                   \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = x + i * ld, first = row[0], most = first;                                    \
        RUSTGPT_SIMD(reduction(max : most))                                                   \
        for (int j = 0; j < 16 * n; j++) {                                                    \
            T y = j < seen + i ? row[j] : first;                                              \
            most = y > most ? y : most;                                                       \
        }                                                                                     \
        largest[i] = scale * most;                                                            \
    }                                                                                         \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = x + i * ld, shift = largest[i], sum = 0;                                     \
        RUSTGPT_SIMD(reduction(+ : sum))                                                      \
        for (int j = 0; j < 16 * n; j++) {                                                    \
            T y = exp_##NAME(scale * row[j] - shift);                                         \
            row[j] = j < seen + i ? y : 0;                                                    \
            sum += row[j];                                                                    \
        }                                                                                     \
        total[i] = sum;                                                                       \
    }                                                                                         \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = x + i * ld, inverse = 1 / total[i];                                          \
        RUSTGPT_SIMD()                                                                        \
        for (int j = 0; j < 16 * n; j++) row[j] *= inverse;                                   \
    }                                                                                         \
    for (int i = 0; i < rows; i++)                                                            \
        lse[i * ld_lse] = largest[i] + (T)log((double)total[i]);                              \
}                                                                                             \
/* From scores x and the gradient dp of their softmax: x becomes the softmax p, and dp the    \
   gradient scale * p * (dp - sum(p * dp)) of the scores. */                                  \
static RUSTGPT_INLINE void softmax_backward_of_##NAME(                                        \
    const int n, T* x, T* dp, Py_ssize_t ld, int rows, int seen, T scale, const T* lse,       \
    Py_ssize_t ld_lse) {                                                                      \
    T mean[RUSTGPT_TILE_ROWS];                                                                \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = x + i * ld, *drow = dp + i * ld, shift = lse[i * ld_lse], sum = 0;           \
        RUSTGPT_SIMD(reduction(+ : sum))                                                      \
        for (int j = 0; j < 16 * n; j++) {                                                    \
            T y = exp_##NAME(scale * row[j] - shift);                                         \
            row[j] = j < seen + i ? y : 0;                                                    \
            sum += row[j] * drow[j];                                                          \
        }                                                                                     \
        mean[i] = sum;                                                                        \
    }                                                                                         \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = x + i * ld, *drow = dp + i * ld, middle = mean[i];                           \
        RUSTGPT_SIMD()                                                                        \
        for (int j = 0; j < 16 * n; j++) drow[j] = scale * row[j] * (drow[j] - middle);       \
    }                                                                                         \
}                                                                                             \
static void tile_softmax_##NAME(                                                              \
    T* x, Py_ssize_t ld, int rows, int n, int seen, T scale, T* lse, Py_ssize_t ld_lse) {     \
    RUSTGPT_OF_WIDTH(softmax_of_##NAME, x, ld, rows, seen, scale, lse, ld_lse)                \
}                                                                                             \
static void tile_softmax_backward_##NAME(                                                     \
    T* x, T* dp, Py_ssize_t ld, int rows, int n, int seen, T scale, const T* lse,             \
    Py_ssize_t ld_lse) {                                                                      \
    RUSTGPT_OF_WIDTH(softmax_backward_of_##NAME, x, dp, ld, rows, seen, scale, lse, ld_lse)   \
}
RUSTGPT_TILE_SOFTMAX(float, f32)
RUSTGPT_TILE_SOFTMAX(double, f64)
#endif
