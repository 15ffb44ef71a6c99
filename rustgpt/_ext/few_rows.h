/* The C behind few_rows.pxd, which says what it is for. */
#ifndef RUSTGPT_FEW_ROWS
#define RUSTGPT_FEW_ROWS
#include "tiles.h"

/* The most rows of a tile. For each number of rows: the vectors of a tile of a weight that is near,
   as many as there are registers for; the vectors of a tile of one that is far, which is read in
   order of its rows; and the columns of a tile of a transposed weight. */
#if RUSTGPT_VECTOR == 64
#define RUSTGPT_FEW 8
#define RUSTGPT_FEW_TILES(CASE, NAME)                                                         \
    CASE(NAME, 1, 8, 1, 1) CASE(NAME, 2, 8, 1, 1) CASE(NAME, 3, 6, 2, 3)                      \
    CASE(NAME, 4, 4, 2, 3) CASE(NAME, 5, 4, 2, 3) CASE(NAME, 6, 4, 2, 3)                      \
    CASE(NAME, 7, 3, 2, 3) CASE(NAME, 8, 3, 2, 3)
#else
#define RUSTGPT_FEW 4
#define RUSTGPT_FEW_TILES(CASE, NAME)                                                         \
    CASE(NAME, 1, 8, 2, 2) CASE(NAME, 2, 4, 2, 2) CASE(NAME, 3, 4, 2, 3)                      \
    CASE(NAME, 4, 3, 2, 3)
#endif
#define RUSTGPT_FEW_VECTORS 8
/* The depth, rows of the weight that pass by while a tile's sums stay in registers: fewer are read
   more in order, more are fewer sums to memory and back. It is the same for all products, as the
   order of their sums is; a sum of short sums is rounded less than one long sum. */
#define RUSTGPT_FEW_DEPTH 16
/* Of more rows than a tile has, one group after the other passes so many columns of a weight, or of
   a transposed one, which then are near for all but the first. */
#define RUSTGPT_FEW_COLUMNS 192
#define RUSTGPT_FEW_DOTS_COLUMNS 24
/* A weight of more numbers is far, in no near cache: what comes next of it is asked for ahead. */
#define RUSTGPT_FEW_FAR 262144
/* A zero that the compiler does not know of: the addition to a known one it leaves out, and then it
   may fuse the first two products either way round, in one tile so and in another so. */
#if defined(__x86_64__)
#define RUSTGPT_UNKNOWN(x) __asm__("" : "+v"(x))
#elif defined(__aarch64__)
#define RUSTGPT_UNKNOWN(x) __asm__("" : "+w"(x))
#else
#define RUSTGPT_UNKNOWN(x) __asm__("" : "+m"(x))
#endif
/* Once for each line that a vector begins. */
#define RUSTGPT_ASK(V, p) do {                                                                \
    if ((V) % (64 / RUSTGPT_VECTOR) == 0) RUSTGPT_PREFETCH(p);                                \
} while (0)

#define RUSTGPT_FEW_TYPES(T, NAME)                                                            \
/* Where the memory is asked next: line by line through some columns of each row. */          \
typedef struct {                                                                              \
    const T *at, *end; /* of the row */                                                       \
    Py_ssize_t ld, skip; /* from row to row, and from a row's end to the next one's begin */  \
} lines_##NAME;

