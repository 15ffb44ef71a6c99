/* The C behind tiles.pxd, which says what it is for. */
#ifndef RUSTGPT_TILES
#define RUSTGPT_TILES
#include <string.h>

/* A tile has up to ROWS rows of VECTORS registers. 6 x 4 fill 24 of the 32 registers of
   AVX-512, 6 x 2 fill 12 of the 16 of AVX2; the factors need the rest. With so few to spare the
   compiler must keep the rows IN_ORDER: factors loaded early send sums to memory and back. */
#if defined(__AVX512F__)
#define RUSTGPT_VECTOR 64
#define RUSTGPT_TILE_ROWS 6
#define RUSTGPT_VECTORS 4
#elif defined(__AVX__)
#define RUSTGPT_VECTOR 32
#define RUSTGPT_TILE_ROWS 6
#define RUSTGPT_VECTORS 2
#else
#define RUSTGPT_VECTOR 16
#define RUSTGPT_VECTORS 4
#if defined(__aarch64__)
#define RUSTGPT_TILE_ROWS 4
#else
#define RUSTGPT_TILE_ROWS 2
#endif
#endif
#if RUSTGPT_VECTOR == 32
#define RUSTGPT_UNROLL _Pragma("GCC unroll 4")
#define RUSTGPT_IN_ORDER __asm__ volatile("" ::: "memory");
#else
#define RUSTGPT_UNROLL _Pragma("GCC unroll 2")
#define RUSTGPT_IN_ORDER
#endif
/* Whether C is asked for first and added when the sums are made, which need not wait for it. */
#define RUSTGPT_ADD_LAST(FAR) (RUSTGPT_VECTOR == 32 || (FAR))
/* Whether a tile is written in vectors, below; or else in loops, slower than BLAS. */
#if defined(__GNUC__)
#define RUSTGPT_FAST_TILES 1
#define RUSTGPT_INLINE inline __attribute__((always_inline))
#define RUSTGPT_PREFETCH(p) __builtin_prefetch(p, 0, 2)
#define RUSTGPT_PREFETCH_OUT(p) __builtin_prefetch(p, 1, 3)
#else
#define RUSTGPT_FAST_TILES 0
#define RUSTGPT_INLINE __forceinline
#define RUSTGPT_PREFETCH(p) ((void)(p))
#define RUSTGPT_PREFETCH_OUT(p) ((void)(p))
#endif
/* Rows of B that are copied at a time where it cannot be read in place: 64 KB with AVX-512. */
#define RUSTGPT_DEPTH 256

