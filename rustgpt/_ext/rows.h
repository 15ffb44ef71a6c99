/* The C behind rows.pxd, which says what it is for. */
#ifndef RUSTGPT_ROWS
#define RUSTGPT_ROWS
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER) && !defined(__clang__)
#define RUSTGPT_SIMD(clause)
#else
#define RUSTGPT_PRAGMA(text) _Pragma(#text)
#define RUSTGPT_SIMD(clause) RUSTGPT_PRAGMA(omp simd clause)
#endif

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2, with the polynomial of Cephes
   (S. Moshier, expf) for exp(r): relative error 1.2e-7, no branch, so that loops vectorise.
   For x that is not above 0, as softmax and GELU ask. Below -87.3 the result stays at 1.2e-38
   instead of becoming denormal. */
static inline float exp_f32(float x) {
    float shifted, n, r, square, a, b, c, power;
    unsigned bits;
    x = x < -87.3f ? -87.3f : x;
    /* At 1.5 * 2^23 the distance of two numbers is 1, so that the sum is rounded; and its last
       bits are n + 127, the exponent of 2^n as a float has it. */
    shifted = x * 1.44269504088896341f + (12582912.0f + 127.0f);
    n = shifted - (12582912.0f + 127.0f);
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23;
    memcpy(&power, &bits, sizeof power);
    r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    /* In pairs: a term after the other, each would wait for the one before. */
    square = r * r;
    a = 1.3981999507e-3f + 1.9875691500e-4f * r;
    b = 4.1665795894e-2f + 8.3334519073e-3f * r;
    c = 5.0000001201e-1f + 1.6666665459e-1f * r;
    return (((a * square + b) * square + c) * square + (r + 1.0f)) * power;
}
static inline double exp_f64(double x) { return exp(x); }

#define GELU_A 1.5957691216057308  /* 2 sqrt(2 / pi) */
#define GELU_B 0.07135481627260025 /* 2 sqrt(2 / pi) * 0.044715 */
#define GELU_AT_ONCE 128

