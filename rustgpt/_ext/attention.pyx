"""Owns causal multi-head self-attention (Vaswani et al. 2017, section 3.2).

Rows of several sequences lie one after another; `offsets[b]:offsets[b + 1]` are those of sequence
b, so that no row is padding. Queries are taken in blocks of BLOCK rows, whose scores fit the cache.
Kept for the backward pass is one number a row and head, the log of the softmax's denominator; the
scores are computed again. For a sequence of T: 2 T^2 C operations forward and 5 T^2 C backward, the
masked half left out; of BLOCK rows on the diagonal BLAS computes that half too.
"""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.blas cimport gemm
from rustgpt._ext.checks cimport check_blas, check_matrix, check_offsets
from rustgpt._ext.rows cimport combine, dots, row_dot, row_exp


def attention_scratch_size(Py_ssize_t length):
    """Numbers of scratch that a sequence of `length` rows needs, forward or backward."""
    return 2 * BLOCK * length


cdef int check_heads(Py_ssize_t C, Py_ssize_t n_heads) except -1:
    if n_heads < 1 or C % n_heads != 0:
        raise ValueError(f"n_heads must divide the {C} columns, got {n_heads}")
    return 0


cdef int check_scratch(Py_ssize_t size, Py_ssize_t length) except -1:
    if size < 2 * BLOCK * length:
        raise ValueError(
            f"scratch must hold attention_scratch_size({length}) = {2 * BLOCK * length} numbers, "
            f"got {size}"
        )
    return 0


def attention_forward(
    const floating[:, ::1] qkv not None,  # IN (N, 3 C): queries, keys and values side by side
    const int[::1] offsets not None,      # IN (B + 1,)
    Py_ssize_t n_heads,
    floating[:, ::1] out not None,        # OUT (N, C)
    floating[:, ::1] lse not None,        # OUT (N, H)
    floating[::1] scratch not None,       # attention_scratch_size(longest sequence)
):
    """out = softmax(mask(q @ k.T / sqrt(D))) @ v for each sequence and head, D = C / H."""
    cdef Py_ssize_t N = out.shape[0], C = out.shape[1], H = n_heads
    cdef Py_ssize_t b, h, first, T, D
    check_heads(C, H)
    check_matrix("qkv", qkv.shape, N, 3 * C)
    check_blas("qkv", qkv.shape)
    check_matrix("lse", lse.shape, N, H)
    check_scratch(scratch.shape[0], check_offsets(offsets, N))
    if N == 0 or C == 0:
        return
    D = C // H
    with nogil:
        for b in range(offsets.shape[0] - 1):
            first = offsets[b]
            T = offsets[b + 1] - first
            for h in range(H):
                if T > 0:
                    attend(&qkv[first, h * D], 3 * C, &qkv[first, C + h * D],
                           &qkv[first, 2 * C + h * D], 3 * C, T, 0, D,
                           &out[first, h * D], C, &lse[first, h], H, &scratch[0])


cdef void attend_short_backward(
    const floating* dout, Py_ssize_t ldo,                                          # IN (T, D)
    const floating* q, const floating* k, const floating* v,                       # IN (T, D)
    const floating* lse, Py_ssize_t ld_lse,                                        # IN (T,)
    Py_ssize_t T, Py_ssize_t D,
    floating* dq, floating* dk, floating* dv, Py_ssize_t ld,                       # OUT (T, D)
    floating* p, floating* dscores,                                # scratch (T, T) each
) noexcept nogil:
    """`attend_backward` for few rows, in loops that end at the mask."""
    cdef Py_ssize_t i, j
    cdef floating scale = <floating> (1.0 / sqrt(<double> D)), mean
    cdef floating* row
    cdef floating* drow
    for i in range(T):
        row, drow = p + i * T, dscores + i * T
        # Passes 1 and 2 again: p = exp(scale * q @ k.T - lse)
        dots(q + i * ld, k, ld, i + 1, D, row)
        row_exp(row, scale, lse[i * ld_lse], row, i + 1)
        # Pass 3 was out = p @ v:                  dp = dout @ v.T
        dots(dout + i * ldo, v, ld, i + 1, D, drow)
        # Pass 2 was p = softmax(scale * scores):  dscores = scale * p * (dp - sum(p * dp))
        mean = <floating> row_dot(row, drow, i + 1)
        for j in range(i + 1):
            drow[j] = scale * row[j] * (drow[j] - mean)
        # Pass 1 was scores = q @ k.T:             dq = dscores @ k
        combine(drow, 1, k, ld, i + 1, D, dq + i * ld)
    for j in range(T):
        # dk = dscores.T @ q, dv = p.T @ dout: key j was seen by the rows from j on.
        combine(dscores + j * T + j, T, q + j * ld, ld, T - j, D, dk + j * ld)
        combine(p + j * T + j, T, dout + j * ldo, ldo, T - j, D, dv + j * ld)