/* out (columns, ldo) = x.T of a small piece: 8 rows and 4 columns, or 4 and 2 of doubles. Two
   loads fill a register, so that half of the moves need no shuffle of their own. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RUSTGPT_SHUFFLE __builtin_shufflevector
#endif
#endif
#ifdef RUSTGPT_SHUFFLE
typedef float quad_f32 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float octet_f32 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double pair_f64 __attribute__((vector_size(16), aligned(8), may_alias));
typedef double quad_f64 __attribute__((vector_size(32), aligned(8), may_alias));
#define RUSTGPT_ROWS_F32(I)                                                                   \
    RUSTGPT_SHUFFLE(*(const quad_f32*)(x + (I) * ld), *(const quad_f32*)(x + (I + 4) * ld),   \
                    0, 1, 2, 3, 4, 5, 6, 7)
static inline void transpose_piece_f32(
    const float* x, Py_ssize_t ld, float* out, Py_ssize_t ldo) {
    octet_f32 r0 = RUSTGPT_ROWS_F32(0), r1 = RUSTGPT_ROWS_F32(1);
    octet_f32 r2 = RUSTGPT_ROWS_F32(2), r3 = RUSTGPT_ROWS_F32(3);
    octet_f32 a = RUSTGPT_SHUFFLE(r0, r1, 0, 8, 1, 9, 4, 12, 5, 13);
    octet_f32 b = RUSTGPT_SHUFFLE(r0, r1, 2, 10, 3, 11, 6, 14, 7, 15);
    octet_f32 c = RUSTGPT_SHUFFLE(r2, r3, 0, 8, 1, 9, 4, 12, 5, 13);
    octet_f32 d = RUSTGPT_SHUFFLE(r2, r3, 2, 10, 3, 11, 6, 14, 7, 15);
    *(octet_f32*)out = RUSTGPT_SHUFFLE(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    *(octet_f32*)(out + ldo) = RUSTGPT_SHUFFLE(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    *(octet_f32*)(out + 2 * ldo) = RUSTGPT_SHUFFLE(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    *(octet_f32*)(out + 3 * ldo) = RUSTGPT_SHUFFLE(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
}
#define RUSTGPT_ROWS_F64(I)                                                                   \
    RUSTGPT_SHUFFLE(*(const pair_f64*)(x + (I) * ld), *(const pair_f64*)(x + (I + 2) * ld),   \
                    0, 1, 2, 3)
static inline void transpose_piece_f64(
    const double* x, Py_ssize_t ld, double* out, Py_ssize_t ldo) {
    quad_f64 r0 = RUSTGPT_ROWS_F64(0), r1 = RUSTGPT_ROWS_F64(1);
    *(quad_f64*)out = RUSTGPT_SHUFFLE(r0, r1, 0, 4, 2, 6);
    *(quad_f64*)(out + ldo) = RUSTGPT_SHUFFLE(r0, r1, 1, 5, 3, 7);
}
#else
static inline void transpose_piece_f32(
    const float* x, Py_ssize_t ld, float* out, Py_ssize_t ldo) {
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 8; i++) out[j * ldo + i] = x[i * ld + j];
}
static inline void transpose_piece_f64(
    const double* x, Py_ssize_t ld, double* out, Py_ssize_t ldo) {
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 4; i++) out[j * ldo + i] = x[i * ld + j];
}
#endif

#define RUSTGPT_TRANSPOSE(T, NAME)                                                            \
static void transpose_##NAME(const T* x, Py_ssize_t ld, Py_ssize_t rows, Py_ssize_t columns,  \
                             T* out, Py_ssize_t ldo) {                                        \
    enum { R = 32 / sizeof(T), S = 16 / sizeof(T), LINE = 64 / sizeof(T) };                   \
    /* Of more than the first cache holds, lines are written one by one. */                   \
    Py_ssize_t some = rows * columns * (Py_ssize_t)sizeof(T) > 32768 ? LINE : columns;        \
    for (Py_ssize_t first = 0; first < columns; first += some) {                              \
        Py_ssize_t i = 0, j, last = columns - first < some ? columns : first + some;          \
        for (; i + R <= rows; i += R) {                                                       \
            for (j = first; j + S <= last; j += S)                                            \
                transpose_piece_##NAME(x + i * ld + j, ld, out + j * ldo + i, ldo);           \
            for (; j < last; j++)                                                             \
                for (int l = 0; l < R; l++) out[j * ldo + i + l] = x[(i + l) * ld + j];       \
        }                                                                                     \
        for (; i < rows; i++)                                                                 \
            for (j = first; j < last; j++) out[j * ldo + i] = x[i * ld + j];                  \
    }                                                                                         \
}

/* What the first few tiles ask the memory for: each for another line of some rows, and every
   1 << shift steps for that of the next row. */
#define RUSTGPT_AHEAD(T, NAME)                                                                \
typedef struct {                                                                              \
    const T* first;                                                                           \
    Py_ssize_t row; /* from one to the next */                                                \
    int shift, tiles;                                                                         \
} ahead_##NAME;
RUSTGPT_AHEAD(float, f32)
RUSTGPT_AHEAD(double, f64)

/* One tile: C = (C if add) + bias + A @ B. A[i, l] is a[i * row_a + l * step_a]; bias NULL is
   none. `far`, `rows` and `vectors` are constants where it is inlined. */
#if defined(__GNUC__)
#define RUSTGPT_TILE(T, NAME)                                                                 \
typedef T vector_##NAME __attribute__((vector_size(RUSTGPT_VECTOR), aligned(sizeof(T)),       \
                                       may_alias));                                           \
