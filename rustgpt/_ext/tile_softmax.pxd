"""Owns the softmax of attention's scores a tile at a time, and its gradient.

About 4 operations and one exponential a score, that of the gradient one more; the tile, of a few
rows and up to 64 scores each, stays in the first-level cache between the steps.
"""
from cython cimport floating

# For its C code: exp_f32, exp_f64, RUSTGPT_SIMD, RUSTGPT_INLINE and RUSTGPT_TILE_ROWS.
from rustgpt._ext cimport rows, tiles

cdef extern from *:
    """
    #ifndef RUSTGPT_TILE_SOFTMAX
    /* Softmax of a tile of scores, 16 n numbers a row, of which row i counts the first seen + i.
       Loops over a constant need no code for numbers that fill no vector. Each step is done for
       all rows before the next: rows do not wait for each other, but steps do. */
    #define RUSTGPT_TILE_SOFTMAX(T, NAME)                                                         \\
    /* x = softmax(scale * x), 0 where it does not count; lse = the log of its denominator. */    \\
    static RUSTGPT_INLINE void softmax_of_##NAME(                                                 \\
        T* x, Py_ssize_t ld, int rows, const int n, int seen, T scale, T* lse,                    \\
        Py_ssize_t ld_lse) {                                                                      \\
        T largest[RUSTGPT_TILE_ROWS], total[RUSTGPT_TILE_ROWS];                                   \\
        for (int i = 0; i < rows; i++) {                                                          \\
            T *row = x + i * ld, first = row[0], most = first;                                    \\
            RUSTGPT_SIMD(reduction(max : most))                                                   \\
            for (int j = 0; j < 16 * n; j++) {                                                    \\
                T y = j < seen + i ? row[j] : first;                                              \\
                most = y > most ? y : most;                                                       \\
            }                                                                                     \\
            largest[i] = scale * most;                                                            \\
        }                                                                                         \\
        for (int i = 0; i < rows; i++) {                                                          \\
            T *row = x + i * ld, shift = largest[i], sum = 0;                                     \\
            RUSTGPT_SIMD(reduction(+ : sum))                                                      \\
            for (int j = 0; j < 16 * n; j++) {                                                    \\
                T y = exp_##NAME(scale * row[j] - shift);                                         \\
                row[j] = j < seen + i ? y : 0;                                                    \\
                sum += row[j];                                                                    \\
            }                                                                                     \\
            total[i] = sum;                                                                       \\
        }                                                                                         \\
        for (int i = 0; i < rows; i++) {                                                          \\
            T *row = x + i * ld, inverse = 1 / total[i];                                          \\
            RUSTGPT_SIMD()                                                                        \\
            for (int j = 0; j < 16 * n; j++) row[j] *= inverse;                                   \\
        }                                                                                         \\
        for (int i = 0; i < rows; i++)                                                            \\
            lse[i * ld_lse] = largest[i] + (T)log((double)total[i]);                              \\
    }                                                                                             \\
    /* From scores x and the gradient dp of their softmax: x becomes the softmax p, and dp the    \\
       gradient scale * p * (dp - sum(p * dp)) of the scores. */                                  \\
    static RUSTGPT_INLINE void softmax_backward_of_##NAME(                                        \\
        T* x, T* dp, Py_ssize_t ld, int rows, const int n, int seen, T scale, const T* lse,       \\
        Py_ssize_t ld_lse) {                                                                      \\
        T mean[RUSTGPT_TILE_ROWS];                                                                \\
        for (int i = 0; i < rows; i++) {                                                          \\
            T *row = x + i * ld, *drow = dp + i * ld, shift = lse[i * ld_lse], sum = 0;           \\
            RUSTGPT_SIMD(reduction(+ : sum))                                                      \\
            for (int j = 0; j < 16 * n; j++) {                                                    \\
                T y = exp_##NAME(scale * row[j] - shift);                                         \\
                row[j] = j < seen + i ? y : 0;                                                    \\
                sum += row[j] * drow[j];                                                          \\
            }                                                                                     \\
            mean[i] = sum;                                                                        \\
        }                                                                                         \\
        for (int i = 0; i < rows; i++) {                                                          \\
            T *row = x + i * ld, *drow = dp + i * ld, middle = mean[i];                           \\
            RUSTGPT_SIMD()                                                                        \\
            for (int j = 0; j < 16 * n; j++) drow[j] = scale * row[j] * (drow[j] - middle);       \\
        }                                                                                         \\
    }                                                                                             \\
    static void tile_softmax_##NAME(                                                              \\
        T* x, Py_ssize_t ld, int rows, int n, int seen, T scale, T* lse, Py_ssize_t ld_lse) {     \\
        switch (n) {                                                                              \\
        case 1: softmax_of_##NAME(x, ld, rows, 1, seen, scale, lse, ld_lse); break;               \\
        case 2: softmax_of_##NAME(x, ld, rows, 2, seen, scale, lse, ld_lse); break;               \\
        case 3: softmax_of_##NAME(x, ld, rows, 3, seen, scale, lse, ld_lse); break;               \\
        default: softmax_of_##NAME(x, ld, rows, 4, seen, scale, lse, ld_lse);                     \\
        }                                                                                         \\
    }                                                                                             \\
    static void tile_softmax_backward_##NAME(                                                     \\
        T* x, T* dp, Py_ssize_t ld, int rows, int n, int seen, T scale, const T* lse,             \\
        Py_ssize_t ld_lse) {                                                                      \\
        switch (n) {                                                                              \\
        case 1: softmax_backward_of_##NAME(x, dp, ld, rows, 1, seen, scale, lse, ld_lse); break;  \\
        case 2: softmax_backward_of_##NAME(x, dp, ld, rows, 2, seen, scale, lse, ld_lse); break;  \\
        case 3: softmax_backward_of_##NAME(x, dp, ld, rows, 3, seen, scale, lse, ld_lse); break;  \\
        default: softmax_backward_of_##NAME(x, dp, ld, rows, 4, seen, scale, lse, ld_lse);        \\
        }                                                                                         \\
    }
    RUSTGPT_TILE_SOFTMAX(float, f32)
    RUSTGPT_TILE_SOFTMAX(double, f64)
    #endif
    """
    void tile_softmax_f32(float* x, Py_ssize_t ld, int m, int n, int seen, float scale,
                          float* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_f64(double* x, Py_ssize_t ld, int m, int n, int seen, double scale,
                          double* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_backward_f32(float* x, float* dp, Py_ssize_t ld, int m, int n, int seen,
                                   float scale, const float* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_backward_f64(
        double* x, double* dp, Py_ssize_t ld, int m, int n, int seen, double scale,
        const double* lse, Py_ssize_t ld_lse) noexcept nogil


cdef inline void tile_softmax(
    floating* x, Py_ssize_t ld, int m,  # IN/OUT (m, 16 n), n up to 4: scores; their softmax
    int n, int seen, floating scale,    # row i counts the first seen + i
    floating* lse, Py_ssize_t ld_lse,   # OUT (m,): the log of its denominator
) noexcept nogil:
    """x = softmax(scale * x), and 0 where it does not count."""
    if floating is float:
        tile_softmax_f32(x, ld, m, n, seen, scale, lse, ld_lse)
    else:
        tile_softmax_f64(x, ld, m, n, seen, scale, lse, ld_lse)


cdef inline void tile_softmax_backward(
    floating* x, floating* dp, Py_ssize_t ld, int m,  # IN/OUT (m, 16 n): scores, gradient
    int n, int seen, floating scale,
    const floating* lse, Py_ssize_t ld_lse,           # IN (m,)
) noexcept nogil:
    """From scores and the gradient of their softmax: softmax in x, the scores' gradient in dp."""
    if floating is float:
        tile_softmax_backward_f32(x, dp, ld, m, n, seen, scale, lse, ld_lse)
    else:
        tile_softmax_backward_f64(x, dp, ld, m, n, seen, scale, lse, ld_lse)