#define RUSTGPT_ROW_FUNCTIONS(T, NAME)                                                        \
static inline T row_max_##NAME(const T* x, Py_ssize_t n) {                                    \
    T largest = x[0];                                                                         \
    RUSTGPT_SIMD(reduction(max : largest))                                                    \
    for (Py_ssize_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;             \
    return largest;                                                                           \
}                                                                                             \
static inline double row_sum_##NAME(const T* x, Py_ssize_t n) {                               \
    double sum = 0.0;                                                                         \
    RUSTGPT_SIMD(reduction(+ : sum))                                                          \
    for (Py_ssize_t i = 0; i < n; i++) sum += x[i];                                           \
    return sum;                                                                               \
}                                                                                             \
static inline double row_dot_##NAME(const T* x, const T* y, Py_ssize_t n) {                   \
    double sum = 0.0;                                                                         \
    RUSTGPT_SIMD(reduction(+ : sum))                                                          \
    for (Py_ssize_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];                    \
    return sum;                                                                               \
}                                                                                             \
/* Sum of squares of a long row: four sums at a time, since one would wait for itself. */     \
static inline double row_squares_##NAME(const T* x, Py_ssize_t n) {                           \
    Py_ssize_t m = n / 4;                                                                     \
    const T *x1 = x + m, *x2 = x1 + m, *x3 = x2 + m;                                          \
    double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;                                            \
    RUSTGPT_SIMD(reduction(+ : s0, s1, s2, s3))                                               \
    for (Py_ssize_t i = 0; i < m; i++) {                                                      \
        s0 += (double)x[i] * (double)x[i];                                                    \
        s1 += (double)x1[i] * (double)x1[i];                                                  \
        s2 += (double)x2[i] * (double)x2[i];                                                  \
        s3 += (double)x3[i] * (double)x3[i];                                                  \
    }                                                                                         \
    return s0 + s1 + s2 + s3 + row_dot_##NAME(x + 4 * m, x + 4 * m, n - 4 * m);               \
}                                                                                             \
static inline double row_square_deviations_##NAME(const T* x, T mean, Py_ssize_t n) {         \
    double sum = 0.0;                                                                         \
    RUSTGPT_SIMD(reduction(+ : sum))                                                          \
    for (Py_ssize_t i = 0; i < n; i++) sum += (double)(x[i] - mean) * (double)(x[i] - mean);  \
    return sum;                                                                               \
}                                                                                             \
/* Sums of y w and of y w (x - mean): what layer norm's gradient needs of a row. */           \
static inline void row_norm_sums_##NAME(const T* y, const T* w, const T* x, T mean,           \
                                        Py_ssize_t n, double* sum, double* moment) {          \
    double s = 0.0, t = 0.0;                                                                  \
    RUSTGPT_SIMD(reduction(+ : s, t))                                                         \
    for (Py_ssize_t i = 0; i < n; i++) {                                                      \
        double g = (double)(y[i] * w[i]);                                                     \
        s += g;                                                                               \
        t += g * (double)(x[i] - mean);                                                       \
    }                                                                                         \
    *sum = s;                                                                                 \
    *moment = t;                                                                              \
}                                                                                             \
/* out[j] = x . rows[j]: four rows at a time, since one sum would wait for itself. */         \
static inline void dots_##NAME(const T* x, const T* rows, Py_ssize_t ld, Py_ssize_t count,    \
                             Py_ssize_t n, T* out) {                                          \
    Py_ssize_t j = 0;                                                                         \
    for (; j + 4 <= count; j += 4) {                                                          \
        const T *r0 = rows + j * ld, *r1 = r0 + ld, *r2 = r1 + ld, *r3 = r2 + ld;             \
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;                                                     \
        RUSTGPT_SIMD(reduction(+ : s0, s1, s2, s3))                                           \
        for (Py_ssize_t i = 0; i < n; i++) {                                                  \
            s0 += x[i] * r0[i]; s1 += x[i] * r1[i]; s2 += x[i] * r2[i]; s3 += x[i] * r3[i];   \
        }                                                                                     \
        out[j] = s0; out[j + 1] = s1; out[j + 2] = s2; out[j + 3] = s3;                       \
    }                                                                                         \
    for (; j < count; j++) {                                                                  \
        T sum = 0;                                                                            \
        RUSTGPT_SIMD(reduction(+ : sum))                                                      \
        for (Py_ssize_t i = 0; i < n; i++) sum += x[i] * rows[j * ld + i];                    \
        out[j] = sum;                                                                         \
    }                                                                                         \
}                                                                                             \
/* out = (out if add) + sum over j of a[j] * rows[j]. */                                      \
static inline void combine_##NAME(const T* a, const T* rows, Py_ssize_t ld, Py_ssize_t count, \
                                Py_ssize_t n, int add, T* out) {                              \
    Py_ssize_t j = 0;                                                                         \
    for (Py_ssize_t i = 0; !add && i < n; i++) out[i] = 0;                                    \
    for (; j + 4 <= count; j += 4) {                                                          \
        const T *r0 = rows + j * ld, *r1 = r0 + ld, *r2 = r1 + ld, *r3 = r2 + ld;             \
        T a0 = a[j], a1 = a[j + 1], a2 = a[j + 2], a3 = a[j + 3];                             \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++)                                                    \
            out[i] += a0 * r0[i] + a1 * r1[i] + a2 * r2[i] + a3 * r3[i];                      \
    }                                                                                         \
    for (; j < count; j++) {                                                                  \
        T a0 = a[j];                                                                          \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++) out[i] += a0 * rows[j * ld + i];                   \
    }                                                                                         \
}                                                                                             \
/* The rest of it: dx = residual + s (y w - a - z b), z = (x - mean) s; no residual if NULL.  \
   dw += y z, db += y. dx may be y or the residual. */                                        \
