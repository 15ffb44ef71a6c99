"""Owns small matrix products: a tile of the result stays in registers while the sums are made.

For products of a few dozen rows BLAS spends more time on packing its arguments than on the sums,
and it cannot leave out the part of a causal attention that a mask would delete.
"""
from cython cimport floating

# For its C code: exp_f32, exp_f64 and RUSTGPT_SIMD.
from rustgpt._ext cimport rows

cdef extern from *:
    """
    #ifndef RUSTGPT_TILES
    #define RUSTGPT_TILES
    #include <string.h>

    /* A tile is 64 bytes wide: VECTORS registers a row. Fewer rows where there are 16 registers of
       16 bytes only. */
    #if defined(__AVX512F__)
    #define RUSTGPT_VECTOR 64
    #elif defined(__AVX__)
    #define RUSTGPT_VECTOR 32
    #else
    #define RUSTGPT_VECTOR 16
    #endif
    #if defined(__AVX__) || defined(__aarch64__)
    #define RUSTGPT_TILE_ROWS 4
    #else
    #define RUSTGPT_TILE_ROWS 2
    #endif
    #define RUSTGPT_VECTORS (64 / RUSTGPT_VECTOR)

    #if defined(__GNUC__)
    #define RUSTGPT_TILE_FUNCTION(T, NAME)                                                        \\
    typedef T vector_##NAME __attribute__((vector_size(RUSTGPT_VECTOR), aligned(sizeof(T)),       \\
                                           may_alias));                                           \\
    static inline __attribute__((always_inline)) void tile_##NAME(                                \\
        int rows, const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,    \\
        Py_ssize_t k, T* c, Py_ssize_t ldc) {                                                     \\
        enum { LANES = RUSTGPT_VECTOR / sizeof(T) };                                              \\
        vector_##NAME sums[RUSTGPT_TILE_ROWS][RUSTGPT_VECTORS] = {{{0}}};                         \\
        _Pragma("GCC unroll 2")                                                                   \\
        for (Py_ssize_t l = 0; l < k; l++)                                                        \\
            for (int i = 0; i < rows; i++)                                                        \\
                for (int v = 0; v < RUSTGPT_VECTORS; v++)                                         \\
                    sums[i][v] += a[i * row_a + l * step_a]                                       \\
                                  * *(const vector_##NAME*)(b + l * ldb + v * LANES);             \\
        for (int i = 0; i < rows; i++)                                                            \\
            for (int v = 0; v < RUSTGPT_VECTORS; v++)                                             \\
                *(vector_##NAME*)(c + i * ldc + v * LANES) = sums[i][v];                          \\
    }                                                                                             \\
    static inline Py_ssize_t tiles_##NAME(                                                        \\
        const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \\
        Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, T* c, Py_ssize_t ldc) {                         \\
        Py_ssize_t j = 0, width = 64 / sizeof(T);                                                 \\
        for (; j + width <= n; j += width) {                                                      \\
            Py_ssize_t i = 0;                                                                     \\
            for (; i + RUSTGPT_TILE_ROWS <= m; i += RUSTGPT_TILE_ROWS)                            \\
                tile_##NAME(RUSTGPT_TILE_ROWS, a + i * row_a, row_a, step_a, b + j, ldb, k,       \\
                            c + i * ldc + j, ldc);                                                \\
            for (; i < m; i++)                                                                    \\
                tile_##NAME(1, a + i * row_a, row_a, step_a, b + j, ldb, k,                       \\
                            c + i * ldc + j, ldc);                                                \\
        }                                                                                         \\
        return j;                                                                                 \\
    }
    #else
    #define RUSTGPT_TILE_FUNCTION(T, NAME)                                                        \\
    static inline Py_ssize_t tiles_##NAME(                                                        \\
        const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \\
        Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, T* c, Py_ssize_t ldc) {                         \\
        return 0;                                                                                 \\
    }
    #endif

    /* C (m, n) = A (m, k) @ B (k, n), where A[i, l] is a[i * row_a + l * step_a]. */
    #define RUSTGPT_PRODUCT(T, NAME)                                                              \\
    RUSTGPT_TILE_FUNCTION(T, NAME)                                                                \\
    static void product_##NAME(                                                                   \\
        const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \\
        Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, T* c, Py_ssize_t ldc) {                         \\
        Py_ssize_t done = tiles_##NAME(a, row_a, step_a, b, ldb, m, n, k, c, ldc);                \\
        if (done == n) return;                                                                    \\
        /* The columns that fill no tile. */                                                      \\
        for (Py_ssize_t i = 0; i < m; i++) {                                                      \\
            for (Py_ssize_t j = done; j < n; j++) c[i * ldc + j] = 0;                             \\
            for (Py_ssize_t l = 0; l < k; l++) {                                                  \\
                T f = a[i * row_a + l * step_a];                                                  \\
                for (Py_ssize_t j = done; j < n; j++) c[i * ldc + j] += f * b[l * ldb + j];       \\
            }                                                                                     \\
        }                                                                                         \\
    }

    #define RUSTGPT_TILE_SOFTMAX(T, NAME)                                                         \\
    /* Softmax of scale * x over the first `seen` of 16 n numbers, the rest become 0; returns the \\
       log of its denominator. Loops over 16 n need no code for numbers that fill no vector. */   \\
    static inline T tile_softmax_##NAME(T* x, Py_ssize_t n, Py_ssize_t seen, T scale) {           \\
        T largest = x[0], total = 0, inverse;                                                     \\
        for (Py_ssize_t j = seen; j < 16 * n; j++) x[j] = x[0];                                   \\
        RUSTGPT_SIMD(reduction(max : largest))                                                    \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) largest = x[j] > largest ? x[j] : largest;        \\
        largest *= scale;                                                                         \\
        RUSTGPT_SIMD()                                                                            \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) x[j] = exp_##NAME(scale * x[j] - largest);        \\
        for (Py_ssize_t j = seen; j < 16 * n; j++) x[j] = 0;                                      \\
        RUSTGPT_SIMD(reduction(+ : total))                                                        \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) total += x[j];                                    \\
        inverse = 1 / total;                                                                      \\
        RUSTGPT_SIMD()                                                                            \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) x[j] *= inverse;                                  \\
        return largest + (T)log((double)total);                                                   \\
    }                                                                                             \\
    /* From scores x and the gradient dp of their softmax: x becomes the softmax p, and dp the    \\
       gradient scale * p * (dp - sum(p * dp)) of the scores. */                                  \\
    static inline void tile_softmax_backward_##NAME(T* x, T* dp, Py_ssize_t n, Py_ssize_t seen,   \\
                                                    T scale, T lse) {                             \\
        T mean = 0;                                                                               \\
        for (Py_ssize_t j = seen; j < 16 * n; j++) x[j] = x[0];                                   \\
        RUSTGPT_SIMD()                                                                            \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) x[j] = exp_##NAME(scale * x[j] - lse);            \\
        for (Py_ssize_t j = seen; j < 16 * n; j++) x[j] = 0;                                      \\
        RUSTGPT_SIMD(reduction(+ : mean))                                                         \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) mean += x[j] * dp[j];                             \\
        RUSTGPT_SIMD()                                                                            \\
        for (Py_ssize_t j = 0; j < 16 * n; j++) dp[j] = scale * x[j] * (dp[j] - mean);            \\
    }
    RUSTGPT_TILE_SOFTMAX(float, f32)
    RUSTGPT_TILE_SOFTMAX(double, f64)
    RUSTGPT_PRODUCT(float, f32)
    RUSTGPT_PRODUCT(double, f64)
    #endif
    """
    void product_f32(const float* a, Py_ssize_t row_a, Py_ssize_t step_a, const float* b,
                     Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, float* c,
                     Py_ssize_t ldc) noexcept nogil
    void product_f64(const double* a, Py_ssize_t row_a, Py_ssize_t step_a, const double* b,
                     Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, double* c,
                     Py_ssize_t ldc) noexcept nogil
    float tile_softmax_f32(float* x, Py_ssize_t n, Py_ssize_t seen, float scale) noexcept nogil
    double tile_softmax_f64(double* x, Py_ssize_t n, Py_ssize_t seen, double scale) noexcept nogil
    void tile_softmax_backward_f32(float* x, float* dp, Py_ssize_t n, Py_ssize_t seen,
                                   float scale, float lse) noexcept nogil
    void tile_softmax_backward_f64(double* x, double* dp, Py_ssize_t n, Py_ssize_t seen,
                                   double scale, double lse) noexcept nogil


