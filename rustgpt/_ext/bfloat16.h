/* The C behind bfloat16.pxd, which says what it is for. */
#ifndef RUSTGPT_BFLOAT16
#include "tiles.h"
#if defined(__AVX512F__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define RUSTGPT_BFLOAT16 1
#include <immintrin.h>
/* Not a flag of the whole file: a processor with AVX-512 may lack these instructions. */
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define BF16_INLINE BF16 inline __attribute__((always_inline))
/* Rows of A and numbers along k in a block, columns of B in a strip: 192 and 64 KB. */
enum { BF16_BLOCK = 192, BF16_DEPTH = 512, BF16_PAIRS = BF16_DEPTH / 2, BF16_STRIP = 64 };
typedef unsigned pair;  /* two bfloat16, the first one in the lower half */

static BF16_INLINE __mmask16 first(Py_ssize_t n) {
    return n >= 16 ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
}
/* x (rows, depth) -> out (rows, depth / 2): neighbours in a row make a pair. */
BF16 static void pair_columns(const float* x, Py_ssize_t ld, Py_ssize_t rows, Py_ssize_t depth,
                              pair* out, Py_ssize_t ldo) {
    for (Py_ssize_t i = 0; i < rows; i++)
        for (Py_ssize_t l = 0; l < depth; l += 32) {
            __m512 low = _mm512_maskz_loadu_ps(first(depth - l), x + i * ld + l);
            __m512 high = _mm512_maskz_loadu_ps(first(depth - l - 16), x + i * ld + l + 16);
            _mm512_mask_storeu_epi32(out + i * ldo + l / 2, first((depth - l + 1) / 2),
                                     (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
}
/* x (depth, columns) -> out (depth / 2, columns): neighbours in a column make a pair. */
BF16 static void pair_rows(const float* x, Py_ssize_t ld, Py_ssize_t depth, Py_ssize_t columns,
                           pair* out, Py_ssize_t ldo) {
    const __m512i zip = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (Py_ssize_t l = 0; l < depth; l += 2)
        for (Py_ssize_t j = 0; j < columns; j += 16) {
            __mmask16 here = first(columns - j), below = l + 1 < depth ? here : 0;
            __m512 low = _mm512_maskz_loadu_ps(here, x + l * ld + j);
            __m512 high = _mm512_maskz_loadu_ps(below, x + (l + 1) * ld + j);
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_mask_storeu_epi32(out + l / 2 * ldo + j, here,
                                     _mm512_permutexvar_epi16(zip, both));
        }
}
/* x (columns, depth) -> out (depth / 2, columns): neighbours in a row make a pair. */
BF16 static void pair_turned(const float* x, Py_ssize_t ld, Py_ssize_t depth,
                             Py_ssize_t columns, pair* out, Py_ssize_t ldo) {
    pair rows[16 * BF16_PAIRS];
    for (Py_ssize_t j = 0; j < columns; j += 16) {
        Py_ssize_t n = columns - j < 16 ? columns - j : 16;
        pair_columns(x + j * ld, ld, n, depth, rows, BF16_PAIRS);
        transpose_f32((const float*)rows, BF16_PAIRS, n, (depth + 1) / 2,
                      (float*)(out + j), ldo);
    }
}

/* One tile: C = (C if add) + bias + A @ B, its last vector of columns cut to `last`. k counts
   pairs, A[i, l] is a[i * row_a + l * step_a]. `rows` and `vectors` are constants where it is
   inlined: 6 x 4 fill 24 of 32 registers, as in tiles.pxd. */
static BF16_INLINE void tile_bf16(
    const int rows, const int vectors, __mmask16 last, int add, const float* bias,
    const pair* a, Py_ssize_t row_a, Py_ssize_t step_a, const pair* b, Py_ssize_t k, float* c,
    Py_ssize_t ldc) {
    __m512 sums[6][4];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++) {
            __mmask16 m = v == vectors - 1 ? last : 0xffff;
            sums[i][v] = bias ? _mm512_maskz_loadu_ps(m, bias + 16 * v) : _mm512_setzero_ps();
            if (add) sums[i][v] += _mm512_maskz_loadu_ps(m, c + i * ldc + 16 * v);
        }
    _Pragma("GCC unroll 2")
    for (Py_ssize_t l = 0; l < k; l++) {
        __m512bh row[4];
        for (int v = 0; v < vectors; v++)
            row[v] = (__m512bh)_mm512_load_si512(b + l * BF16_STRIP + 16 * v);
        for (int i = 0; i < rows; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * row_a + l * step_a]);
            for (int v = 0; v < vectors; v++)
                sums[i][v] = _mm512_dpbf16_ps(sums[i][v], x, row[v]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < vectors; v++)
            _mm512_mask_storeu_ps(c + i * ldc + 16 * v, v == vectors - 1 ? last : 0xffff,
                                  sums[i][v]);
}
#define BF16_TILE(R, V) \
    tile_bf16(R, V, last, add, bias, a, row_a, step_a, b, k, c, ldc); break;
#define BF16_ROWS(R) case R: switch (vectors) { \
    case 1: BF16_TILE(R, 1) case 2: BF16_TILE(R, 2) case 3: BF16_TILE(R, 3) \
    default: BF16_TILE(R, 4) } break;
/* A column of tiles over m rows, which are divided evenly: none is left with one row. */
BF16 static void tiles_bf16(
    Py_ssize_t m, Py_ssize_t width, int add, const float* bias, const pair* a,
    Py_ssize_t row_a, Py_ssize_t step_a, const pair* b, Py_ssize_t k, float* c,
    Py_ssize_t ldc) {
    int vectors = (int)((width + 15) / 16);
    __mmask16 last = first(width - 16 * (vectors - 1));
    for (Py_ssize_t left = (m + 5) / 6, rows; left > 0; left--) {
        rows = (m + left - 1) / left;
        switch (rows) {
        BF16_ROWS(1) BF16_ROWS(2) BF16_ROWS(3) BF16_ROWS(4) BF16_ROWS(5) BF16_ROWS(6)
        }
        a += rows * row_a;
        c += rows * ldc;
        m -= rows;
    }
}
/* C (m, n) = (C if add) + bias + op(A) (m, k) @ op(B) (k, n). */
BF16 static void multiply_bf16(
    int trans_a, int trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* a,
    Py_ssize_t lda, const float* b, Py_ssize_t ldb, int add, const float* bias, float* c,
    Py_ssize_t ldc) {
    pair block[BF16_BLOCK * BF16_PAIRS] __attribute__((aligned(64)));
    pair strip[BF16_PAIRS * BF16_STRIP] __attribute__((aligned(64)));
    Py_ssize_t row_a = trans_a ? 1 : BF16_PAIRS, step_a = trans_a ? BF16_BLOCK : 1;
    for (Py_ssize_t i = 0; i < m; i += BF16_BLOCK) {
        Py_ssize_t rows = m - i < BF16_BLOCK ? m - i : BF16_BLOCK, l = 0;
        do {
            Py_ssize_t depth = k - l < BF16_DEPTH ? k - l : BF16_DEPTH;
            if (trans_a) pair_rows(a + l * lda + i, lda, depth, rows, block, BF16_BLOCK);
            else pair_columns(a + i * lda + l, lda, rows, depth, block, BF16_PAIRS);
            for (Py_ssize_t j = 0; j < n; j += BF16_STRIP) {
                Py_ssize_t width = n - j < BF16_STRIP ? n - j : BF16_STRIP;
                if (trans_b) pair_turned(b + j * ldb + l, ldb, depth, width, strip, BF16_STRIP);
                else pair_rows(b + l * ldb + j, ldb, depth, width, strip, BF16_STRIP);
                tiles_bf16(rows, width, add || l > 0, bias && l == 0 ? bias + j : NULL,
                           block, row_a, step_a, strip, (depth + 1) / 2, c + i * ldc + j, ldc);
            }
            l += depth;
        } while (l < k);
    }
}
#else
#define RUSTGPT_BFLOAT16 0
static void multiply_bf16(
    int trans_a, int trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* a,
    Py_ssize_t lda, const float* b, Py_ssize_t ldb, int add, const float* bias, float* c,
    Py_ssize_t ldc) {}
#endif
#endif