#if defined(__GNUC__)
#define RUSTGPT_FEW_KERNELS(T, NAME)                                                          \
typedef T half_##NAME __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));        \
typedef T quarter_##NAME __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));     \
/* The sum of a vector's numbers, by halves. */                                               \
static RUSTGPT_INLINE T few_sum_##NAME(T* x) {                                                \
    enum { L = 16 / sizeof(T) };                                                              \
    if (RUSTGPT_VECTOR == 64) *(half_##NAME*)x += *(half_##NAME*)(x + 2 * L);                 \
    if (RUSTGPT_VECTOR >= 32) *(quarter_##NAME*)x += *(quarter_##NAME*)(x + L);               \
    return L == 4 ? (x[0] + x[2 % L]) + (x[1] + x[3 % L]) : x[0] + x[1];                      \
}                                                                                             \
/* out (rows, vectors) = x @ w + bias + (out if add), summed in that order. */                \
static RUSTGPT_INLINE void few_tile_##NAME(                                                   \
    const int far, const int rows, const int vectors, const T* x, Py_ssize_t ldx,             \
    const T* w, Py_ssize_t ldw, Py_ssize_t depth, lines_##NAME* ahead, int add,               \
    const T* bias, T* out, Py_ssize_t ldo) {                                                  \
    vector_##NAME s[RUSTGPT_FEW][RUSTGPT_FEW_VECTORS];                                        \
    const T* at = ahead->at;                                                                  \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < vectors; v++) {                                                   \
            s[i][v] = (vector_##NAME){0};                                                     \
            RUSTGPT_UNKNOWN(s[i][v]);                                                         \
        }                                                                                     \
    for (Py_ssize_t l = 0; l < depth; l++) {                                                  \
        vector_##NAME row[RUSTGPT_FEW_VECTORS];                                               \
        for (int v = 0; v < vectors; v++) {                                                   \
            row[v] = *(const vector_##NAME*)(w + l * ldw + v * LANES_##NAME);                 \
            if (far) RUSTGPT_ASK(v, at + v * LANES_##NAME);                                   \
        }                                                                                     \
        for (int i = 0; i < rows; i++)                                                        \
            for (int v = 0; v < vectors; v++) s[i][v] += x[i * ldx + l] * row[v];             \
        at += vectors * LANES_##NAME;                                                         \
    }                                                                                         \
    if (far && at >= ahead->end) {                                                            \
        at += ahead->skip;                                                                    \
        ahead->end += ahead->ld;                                                              \
    }                                                                                         \
    if (far) ahead->at = at;                                                                  \
    if (bias)                                                                                 \
        for (int i = 0; i < rows; i++)                                                        \
            for (int v = 0; v < vectors; v++)                                                 \
                s[i][v] += *(const vector_##NAME*)(bias + v * LANES_##NAME);                  \
    if (add)                                                                                  \
        for (int i = 0; i < rows; i++)                                                        \
            for (int v = 0; v < vectors; v++)                                                 \
                s[i][v] += *(const vector_##NAME*)(out + i * ldo + v * LANES_##NAME);         \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < vectors; v++)                                                     \
            *(vector_##NAME*)(out + i * ldo + v * LANES_##NAME) = s[i][v];                    \
}                                                                                             \
/* out (rows, columns) = bias + x @ w.T: each column is a row of w. A vector                  \
   holds sums of every LANES-th number, which are added by halves. */                         \
static RUSTGPT_INLINE void few_dots_##NAME(                                                   \
    const int rows, const int columns, const T* x, Py_ssize_t ldx, const T* w,                \
    Py_ssize_t ldw, Py_ssize_t k, const T* bias, T* out, Py_ssize_t ldo) {                    \
    vector_##NAME s[RUSTGPT_FEW][RUSTGPT_FEW_VECTORS];                                        \
    T sums[RUSTGPT_FEW * RUSTGPT_FEW_VECTORS][LANES_##NAME];                                  \
    const T* ahead = w + columns * ldw;                                                       \
    Py_ssize_t l = 0;                                                                         \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < columns; v++) {                                                   \
            s[i][v] = (vector_##NAME){0};                                                     \
            RUSTGPT_UNKNOWN(s[i][v]);                                                         \
        }                                                                                     \
    for (; l + LANES_##NAME <= k; l += LANES_##NAME) {                                        \
        vector_##NAME row[RUSTGPT_FEW_VECTORS];                                               \
        for (int v = 0; v < columns; v++) {                                                   \
            row[v] = *(const vector_##NAME*)(w + v * ldw + l);                                \
            RUSTGPT_ASK(v, ahead + l * columns + v * LANES_##NAME);                           \
        }                                                                                     \
        for (int i = 0; i < rows; i++) {                                                      \
            vector_##NAME some = *(const vector_##NAME*)(x + i * ldx + l);                    \
            for (int v = 0; v < columns; v++) s[i][v] += some * row[v];                       \
        }                                                                                     \
    }                                                                                         \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < columns; v++)                                                     \
            *(vector_##NAME*)sums[i * columns + v] = s[i][v];                                 \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < columns; v++) {                                                   \
            T sum = few_sum_##NAME(sums[i * columns + v]);                                    \
            for (Py_ssize_t r = l; r < k; r++) sum += x[i * ldx + r] * w[v * ldw + r];        \
            if (bias) sum += bias[v];                                                         \
            out[i * ldo + v] = sum;                                                           \
        }                                                                                     \
}
#else
#define RUSTGPT_FEW_KERNELS(T, NAME)                                                          \
static void few_tile_##NAME(                                                                  \
    const int far, const int rows, const int vectors, const T* x, Py_ssize_t ldx,             \
    const T* w, Py_ssize_t ldw, Py_ssize_t depth, lines_##NAME* ahead, int add,               \
    const T* bias, T* out, Py_ssize_t ldo) {                                                  \
    (void)far, (void)ahead;                                                                   \
    for (int i = 0; i < rows; i++) {                                                          \
        T *row = out + i * ldo, sums[RUSTGPT_FEW_VECTORS * LANES_##NAME] = {0};               \
        for (Py_ssize_t l = 0; l < depth; l++)                                                \
            for (int j = 0; j < vectors * LANES_##NAME; j++)                                  \
                sums[j] += x[i * ldx + l] * w[l * ldw + j];                                   \
        for (int j = 0; j < vectors * LANES_##NAME; j++)                                      \
            row[j] = sums[j] + (bias ? bias[j] : 0) + (add ? row[j] : 0);                     \
    }                                                                                         \
}                                                                                             \
static void few_dots_##NAME(                                                                  \
    const int rows, const int columns, const T* x, Py_ssize_t ldx, const T* w,                \
    Py_ssize_t ldw, Py_ssize_t k, const T* bias, T* out, Py_ssize_t ldo) {                    \
    for (int i = 0; i < rows; i++)                                                            \
        for (int v = 0; v < columns; v++) {                                                   \
            T sum = 0;                                                                        \
            for (Py_ssize_t r = 0; r < k; r++) sum += x[i * ldx + r] * w[v * ldw + r];        \
            out[i * ldo + v] = sum + (bias ? bias[v] : 0);                                    \
        }                                                                                     \
}
#endif

/* As many whole tiles as there are columns for from j on, and then single vectors or columns. */
#define RUSTGPT_FEW_TILE(NAME, ROWS, NEAR, FAR, COLUMNS) case ROWS:                           \
    for (; far && depth == RUSTGPT_FEW_DEPTH && j + FAR * LANES_##NAME <= stop;               \
         j += FAR * LANES_##NAME)                                                             \
        few_tile_##NAME(1, ROWS, FAR, x, ldx, w + j, ldw, RUSTGPT_FEW_DEPTH, &next, add,      \
                        bias ? bias + j : bias, out + j, ldo);                                \
    for (; j + NEAR * LANES_##NAME <= stop; j += NEAR * LANES_##NAME)                         \
        few_tile_##NAME(0, ROWS, NEAR, x, ldx, w + j, ldw, depth, &next, add,                 \
                        bias ? bias + j : bias, out + j, ldo);                                \
    for (; j + LANES_##NAME <= stop; j += LANES_##NAME)                                       \
        few_tile_##NAME(0, ROWS, 1, x, ldx, w + j, ldw, depth, &next, add,                    \
                        bias ? bias + j : bias, out + j, ldo);                                \
    break;
#define RUSTGPT_FEW_DOTS(NAME, ROWS, NEAR, FAR, COLUMNS) case ROWS:                           \
    for (; j + COLUMNS <= stop; j += COLUMNS)                                                 \
        few_dots_##NAME(ROWS, COLUMNS, x, ldx, w + j * ldw, ldw, k, bias ? bias + j : bias,   \
                        out + j, ldo);                                                        \
    for (; j < stop; j++)                                                                     \
        few_dots_##NAME(ROWS, 1, x, ldx, w + j * ldw, ldw, k, bias ? bias + j : bias,         \
                        out + j, ldo);                                                        \
    break;

#define RUSTGPT_FEW_PRODUCTS(T, NAME)                                                         \
/* Some columns of a tile's rows and of `depth` rows of the weight; the last of them, which   \
   fill no vector, through arrays that do. */                                                 \
static void few_columns_##NAME(                                                               \
    int far, int rows, const T* x, Py_ssize_t ldx, const T* w, Py_ssize_t ldw,                \
    Py_ssize_t depth, Py_ssize_t j, Py_ssize_t stop, lines_##NAME* ahead, int add,            \
    const T* bias, T* out, Py_ssize_t ldo) {                                                  \
    T weights[RUSTGPT_FEW_DEPTH][LANES_##NAME], sums[RUSTGPT_FEW][LANES_##NAME];              \
    lines_##NAME next = *ahead; /* in registers */                                            \
    switch (rows) { RUSTGPT_FEW_TILES(RUSTGPT_FEW_TILE, NAME) }                               \
    *ahead = next;                                                                            \
    if (j == stop) return;                                                                    \
    memset(weights, 0, sizeof(weights));                                                      \
    memset(sums, 0, sizeof(sums));                                                            \
    for (Py_ssize_t l = 0; l < depth; l++)                                                    \
        memcpy(weights[l], w + l * ldw + j, (stop - j) * sizeof(T));                          \
    for (int i = 0; i < rows; i++)                                                            \
        for (Py_ssize_t c = j; c < stop; c++)                                                 \
            sums[i][c - j] = (add ? out[i * ldo + c] : 0) + (bias ? bias[c] : 0);             \
    for (int i = 0; i < rows; i++) {                                                          \
        few_tile_##NAME(0, 1, 1, x + i * ldx, ldx, weights[0], LANES_##NAME, depth, &next,    \
                        1, NULL, sums[i], LANES_##NAME);                                      \
        memcpy(out + i * ldo + j, sums[i], (stop - j) * sizeof(T));                           \
    }                                                                                         \
}                                                                                             \
/* Some columns of a tile's rows and of a transposed weight. */                               \
static void few_transposed_##NAME(                                                            \
    int rows, const T* x, Py_ssize_t ldx, const T* w, Py_ssize_t ldw, Py_ssize_t k,           \
    Py_ssize_t j, Py_ssize_t stop, const T* bias, T* out, Py_ssize_t ldo) {                   \
    switch (rows) { RUSTGPT_FEW_TILES(RUSTGPT_FEW_DOTS, NAME) }                               \
}                                                                                             \
static void few_rows_##NAME(                                                                  \
    int transposed, Py_ssize_t n, Py_ssize_t k, const T* x, Py_ssize_t ldx, const T* w,       \
    Py_ssize_t ldw, Py_ssize_t first, Py_ssize_t stop, const T* bias, T* out,                 \
    Py_ssize_t ldo) {                                                                         \
    Py_ssize_t left = (n + RUSTGPT_FEW - 1) / RUSTGPT_FEW, l = 0;                             \
    int far = (stop - first) * k > RUSTGPT_FEW_FAR;                                           \
    Py_ssize_t step = transposed ? RUSTGPT_FEW_DOTS_COLUMNS : RUSTGPT_FEW_COLUMNS;            \
    if (first >= stop) return;                                                                \
    if (left == 1) step = stop - first;                                                       \
    do {                                                                                      \
        Py_ssize_t depth = k - l;                                                             \
        if (!transposed && depth > RUSTGPT_FEW_DEPTH) depth = RUSTGPT_FEW_DEPTH;              \
        const T *next = w + (l + depth) * ldw, *some = l == 0 ? bias : NULL;                  \
        lines_##NAME ahead = {next + first, next + stop, ldw, ldw - (stop - first)};          \
        for (Py_ssize_t begin = first; begin < stop; begin += step) {                         \
            Py_ssize_t end = stop - begin < step ? stop : begin + step, m = n;                \
            const T* rows_of_x = x + l;                                                       \
            T* rows_of_out = out;                                                             \
            for (Py_ssize_t groups = left; groups > 0; groups--) {                            \
                int rows = (int)((m + groups - 1) / groups);                                  \
                if (!transposed)                                                              \
                    few_columns_##NAME(far && groups == left, rows, rows_of_x, ldx,           \
                                       w + l * ldw, ldw, depth, begin, end, &ahead, l > 0,    \
                                       some, rows_of_out, ldo);                               \
                else                                                                          \
                    few_transposed_##NAME(rows, rows_of_x, ldx, w, ldw, k, begin, end, bias,  \
                                          rows_of_out, ldo);                                  \
                rows_of_x += rows * ldx;                                                      \
                rows_of_out += rows * ldo;                                                    \
                m -= rows;                                                                    \
            }                                                                                 \
        }                                                                                     \
        l += depth;                                                                           \
    } while (l < k);                                                                          \
}

RUSTGPT_FEW_TYPES(float, f32)
RUSTGPT_FEW_TYPES(double, f64)
RUSTGPT_FEW_KERNELS(float, f32)
RUSTGPT_FEW_KERNELS(double, f64)
RUSTGPT_FEW_PRODUCTS(float, f32)
RUSTGPT_FEW_PRODUCTS(double, f64)
#endif