cdef inline floating tile_softmax(
    floating* x, Py_ssize_t n, Py_ssize_t seen, floating scale
) noexcept nogil:
    """Softmax of scale * x over the first `seen` of 16 n numbers; returns the log of its sum."""
    if floating is float:
        return tile_softmax_f32(x, n, seen, scale)
    else:
        return tile_softmax_f64(x, n, seen, scale)


cdef inline void tile_softmax_backward(
    floating* x, floating* dp, Py_ssize_t n, Py_ssize_t seen, floating scale, floating lse
) noexcept nogil:
    """From scores x and the gradient of their softmax: softmax in x, the scores' gradient in dp."""
    if floating is float:
        tile_softmax_backward_f32(x, dp, n, seen, scale, lse)
    else:
        tile_softmax_backward_f64(x, dp, n, seen, scale, lse)


cdef inline void product(
    const floating* a, Py_ssize_t row_a, Py_ssize_t step_a, const floating* b, Py_ssize_t ldb,
    Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, floating* c, Py_ssize_t ldc,
) noexcept nogil:
    """C (m, n) = A (m, k) @ B (k, n), where A[i, l] is a[i * row_a + l * step_a]."""
    if floating is float:
        product_f32(a, row_a, step_a, b, ldb, m, n, k, c, ldc)
    else:
        product_f64(a, row_a, step_a, b, ldb, m, n, k, c, ldc)