static inline void row_norm_gradient_##NAME(                                                  \
    const T* y, const T* w, const T* x, T mean, T s, T a, T b, const T* residual,             \
    Py_ssize_t n, T* dx, T* dw, T* db) {                                                      \
    if (residual == NULL) {                                                                   \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++) {                                                  \
            T z = (x[i] - mean) * s, g = y[i];                                                \
            dw[i] += g * z;                                                                   \
            db[i] += g;                                                                       \
            dx[i] = s * (g * w[i] - a - z * b);                                               \
        }                                                                                     \
    } else {                                                                                  \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++) {                                                  \
            T z = (x[i] - mean) * s, g = y[i];                                                \
            dw[i] += g * z;                                                                   \
            db[i] += g;                                                                       \
            dx[i] = residual[i] + s * (g * w[i] - a - z * b);                                 \
        }                                                                                     \
    }                                                                                         \
}                                                                                             \
/* RMS norm's gradient: dx = residual + s (y w - z b), z = x s; no residual if NULL. dw += y z.\
   dx may be y or the residual. */                                                            \
static inline void row_rms_gradient_##NAME(                                                   \
    const T* y, const T* w, const T* x, T s, T b, const T* residual, Py_ssize_t n, T* dx,     \
    T* dw) {                                                                                  \
    if (residual == NULL) {                                                                   \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++) {                                                  \
            T z = x[i] * s, g = y[i];                                                         \
            dw[i] += g * z;                                                                   \
            dx[i] = s * (g * w[i] - z * b);                                                   \
        }                                                                                     \
    } else {                                                                                  \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < n; i++) {                                                  \
            T z = x[i] * s, g = y[i];                                                         \
            dw[i] += g * z;                                                                   \
            dx[i] = residual[i] + s * (g * w[i] - z * b);                                     \
        }                                                                                     \
    }                                                                                         \
}                                                                                             \
/* GELU, 0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3), is x / (1 + exp(-2 u)).    \
   e = exp(-|2 u|) is at most 1, so that one clamp is enough; above |x| = 10 it is 0. A few   \
   at a time are made first: in one long loop each would wait for all that becomes of it. */  \
static inline void gelu_exponentials_##NAME(const T* x, Py_ssize_t n, T* e) {                 \
    RUSTGPT_SIMD()                                                                            \
    for (Py_ssize_t i = 0; i < n; i++) {                                                      \
        T magnitude = x[i] < 0 ? -x[i] : x[i];                                                \
        T y = exp_##NAME(-magnitude * ((T)GELU_A + (T)GELU_B * x[i] * x[i]));                 \
        e[i] = magnitude > (T)10 ? (T)0 : y;                                                  \
    }                                                                                         \
}                                                                                             \
static inline void row_gelu_##NAME(const T* x, Py_ssize_t n, T* y) {                          \
    T e[GELU_AT_ONCE];                                                                        \
    for (Py_ssize_t some; n > 0; n -= some, x += some, y += some) {                           \
        some = n < GELU_AT_ONCE ? n : GELU_AT_ONCE;                                           \
        gelu_exponentials_##NAME(x, some, e);                                                 \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < some; i++)                                                 \
            y[i] = x[i] * (x[i] < 0 ? e[i] : (T)1) / ((T)1 + e[i]);                           \
    }                                                                                         \
}                                                                                             \
/* dx = dy * slope(x), and y = gelu(x) too unless y is NULL. dx may be dy.                    \
   The square's clamp avoids 0 times infinity. */                                             \