enum { LANES_##NAME = RUSTGPT_VECTOR / sizeof(T) };                                           \
static RUSTGPT_INLINE void tile_##NAME(                                                       \
    const int far, const int rows, const int vectors, int add, const T* bias,                 \
    const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \
    Py_ssize_t k, T* c, Py_ssize_t ldc, ahead_##NAME ahead) {                                 \
    vector_##NAME sums[RUSTGPT_TILE_ROWS][RUSTGPT_VECTORS];                                   \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < vectors; v++) {                                                   \
            sums[i][v] = (vector_##NAME){0};                                                  \
            if (bias) sums[i][v] = *(const vector_##NAME*)(bias + v * LANES_##NAME);          \
            if (add && !RUSTGPT_ADD_LAST(far))                                                \
                sums[i][v] += *(vector_##NAME*)(c + i * ldc + v * LANES_##NAME);              \
            if (RUSTGPT_ADD_LAST(far)) RUSTGPT_PREFETCH_OUT(c + i * ldc + v * LANES_##NAME);  \
        }                                                                                     \
    RUSTGPT_UNROLL                                                                            \
    for (Py_ssize_t l = 0; l < k; l++) {                                                      \
        vector_##NAME row[RUSTGPT_VECTORS];                                                   \
        if (far)                                                                              \
            RUSTGPT_PREFETCH(ahead.first + (l >> ahead.shift) * ahead.row);                   \
        for (int v = 0; v < vectors; v++)                                                     \
            row[v] = *(const vector_##NAME*)(b + l * ldb + v * LANES_##NAME);                 \
        for (int i = 0; i < rows; i++) {                                                      \
            for (int v = 0; v < vectors; v++)                                                 \
                sums[i][v] += a[i * row_a + l * step_a] * row[v];                             \
            RUSTGPT_IN_ORDER                                                                  \
        }                                                                                     \
    }                                                                                         \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < vectors; v++) {                                                   \
            if (add && RUSTGPT_ADD_LAST(far))                                                 \
                sums[i][v] += *(vector_##NAME*)(c + i * ldc + v * LANES_##NAME);              \
            *(vector_##NAME*)(c + i * ldc + v * LANES_##NAME) = sums[i][v];                   \
        }                                                                                     \
}
#else
#define RUSTGPT_TILE(T, NAME)                                                                 \
enum { LANES_##NAME = RUSTGPT_VECTOR / sizeof(T) };                                           \
static void tile_##NAME(                                                                      \
    const int far, const int rows, const int vectors, int add, const T* bias,                 \
    const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \
    Py_ssize_t k, T* c, Py_ssize_t ldc, ahead_##NAME ahead) {                                 \
    (void)far, (void)ahead;                                                                   \
    for (int i = 0; i < rows; i++) {                                                          \
        T* row = c + i * ldc;                                                                 \
        for (int j = 0; j < vectors * LANES_##NAME; j++)                                      \
            row[j] = (add ? row[j] : 0) + (bias ? bias[j] : 0);                               \
        for (Py_ssize_t l = 0; l < k; l++)                                                    \
            for (int j = 0; j < vectors * LANES_##NAME; j++)                                  \
                row[j] += a[i * row_a + l * step_a] * b[l * ldb + j];                         \
    }                                                                                         \
}
#endif

/* Tiles of constant sizes; those that are larger than a tile can be are left out. */
#define RUSTGPT_TILE_OF(NAME, ROWS, VECTORS) case VECTORS:                                    \
    if (ROWS <= RUSTGPT_TILE_ROWS && VECTORS <= RUSTGPT_VECTORS)                              \
        tile_##NAME(0, ROWS, VECTORS, add, bias, a, row_a, step_a, b, ldb, k, c, ldc, ahead); \
    break;
#define RUSTGPT_TILE_ROW(NAME, ROWS) case ROWS: switch (vectors) {                            \
    RUSTGPT_TILE_OF(NAME, ROWS, 1) RUSTGPT_TILE_OF(NAME, ROWS, 2)                             \
    RUSTGPT_TILE_OF(NAME, ROWS, 3) RUSTGPT_TILE_OF(NAME, ROWS, 4)                             \
    } break;
#define RUSTGPT_FAR_TILE(NAME, ROWS, ROW_A, STEP_A)                                           \
    tile_##NAME(1, ROWS, RUSTGPT_VECTORS, add, bias, a, ROW_A, STEP_A, b, ldb, k, c, ldc, ahead)
#define RUSTGPT_FAR_ROW(NAME, ROWS) case ROWS:                                                \
    if (RUSTGPT_VECTOR == 64 && step_a == 1) RUSTGPT_FAR_TILE(NAME, ROWS, row_a, 1);          \
    else if (RUSTGPT_VECTOR == 64) RUSTGPT_FAR_TILE(NAME, ROWS, 1, step_a);                   \
    break;
#define RUSTGPT_OF_ROWS(NAME, ROW) switch (rows) {                                            \
    ROW(NAME, 1) ROW(NAME, 2) ROW(NAME, 3) ROW(NAME, 4) ROW(NAME, 5) ROW(NAME, 6)             \
    }

#define RUSTGPT_MULTIPLY(T, NAME)                                                             \
/* A column of tiles over m rows, divided evenly: none is left with one row. Where B or C is  \
   far it has W columns, a row_a or a step_a of 1, and tiles that ask for what is ahead. */   \
static void tiles_##NAME(                                                                     \
    Py_ssize_t m, int vectors, int far, int add, const T* bias,                               \
    const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \
    Py_ssize_t k, T* c, Py_ssize_t ldc, ahead_##NAME ahead) {                                 \
    Py_ssize_t left = (m + RUSTGPT_TILE_ROWS - 1) / RUSTGPT_TILE_ROWS, rows;                  \
    for (; left > 0; left--) {                                                                \
        rows = (m + left - 1) / left;                                                         \
        if (far) RUSTGPT_OF_ROWS(NAME, RUSTGPT_FAR_ROW)                                       \
        else RUSTGPT_OF_ROWS(NAME, RUSTGPT_TILE_ROW)                                          \
        a += rows * row_a;                                                                    \
        c += rows * ldc;                                                                      \
        m -= rows;                                                                            \
        ahead.first += 64 / sizeof(T);                                                        \
        if (--ahead.tiles <= 0) ahead.row = 0; /* that was all */                             \
    }                                                                                         \
}                                                                                             \
/* The last columns, which fill no whole vector, or no whole tile that is far: through arrays \
   that do. */                                                                                \
static void last_tiles_##NAME(                                                                \
    Py_ssize_t m, int vectors, Py_ssize_t width, int far, int add, const T* bias,             \
    const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \
    Py_ssize_t k, T* c, Py_ssize_t ldc) {                                                     \
    enum { W = RUSTGPT_VECTORS * LANES_##NAME };                                              \
    T out[RUSTGPT_TILE_ROWS * W], last[W];                                                    \
    memset(out, 0, sizeof(out));                                                              \
    memset(last, 0, sizeof(last));                                                            \
    if (bias) memcpy(last, bias, width * sizeof(T));                                          \
    for (Py_ssize_t i = 0, r; i < m; i += r) {                                                \
        r = m - i < RUSTGPT_TILE_ROWS ? m - i : RUSTGPT_TILE_ROWS;                            \
        for (Py_ssize_t x = 0; add && !far && x < r; x++)                                     \
            memcpy(out + x * W, c + (i + x) * ldc, width * sizeof(T));                        \
        tiles_##NAME(r, vectors, 0, add && !far, last, a + i * row_a, row_a, step_a, b, ldb,  \
                     k, out, W, (ahead_##NAME){a, 0, 0, 0});                                  \
        for (Py_ssize_t x = 0; x < r; x++) {                                                  \
            for (Py_ssize_t j = 0; add && far && j < width; j++)                              \
                out[x * W + j] += c[(i + x) * ldc + j];                                       \
            memcpy(c + (i + x) * ldc, out + x * W, width * sizeof(T));                        \
        }                                                                                     \
    }                                                                                         \
}                                                                                             \
/* Where the piece of B begins that has row l and column j of op(B) first. */                 \
static const T* piece_##NAME(                                                                 \
    int trans_b, const T* b, Py_ssize_t ldb, Py_ssize_t l, Py_ssize_t j) {                    \
    return trans_b ? b + j * ldb + l : b + l * ldb + j;                                       \
}                                                                                             \
/* A piece of `depth` rows of op(B), to be asked for in as many steps of each tile. To ask for\
   what lies behind the last does no harm. */                                                 \
static ahead_##NAME ahead_of_##NAME(                                                          \
    int trans_b, const T* piece, Py_ssize_t ldb, Py_ssize_t depth) {                          \
    ahead_##NAME ahead = {piece, ldb, 0, RUSTGPT_VECTORS};                                    \
    while (trans_b && depth >> ahead.shift > RUSTGPT_VECTORS * LANES_##NAME) ahead.shift++;   \
    ahead.tiles <<= ahead.shift;                                                              \
    return ahead;                                                                             \
}                                                                                             \
static void multiply_##NAME(                                                                  \
    int trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,                                    \
    const T* a, Py_ssize_t row_a, Py_ssize_t step_a, const T* b, Py_ssize_t ldb,              \
    const T* next, int far, int add, const T* bias, T* c, Py_ssize_t ldc) {                   \
    enum { W = RUSTGPT_VECTORS * LANES_##NAME };                                              \
    T copy[RUSTGPT_DEPTH * W];                                                                \
    far = far && RUSTGPT_VECTOR == 64 && (row_a == 1 || step_a == 1);                         \
    for (Py_ssize_t j = 0; j < n; j += W) {                                                   \
        Py_ssize_t width = n - j < W ? n - j : W, l = 0;                                      \
        int vectors = (int)((width + LANES_##NAME - 1) / LANES_##NAME);                       \
        int whole = width == vectors * LANES_##NAME;                                          \
        do {                                                                                  \
            Py_ssize_t depth = k - l < RUSTGPT_DEPTH ? k - l : RUSTGPT_DEPTH, ldc_b = W;      \
            const T *piece = piece_##NAME(trans_b, b, ldb, l, j), *strip = copy;              \
            const T* after = next ? piece_##NAME(trans_b, next, ldb, l, j)                    \
                : l + depth < k ? piece_##NAME(trans_b, b, ldb, l + depth, j)                 \
                : j + W < n ? piece_##NAME(trans_b, b, ldb, 0, j + W) : NULL;                 \
            ahead_##NAME ahead = {a, 0, 0, 0};                                                \
            if (far && after) ahead = ahead_of_##NAME(trans_b, after, ldb, depth);            \
            if (!whole) memset(copy, 0, sizeof(T) * depth * W);                               \
            if (trans_b)                                                                      \
                transpose_##NAME(piece, ldb, width, depth, copy, W);                          \
            else if (!whole)                                                                  \
                for (Py_ssize_t y = 0; y < depth; y++)                                        \
                    memcpy(copy + y * W, piece + y * ldb, width * sizeof(T));                 \
            else {                                                                            \
                strip = piece;                                                                \
                ldc_b = ldb;                                                                  \
            }                                                                                 \
            if (far ? width == W : whole)                                                     \
                tiles_##NAME(m, vectors, far, add || l > 0, bias && l == 0 ? bias + j : NULL, \
                             a + l * step_a, row_a, step_a, strip, ldc_b, depth, c + j, ldc,  \
                             ahead);                                                          \
            else                                                                              \
                last_tiles_##NAME(m, vectors, width, far, add || l > 0,                       \
                                  bias && l == 0 ? bias + j : NULL, a + l * step_a, row_a,    \
                                  step_a, strip, ldc_b, depth, c + j, ldc);                   \
            l += depth;                                                                       \
        } while (l < k);                                                                      \
    }                                                                                         \
}

RUSTGPT_TRANSPOSE(float, f32)
RUSTGPT_TRANSPOSE(double, f64)
RUSTGPT_TILE(float, f32)
RUSTGPT_TILE(double, f64)
RUSTGPT_MULTIPLY(float, f32)
RUSTGPT_MULTIPLY(double, f64)
#endif
