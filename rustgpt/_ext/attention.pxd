"""What decoding shares with attention: one head of one sequence, forward."""
from cython cimport floating
from libc.math cimport log, sqrt
from libc.string cimport memcpy

from rustgpt._ext.blas cimport gemm
from rustgpt._ext.rows cimport combine, dots, row_exp, row_max
from rustgpt._ext.strips cimport in_strips, multiply_strips, sum_in_strips
from rustgpt._ext.tiles cimport in_place, multiply

cdef enum:
    # Query rows whose scores are in cache at once. A text of no more rows stays in registers: the
    # softmax of `tiles` knows rows of at most so many scores.
    BLOCK = 64
    # Fewer new rows than this, when decoding, are faster in plain loops than as products.
    FEW = 48


cdef inline void matmul(
    bint trans_a, bint trans_b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
    const floating* a, Py_ssize_t lda, const floating* b, Py_ssize_t ldb, bint add,
    floating* c, Py_ssize_t ldc,
) noexcept nogil:
    """C (m, n) = (C if add) + op(A) @ op(B), where that is faster, without BLAS."""
    if in_place(m, n, k):
        multiply(trans_b, m, n, k, a, 1 if trans_a else lda, lda if trans_a else 1, b, ldb, NULL,
                 False, add, NULL, c, ldc)
    elif sum_in_strips(m, n, k) if trans_a else in_strips(m):
        multiply_strips(trans_a, trans_b, m, n, k, a, lda, b, ldb, add, NULL, c, ldc)
    else:
        gemm(trans_a, trans_b, m, n, k, a, lda, b, ldb, add, c, ldc)


cdef inline void softmax_row(
    floating* scores, Py_ssize_t seen, Py_ssize_t keys, floating scale, floating* lse
) noexcept nogil:
    """Softmax of scale * scores over the first `seen` keys; the rest become zero."""
    cdef Py_ssize_t j
    cdef floating largest = row_max(scores, seen) * scale, inverse
    cdef double total = row_exp(scores, scale, largest, scores, seen)
    inverse = <floating> (1.0 / total)
    for j in range(seen):
        scores[j] *= inverse
    for j in range(seen, keys):
        scores[j] = 0
    if lse != NULL:
        lse[0] = largest + <floating> log(total)


cdef inline void attend(
    const floating* q, Py_ssize_t ldq,                      # IN (rows, D)
    const floating* k, const floating* v, Py_ssize_t ldkv,  # IN (start + rows, D)
    Py_ssize_t rows, Py_ssize_t start, Py_ssize_t D,
    floating* out, Py_ssize_t ldo,                          # OUT (rows, D)
    floating* lse, Py_ssize_t ld_lse,                       # OUT (rows,) or NULL
    floating* scores,                                       # scratch (BLOCK, start + rows)
) noexcept nogil:
    """One head of one sequence: query row i sees the keys 0 .. start + i."""
    cdef bint one = rows < FEW  # row at a time, in loops that end at the mask
    cdef Py_ssize_t block, i0, i, r, keys, step = 1 if one else BLOCK
    cdef floating scale = <floating> (1.0 / sqrt(<double> D))
    for block in range((rows + step - 1) // step):
        i0 = block * step
        r = min(step, rows - i0)
        keys = start + i0 + r
        # Pass 1: scores = q @ k.T                                    (r, keys)
        if one:
            dots(q + i0 * ldq, k, ldkv, keys, D, scores)
        else:
            matmul(False, True, r, keys, D, q + i0 * ldq, ldq, k, ldkv, False, scores, keys)
        # Pass 2: softmax over the keys that a row may see.
        for i in range(r):
            softmax_row(scores + i * keys, start + i0 + i + 1, keys, scale,
                        NULL if lse == NULL else lse + (i0 + i) * ld_lse)
        # Pass 3: out = probabilities @ v                             (r, D)
        if one:
            combine(scores, v, ldkv, keys, D, False, out + i0 * ldo)
        else:
            matmul(False, False, r, D, keys, scores, keys, v, ldkv, False, out + i0 * ldo, ldo)


cdef struct Cache:
    # Where the rows of texts that go on are kept.
    void* kv            # (slots, S, 2 K D) of the kernel's type: keys and values side by side
    Py_ssize_t length   # S, rows of a slot
    const int* slots    # (B,) the slot of each text
    const int* starts   # (B,) how many of its rows came before


cdef Py_ssize_t check_cache(
    const int[::1] offsets, floating[:, :, ::1] kv, const int[::1] slots,
    const int[::1] starts, Py_ssize_t kv_dim, Cache* cache,
) except -1

cdef Py_ssize_t check_room(
    const int[::1] offsets, const int[::1] slots, const int[::1] starts, Py_ssize_t S
) except -1


cdef inline void attend_cached(
    const floating* qkv, const int* offsets, Py_ssize_t B, Py_ssize_t C, Py_ssize_t H,
    Py_ssize_t K, const Cache* cache, floating* out, floating* scratch,
) noexcept nogil:
    """Append each text's keys and values to its slot; every head attends to all that is there."""
    cdef Py_ssize_t b, i, h, g, first, n, start, D = C // H, kv_dim = K * D, W = C + 2 * kv_dim
    cdef floating* k
    for b in range(B):
        first, n, start = offsets[b], offsets[b + 1] - offsets[b], cache.starts[b]
        k = <floating*> cache.kv + cache.slots[b] * cache.length * 2 * kv_dim
        for i in range(n):
            memcpy(k + (start + i) * 2 * kv_dim, qkv + (first + i) * W + C,
                   2 * kv_dim * sizeof(floating))
        for h in range(H if n > 0 else 0):
            g = h * K // H * D
            attend(qkv + first * W + h * D, W, k + g, k + kv_dim + g, 2 * kv_dim, n, start, D,
                   out + first * C + h * D, C, <floating*> NULL, 0, scratch)


cdef struct Part:
    # A part of attention: from which text and head to which.
    Py_ssize_t text, stop_text, head, stop_head


cdef void attend_all(
    const floating* qkv, const int* offsets, Part part, Py_ssize_t C, Py_ssize_t H, Py_ssize_t K,
    floating* out, floating* lse, floating* scratch,
) noexcept nogil

cdef void attend_all_backward(
    const floating* dout, const floating* qkv, const floating* lse, const int* offsets, Part part,
    Py_ssize_t C, Py_ssize_t H, Py_ssize_t K, floating* dqkv, floating* scratch,
) noexcept nogil