cdef void attend_backward(
    const floating* dout, Py_ssize_t ldo,                                          # IN (T, D)
    const floating* q, const floating* k, const floating* v,                       # IN (T, D)
    const floating* lse, Py_ssize_t ld_lse,                                        # IN (T,)
    Py_ssize_t T, Py_ssize_t D,
    floating* dq, floating* dk, floating* dv, Py_ssize_t ld,                       # OUT (T, D)
    floating* scores, floating* dscores,                         # scratch (BLOCK, T) each
) noexcept nogil:
    """One head of one sequence; `ld` is the row length of q, k, v and of their gradients."""
    cdef Py_ssize_t block, i0, i, j, r, seen, keys
    cdef floating scale = <floating> (1.0 / sqrt(<double> D)), mean, beta
    cdef floating* row
    cdef floating* drow
    if T < SHORT:
        attend_short_backward(dout, ldo, q, k, v, lse, ld_lse, T, D, dq, dk, dv, ld,
                              scores, dscores)
        return
    # From the last block to the first: the last sees every key and so overwrites dk and dv.
    for block in range((T - 1) // BLOCK, -1, -1):
        i0 = block * BLOCK
        r = min(<Py_ssize_t> BLOCK, T - i0)
        keys = i0 + r
        beta = <floating> (keys < T)
        # Passes 1 and 2 again: scores = q @ k.T; p = exp(scale * scores - lse)      (r, keys)
        gemm(False, True, r, keys, D, <floating> 1, q + i0 * ld, ld, k, ld,
             <floating> 0, scores, keys)
        for i in range(r):
            row, seen = scores + i * keys, i0 + i + 1
            row_exp(row, scale, lse[(i0 + i) * ld_lse], row, seen)
            for j in range(seen, keys):
                row[j] = 0
        # Pass 3 was out = p @ v:  dv += p.T @ dout                                  (keys, D)
        gemm(True, False, keys, D, r, <floating> 1, scores, keys, dout + i0 * ldo, ldo,
             beta, dv, ld)
        #                          dp = dout @ v.T                                   (r, keys)
        gemm(False, True, r, keys, D, <floating> 1, dout + i0 * ldo, ldo, v, ld,
             <floating> 0, dscores, keys)
        # Pass 2 was p = softmax(scale * scores):  dscores = scale * p * (dp - sum(p * dp))
        for i in range(r):
            row, drow, seen = scores + i * keys, dscores + i * keys, i0 + i + 1
            mean = <floating> row_dot(row, drow, seen)
            for j in range(seen):
                drow[j] = scale * row[j] * (drow[j] - mean)
            for j in range(seen, keys):
                drow[j] = 0
        # Pass 1 was scores = q @ k.T:  dq = dscores @ k                             (r, D)
        gemm(False, False, r, D, keys, <floating> 1, dscores, keys, k, ld,
             <floating> 0, dq + i0 * ld, ld)
        #                               dk += dscores.T @ q                          (keys, D)
        gemm(True, False, keys, D, r, <floating> 1, dscores, keys, q + i0 * ld, ld,
             beta, dk, ld)


def attention_backward(
    const floating[:, ::1] dout not None,  # IN (N, C)
    const floating[:, ::1] qkv not None,   # IN (N, 3 C)
    const floating[:, ::1] lse not None,   # IN (N, H)
    const int[::1] offsets not None,       # IN (B + 1,)
    Py_ssize_t n_heads,
    floating[:, ::1] dqkv not None,        # OUT (N, 3 C): overwritten
    floating[::1] scratch not None,        # attention_scratch_size(longest sequence)
):
    """The gradients of queries, keys and values, from the gradient of the output."""
    cdef Py_ssize_t N = dout.shape[0], C = dout.shape[1], H = n_heads
    cdef Py_ssize_t b, h, first, T, D, longest
    check_heads(C, H)
    check_matrix("qkv", qkv.shape, N, 3 * C)
    check_blas("qkv", qkv.shape)
    check_matrix("lse", lse.shape, N, H)
    check_matrix("dqkv", dqkv.shape, N, 3 * C)
    longest = check_offsets(offsets, N)
    check_scratch(scratch.shape[0], longest)
    if N == 0 or C == 0:
        return
    D = C // H
    with nogil:
        for b in range(offsets.shape[0] - 1):
            first = offsets[b]
            T = offsets[b + 1] - first
            for h in range(H):
                if T > 0:
                    attend_backward(
                        &dout[first, h * D], C, &qkv[first, h * D], &qkv[first, C + h * D],
                        &qkv[first, 2 * C + h * D], &lse[first, h], H, T, D,
                        &dqkv[first, h * D], &dqkv[first, C + h * D],
                        &dqkv[first, 2 * C + h * D], 3 * C,
                        &scratch[0], &scratch[0] + BLOCK * T,
                    )


def attention_decode(
    const floating[:, ::1] qkv not None,  # IN (n, 3 C): the new rows of one sequence
    floating[:, ::1] keys not None,       # IN/OUT (S, C): rows below `start` are in use
    floating[:, ::1] values not None,     # IN/OUT (S, C)
    Py_ssize_t start,                     # IN: how many rows came before
    Py_ssize_t n_heads,
    floating[:, ::1] out not None,        # OUT (n, C)
    floating[::1] scratch not None,       # attention_scratch_size(start + n)
):
    """Append the new rows' keys and values to the cache and attend to all that it holds."""
    cdef Py_ssize_t n = out.shape[0], C = out.shape[1], H = n_heads, S = keys.shape[0]
    cdef Py_ssize_t i, c, h, D
    check_heads(C, H)
    check_matrix("qkv", qkv.shape, n, 3 * C)
    check_blas("qkv", qkv.shape)
    check_matrix("keys", keys.shape, S, C)
    check_matrix("values", values.shape, S, C)
    if start < 0 or start > S - n:  # start + n could overflow
        raise ValueError(f"start must leave room for {n} rows in a cache of {S}, got {start}")
    check_scratch(scratch.shape[0], start + n)
    if n == 0 or C == 0:
        return
    D = C // H
    with nogil:
        for i in range(n):
            for c in range(C):
                keys[start + i, c] = qkv[i, C + c]
                values[start + i, c] = qkv[i, 2 * C + c]
        for h in range(H):
            attend(&qkv[0, h * D], 3 * C, &keys[0, h * D], &values[0, h * D], C, n, start, D,
                   &out[0, h * D], C, <floating*> NULL, 0, &scratch[0])
