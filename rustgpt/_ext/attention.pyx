"""Owns causal multi-head self-attention (Vaswani et al. 2017, section 3.2).

Rows of several sequences lie one after another; `offsets[b]:offsets[b + 1]` are those of sequence
b, so that no row is padding. Queries are taken in blocks of BLOCK rows, whose scores fit the cache.
Kept for the backward pass is one number a row and head, the log of the softmax's denominator; the
scores are computed again. For a sequence of T: 2 T^2 C operations forward and 5 T^2 C backward, the
masked half left out. A text of up to BLOCK rows goes through products that stay in registers and
end at the mask; a longer one through larger ones, which compute that half too on the diagonal's
blocks.

H heads of queries look at K heads of keys and values, H / K of them at the same one (grouped-query
attention; Ainslie et al. 2023). A row of queries, keys and values has W = (H + 2 K) D numbers.
"""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.checks cimport (
    check_aligned, check_indices, check_ints, check_matrix, check_offsets, check_scratch,
    check_size,
)
from rustgpt._ext.rows cimport row_dot, row_exp
from rustgpt._ext.tile_softmax cimport tile_softmax, tile_softmax_backward
from rustgpt._ext.tiles cimport RUSTGPT_TILE_ROWS, multiply, product, transpose


cdef enum:
    # Query rows of a short text that are done at a time.
    ROWS = RUSTGPT_TILE_ROWS


cdef str SIZE = "attention_scratch_size(length, head_dim)"


def attention_scratch_size(Py_ssize_t length, Py_ssize_t head_dim):
    """Numbers of scratch for a text of `length` rows, forward or backward."""
    check_size("length", length)
    check_size("head_dim", head_dim)
    return scratch_size(length, head_dim)


cdef Py_ssize_t scratch_size(Py_ssize_t length, Py_ssize_t head_dim) noexcept:
    return 2 * BLOCK * (length + head_dim)


cdef Py_ssize_t check_heads(Py_ssize_t C, Py_ssize_t n_heads, Py_ssize_t n_kv_heads) except -1:
    """Return K, the heads of keys and values: n_heads if n_kv_heads is 0."""
    if n_heads < 1 or C % n_heads != 0:
        raise ValueError(f"n_heads must divide the {C} columns, got {n_heads}")
    if n_kv_heads < 0 or n_heads % (n_kv_heads or n_heads) != 0:
        raise ValueError(f"n_kv_heads must divide the {n_heads} heads, got {n_kv_heads}")
    return n_kv_heads or n_heads


cdef Py_ssize_t whole_tiles(Py_ssize_t n) noexcept nogil:
    """n rounded up to a multiple of a tile's width, and so of every vector's."""
    return (n + 15) // 16 * 16


cdef void as_columns(
    const floating* x, Py_ssize_t ld, Py_ssize_t T, Py_ssize_t D, Py_ssize_t width, floating* out
) noexcept nogil:
    """out (D, width) = x.T, filled up with zeros."""
    cdef Py_ssize_t i, d
    transpose(x, ld, T, D, out, width)
    for d in range(D):
        for i in range(T, width):
            out[d * width + i] = 0