static inline void row_gelu_backward_##NAME(                                                  \
    const T* dy, const T* x, Py_ssize_t n, T* dx, T* y) {                                     \
    T e[GELU_AT_ONCE];                                                                        \
    for (Py_ssize_t some; n > 0; n -= some, x += some, dy += some, dx += some) {              \
        T* value = y ? y : e;                                                                 \
        some = n < GELU_AT_ONCE ? n : GELU_AT_ONCE;                                           \
        gelu_exponentials_##NAME(x, some, e);                                                 \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < some; i++) {                                               \
            T v = x[i], square = v * v, power = e[i], inverse = (T)1 / ((T)1 + power);        \
            T share = (v < 0 ? power : (T)1) * inverse;                                       \
            square = square < (T)100 ? square : (T)100;                                       \
            value[i] = v * share;                                                             \
            dx[i] = dy[i] * (share + v * power * inverse * inverse                            \
                             * ((T)GELU_A + (T)3 * (T)GELU_B * square));                      \
        }                                                                                     \
        y = y ? y + some : NULL;                                                              \
    }                                                                                         \
}                                                                                             \
/* s = 1 / (1 + exp(-x)). */                                                                  \
static inline void sigmoids_##NAME(const T* x, Py_ssize_t n, T* s) {                          \
    RUSTGPT_SIMD()                                                                            \
    for (Py_ssize_t i = 0; i < n; i++) {                                                      \
        T e = exp_##NAME(x[i] < 0 ? x[i] : -x[i]);                                            \
        s[i] = (x[i] < 0 ? e : (T)1) / ((T)1 + e);                                            \
    }                                                                                         \
}                                                                                             \
/* SwiGLU: y = g / (1 + exp(-g)) * u. */                                                      \
static inline void row_swiglu_##NAME(const T* g, const T* u, Py_ssize_t n, T* y) {            \
    T s[GELU_AT_ONCE];                                                                        \
    for (Py_ssize_t some; n > 0; n -= some, g += some, u += some, y += some) {                \
        some = n < GELU_AT_ONCE ? n : GELU_AT_ONCE;                                           \
        sigmoids_##NAME(g, some, s);                                                          \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < some; i++) y[i] = g[i] * s[i] * u[i];                      \
    }                                                                                         \
}                                                                                             \
/* Its gradients, from dy, and y too unless it is NULL. y may be dy. */                       \
static inline void row_swiglu_backward_##NAME(                                                \
    const T* dy, const T* g, const T* u, Py_ssize_t n, T* dg, T* du, T* y) {                  \
    T s[GELU_AT_ONCE];                                                                        \
    for (Py_ssize_t some; n > 0;                                                              \
         n -= some, dy += some, g += some, u += some, dg += some, du += some) {               \
        T* value = y ? y : s;                                                                 \
        some = n < GELU_AT_ONCE ? n : GELU_AT_ONCE;                                           \
        sigmoids_##NAME(g, some, s);                                                          \
        RUSTGPT_SIMD()                                                                        \
        for (Py_ssize_t i = 0; i < some; i++) {                                               \
            T d = dy[i], share = s[i], silu = g[i] * share, other = u[i];                     \
            value[i] = silu * other;                                                          \
            dg[i] = d * other * (share + silu * ((T)1 - share));                              \
            du[i] = d * silu;                                                                 \
        }                                                                                     \
        y = y ? y + some : NULL;                                                              \
    }                                                                                         \
}                                                                                             \
/* y = exp(scale * x - shift); returns the sum of y. x and y may be the same row. */          \
static inline double row_exp_##NAME(const T* x, T scale, T shift, T* y, Py_ssize_t n) {       \
    double sum = 0.0;                                                                         \
    RUSTGPT_SIMD(reduction(+ : sum))                                                          \
    for (Py_ssize_t i = 0; i < n; i++) {                                                      \
        y[i] = exp_##NAME(scale * x[i] - shift);                                              \
        sum += y[i];                                                                          \
    }                                                                                         \
    return sum;                                                                               \
}                                                                                             \
/* out = (out if add) + scale x, or 0 for x where the column's 32 random bits, which follow   \
   from the row's 64, are below the threshold: see random_bits in reference/dropout.py. */    \
static inline void row_dropout_##NAME(const T* x, uint64_t row, uint32_t threshold, T scale,  \
                                      int add, Py_ssize_t n, T* out) {                        \
    uint32_t low = (uint32_t)row, high = (uint32_t)(row >> 32);                               \
    RUSTGPT_SIMD()                                                                            \
    for (Py_ssize_t i = 0; i < n; i++) {                                                      \
        uint32_t h = low + (uint32_t)i;                                                       \
        h = (h ^ (h >> 16)) * 0x7feb352du ^ high;                                             \
        h = (h ^ (h >> 15)) * 0x846ca68bu;                                                    \
        h ^= h >> 16;                                                                         \
        T y = x[i] * (h < threshold ? (T)0 : scale);                                          \
        out[i] = add ? out[i] + y : y;                                                        \
    }                                                                                         \
}
RUSTGPT_ROW_FUNCTIONS(float, f32)
RUSTGPT_ROW_FUNCTIONS(double, f64)
#endif