cdef void attend_short(
    const floating* q, const floating* k, const floating* v, Py_ssize_t ld,  # IN (T, D)
    Py_ssize_t T, Py_ssize_t D,
    floating* out, Py_ssize_t ldo,                                           # OUT (T, D)
    floating* lse, Py_ssize_t ld_lse,                                        # OUT (T,)
    floating* scratch,                                                       # 2 BLOCK (T + D)
) noexcept nogil:
    """One head of one sequence of at most BLOCK rows, ROWS at a time, which see as many keys."""
    cdef Py_ssize_t block, i0, r, seen, width = whole_tiles(T)
    cdef floating scale = <floating> (1.0 / sqrt(<double> D))
    cdef floating* keys = scratch            # (D, width)
    cdef floating* p = keys + D * width      # (ROWS, width)
    as_columns(k, ld, T, D, width, keys)
    for block in range((T + ROWS - 1) // ROWS):
        i0 = block * ROWS
        r = min(<Py_ssize_t> ROWS, T - i0)
        seen = whole_tiles(i0 + r)
        # Pass 1: scores = q @ k.T                                       (r, seen)
        product(q + i0 * ld, ld, 1, keys, width, r, seen, D, p, width)
        # Pass 2: softmax
        tile_softmax(p, width, <int> r, <int> (seen // 16), <int> (i0 + 1), scale,
                     lse + i0 * ld_lse, ld_lse)
        # Pass 3: out = p @ v                                            (r, D)
        product(p, width, 1, v, ld, r, D, i0 + r, out + i0 * ldo, ldo)


cdef void attend_short_backward(
    const floating* dout, Py_ssize_t ldo,                                          # IN (T, D)
    const floating* q, const floating* k, const floating* v,                       # IN (T, D)
    const floating* lse, Py_ssize_t ld_lse,                                        # IN (T,)
    Py_ssize_t T, Py_ssize_t D,
    floating* dq, floating* dk, floating* dv, Py_ssize_t ld,                       # OUT (T, D)
    bint add,                                             # whether to dk and dv, of another head
    floating* scratch,                                                   # 2 BLOCK (T + D)
) noexcept nogil:
    """The gradients of `attend_short`."""
    cdef Py_ssize_t block, i0, r, seen, width = whole_tiles(T)
    cdef floating scale = <floating> (1.0 / sqrt(<double> D))
    cdef floating* keys = scratch            # (D, width)
    cdef floating* values = keys + D * width  # (D, width)
    cdef floating* p = values + D * width    # (T, width)
    cdef floating* dscores = p + T * width   # (T, width)
    as_columns(k, ld, T, D, width, keys)
    as_columns(v, ld, T, D, width, values)
    for block in range((T + ROWS - 1) // ROWS):
        i0 = block * ROWS
        r = min(<Py_ssize_t> ROWS, T - i0)
        seen = whole_tiles(i0 + r)
        # Passes 1 and 2 again: p = exp(scale * q @ k.T - lse);  dp = dout @ v.T      (r, seen)
        product(q + i0 * ld, ld, 1, keys, width, r, seen, D, p + i0 * width, width)
        product(dout + i0 * ldo, ldo, 1, values, width, r, seen, D, dscores + i0 * width, width)
        # Pass 2 was p = softmax(scale * scores):  dscores = scale * p * (dp - sum(p * dp))
        tile_softmax_backward(p + i0 * width, dscores + i0 * width, width, <int> r,
                              <int> (seen // 16), <int> (i0 + 1), scale, lse + i0 * ld_lse, ld_lse)
        # Pass 1 was scores = q @ k.T:             dq = dscores @ k                   (r, D)
        product(dscores + i0 * width, width, 1, k, ld, r, D, i0 + r, dq + i0 * ld, ld)
    for block in range((T + ROWS - 1) // ROWS):
        i0 = block * ROWS
        # The keys from i0 on were seen by the rows from i0 on; what those of the same ROWS could
        # not see is 0.                            dk = dscores.T @ q, dv = p.T @ dout
        r = min(<Py_ssize_t> ROWS, T - i0)
        multiply(False, r, D, T - i0, dscores + i0 * width + i0, 1, width, q + i0 * ld, ld, NULL,
                 False, add, NULL, dk + i0 * ld, ld)
        multiply(False, r, D, T - i0, p + i0 * width + i0, 1, width, dout + i0 * ldo, ldo, NULL,
                 False, add, NULL, dv + i0 * ld, ld)


cdef void attend_all(
    const floating* qkv, const int* offsets, Part part, Py_ssize_t C, Py_ssize_t H, Py_ssize_t K,
    floating* out, floating* lse, floating* scratch,
) noexcept nogil:
    cdef Py_ssize_t b, h, first, T, D = C // H, W = C + 2 * K * D
    cdef const floating* q
    cdef const floating* k
    cdef const floating* v
    for b in range(part.text, part.stop_text):
        first = offsets[b]
        T = offsets[b + 1] - first
        for h in range(part.head, part.stop_head if T > 0 else part.head):
            q = qkv + first * W + h * D
            k = qkv + first * W + C + h * K // H * D
            v = k + K * D
            if T <= BLOCK:
                attend_short(q, k, v, W, T, D,
                             out + first * C + h * D, C, lse + first * H + h, H, scratch)
            else:
                attend(q, W, k, v, W, T, 0, D,
                       out + first * C + h * D, C, lse + first * H + h, H, scratch)


def attention_forward(
    const floating[:, ::1] qkv not None,  # IN (N, W): queries, keys and values side by side
    const int[::1] offsets not None,      # IN (B + 1,)
    Py_ssize_t n_heads,
    floating[:, ::1] out not None,        # OUT (N, C)
    floating[:, ::1] lse not None,        # OUT (N, H)
    floating[::1] scratch not None,       # attention_scratch_size(longest text, D)
    Py_ssize_t n_kv_heads=0,              # IN: K; 0 for as many as heads
):
    """out = softmax(mask(q @ k.T / sqrt(D))) @ v for each sequence and head, D = C / H."""
    cdef Py_ssize_t N = out.shape[0], C = out.shape[1], H = n_heads
    cdef Py_ssize_t K = check_heads(C, H, n_kv_heads)
    cdef floating* qkv0 = check_matrix("qkv", qkv, N, C + C // H * K * 2)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    cdef floating* lse0 = check_matrix[floating]("lse", lse, N, H)
    cdef Py_ssize_t needed = scratch_size(check_offsets(offsets, N), C // H)
    cdef floating* scratch0 = check_scratch(SIZE, scratch, needed)
    cdef Part part = [0, offsets.shape[0] - 1, 0, H]
    if C > 0:
        with nogil:
            attend_all(qkv0, &offsets[0], part, C, H, K, out0, lse0, scratch0)


cdef void attend_backward(
    const floating* dout, Py_ssize_t ldo,                                          # IN (T, D)
    const floating* q, const floating* k, const floating* v,                       # IN (T, D)
    const floating* lse, Py_ssize_t ld_lse,                                        # IN (T,)
    Py_ssize_t T, Py_ssize_t D,
    floating* dq, floating* dk, floating* dv, Py_ssize_t ld,                       # OUT (T, D)
    bint add,                                             # whether to dk and dv, of another head
    floating* scores, floating* dscores,                         # scratch (BLOCK, T) each
) noexcept nogil:
    """One head of one sequence; `ld` is the row length of q, k, v and of their gradients."""
    cdef Py_ssize_t block, i0, i, j, r, seen, keys
    cdef floating scale = <floating> (1.0 / sqrt(<double> D)), mean
    cdef floating* row
    cdef floating* drow
    # From the last block to the first: the last sees every key and so overwrites dk and dv.
    for block in range((T - 1) // BLOCK, -1, -1):
        i0 = block * BLOCK
        r = min(<Py_ssize_t> BLOCK, T - i0)
        keys = i0 + r
        # Passes 1 and 2 again: scores = q @ k.T; p = exp(scale * scores - lse)      (r, keys)
        matmul(False, True, r, keys, D, q + i0 * ld, ld, k, ld, False, scores, keys)
        for i in range(r):
            row, seen = scores + i * keys, i0 + i + 1
            row_exp(row, scale, lse[(i0 + i) * ld_lse], row, seen)
            for j in range(seen, keys):
                row[j] = 0
        # Pass 3 was out = p @ v:  dv += p.T @ dout                                  (keys, D)
        matmul(True, False, keys, D, r, scores, keys, dout + i0 * ldo, ldo, add or keys < T, dv, ld)
        #                          dp = dout @ v.T                                   (r, keys)
        matmul(False, True, r, keys, D, dout + i0 * ldo, ldo, v, ld, False, dscores, keys)
        # Pass 2 was p = softmax(scale * scores):  dscores = scale * p * (dp - sum(p * dp))
        for i in range(r):
            row, drow, seen = scores + i * keys, dscores + i * keys, i0 + i + 1
            mean = <floating> row_dot(row, drow, seen)
            for j in range(seen):
                drow[j] = scale * row[j] * (drow[j] - mean)
            for j in range(seen, keys):
                drow[j] = 0
        # Pass 1 was scores = q @ k.T:  dq = dscores @ k                             (r, D)
        matmul(False, False, r, D, keys, dscores, keys, k, ld, False, dq + i0 * ld, ld)
        #                               dk += dscores.T @ q                          (keys, D)
        matmul(True, False, keys, D, r, dscores, keys, q + i0 * ld, ld, add or keys < T, dk, ld)


cdef void attend_all_backward(
    const floating* dout, const floating* qkv, const floating* lse, const int* offsets, Part part,
    Py_ssize_t C, Py_ssize_t H, Py_ssize_t K, floating* dqkv, floating* scratch,
) noexcept nogil:
    cdef Py_ssize_t b, h, first, T, key, D = C // H, W = C + 2 * K * D, group = H // K
    cdef const floating* q
    cdef const floating* k
    cdef floating* dq
    cdef floating* dk
    cdef bint add
    for b in range(part.text, part.stop_text):
        first = offsets[b]
        T = offsets[b + 1] - first
        for h in range(part.head, part.stop_head if T > 0 else part.head):
            q, dq = qkv + first * W + h * D, dqkv + first * W + h * D
            key, add = first * W + C + h // group * D, h % group > 0
            k, dk = qkv + key, dqkv + key
            if T <= BLOCK:
                attend_short_backward(
                    dout + first * C + h * D, C, q, k, k + K * D, lse + first * H + h, H, T, D,
                    dq, dk, dk + K * D, W, add, scratch,
                )
            else:
                attend_backward(
                    dout + first * C + h * D, C, q, k, k + K * D, lse + first * H + h, H, T, D,
                    dq, dk, dk + K * D, W, add, scratch, scratch + BLOCK * T,
                )


def attention_backward(
    const floating[:, ::1] dout not None,  # IN (N, C)
    const floating[:, ::1] qkv not None,   # IN (N, W)
    const floating[:, ::1] lse not None,   # IN (N, H)
    const int[::1] offsets not None,       # IN (B + 1,)
    Py_ssize_t n_heads,
    floating[:, ::1] dqkv not None,        # OUT (N, W): overwritten
    floating[::1] scratch not None,        # attention_scratch_size(longest text, D)
    Py_ssize_t n_kv_heads=0,               # IN: K; 0 for as many as heads
):
    """The gradients of queries, keys and values, from the gradient of the output."""
    cdef Py_ssize_t N = dout.shape[0], C = dout.shape[1], H = n_heads
    cdef Py_ssize_t K = check_heads(C, H, n_kv_heads), W = C + C // H * K * 2
    cdef floating* dout0 = check_matrix("dout", dout, N, C)
    cdef floating* qkv0 = check_matrix("qkv", qkv, N, W)
    cdef floating* lse0 = check_matrix("lse", lse, N, H)
    cdef floating* dqkv0 = check_matrix[floating]("dqkv", dqkv, N, W)
    cdef Py_ssize_t needed = scratch_size(check_offsets(offsets, N), C // H)
    cdef floating* scratch0 = check_scratch(SIZE, scratch, needed)
    cdef Part part = [0, offsets.shape[0] - 1, 0, H]
    if C > 0:
        with nogil:
            attend_all_backward(dout0, qkv0, lse0, &offsets[0], part, C, H, K, dqkv0, scratch0)


cdef Py_ssize_t check_cache(
    const int[::1] offsets, floating[:, :, ::1] kv, const int[::1] slots,
    const int[::1] starts, Py_ssize_t kv_dim, Cache* cache,
) except -1:
    """Fill in `cache`, and return the most rows that a text has in all.

    Raises ValueError unless each text has a slot of its own with room for its new rows.
    """
    cdef Py_ssize_t S, B = offsets.shape[0] - 1
    if kv is None or slots is None or starts is None:
        raise ValueError("kv, slots and starts must all be given, or none")
    if kv.shape[2] != 2 * kv_dim:
        raise ValueError(f"kv must have {2 * kv_dim} columns, got {kv.shape[2]}")
    cache.length = S = kv.shape[1]
    cache.kv = &kv[0, 0, 0] if kv.shape[0] and S and kv_dim else NULL
    check_aligned("kv", <size_t> cache.kv, sizeof(floating))
    cache.slots = check_indices("slots", slots, B, 0, kv.shape[0])
    cache.starts = check_ints("starts", starts, B)
    return check_room(offsets, slots, starts, S)


cdef Py_ssize_t check_room(
    const int[::1] offsets, const int[::1] slots, const int[::1] starts, Py_ssize_t S
) except -1:
    """Return the most rows that a text has in all, after a check of what `check_cache` says."""
    cdef Py_ssize_t b, other, n, longest = 0
    for b in range(offsets.shape[0] - 1):
        n = <Py_ssize_t> offsets[b + 1] - offsets[b]
        if starts[b] < 0 or starts[b] > S - n:  # starts[b] + n could overflow
            raise ValueError(
                f"starts[{b}] must leave room for {n} rows in a cache of {S}, got {starts[b]}"
            )
        for other in range(b):
            if slots[other] == slots[b]:
                raise ValueError(f"slots must differ, but texts {other} and {b} have the same")
        longest = max(longest, starts[b] + n)
    return longest


def attention_decode(
    const floating[:, ::1] qkv not None,      # IN (N, W): the new rows of each text
    const int[::1] offsets not None,          # IN (B + 1,)
    Py_ssize_t n_heads,
    floating[:, :, ::1] kv not None,          # IN/OUT (slots, S, 2 K D): keys and values
    const int[::1] slots not None,            # IN (B,): the slot of each text, all different
    const int[::1] starts not None,           # IN (B,): how many of its rows came before
    floating[:, ::1] out not None,            # OUT (N, C)
    floating[::1] scratch not None,           # attention_scratch_size(start + n at most, D)
    Py_ssize_t n_kv_heads=0,                  # IN: K; 0 for as many as heads
):
    """Append the new rows' keys and values to the cache; each text attends to all of its own."""
    cdef Py_ssize_t N = out.shape[0], C = out.shape[1], H = n_heads
    cdef Cache cache
    cdef Py_ssize_t K = check_heads(C, H, n_kv_heads), kv_dim = C // H * K
    check_offsets(offsets, N)
    cdef floating* qkv0 = check_matrix("qkv", qkv, N, C + 2 * kv_dim)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    cdef Py_ssize_t longest = check_cache(offsets, kv, slots, starts, kv_dim, &cache)
    cdef floating* scratch0 = check_scratch(SIZE, scratch, scratch_size(longest, C // H))
    if C > 0:
        with nogil:
            attend_cached(qkv0, &offsets[0], offsets.shape[0] - 1, C, H, K, &cache, out0,
                          scratch0)
