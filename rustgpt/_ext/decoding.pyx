"""Owns one whole transformer block for the few new rows of a text that is being generated.

For one row the calls from Python cost more than the arithmetic, so that all steps of the block are
one call here; training, with many rows, calls the kernels of the steps. A row costs two operations
a parameter, and the parameters are read once: the memory's bandwidth is the limit.
"""
from cython cimport floating

from rustgpt._ext.activations cimport gelu_of
from rustgpt._ext.attention cimport BLOCK, attend
from rustgpt._ext.blas cimport gemm
from rustgpt._ext.checks cimport check_blas, check_matrix, check_vector
from rustgpt._ext.layer_norm cimport normalise


cpdef Py_ssize_t block_decode_scratch_size(
    Py_ssize_t n, Py_ssize_t length, Py_ssize_t C, Py_ssize_t F
) except -1:
    """Numbers of scratch for n new rows of a text that then has `length` rows."""
    return n * (5 * C + F) + BLOCK * length


cdef void affine(
    const floating* x, const floating* weight, const floating* bias, Py_ssize_t n,
    Py_ssize_t c_in, Py_ssize_t c_out, bint add, floating* out,
) noexcept nogil:
    """out = (out if add) + x @ weight + bias (if it is not NULL); out is (n, c_out)."""
    cdef Py_ssize_t i, c
    for i in range(n):
        for c in range(c_out):
            out[i * c_out + c] = (
                (out[i * c_out + c] if add else <floating> 0)
                + (bias[c] if bias != NULL else <floating> 0)
            )
    gemm(False, False, n, c_out, c_in, <floating> 1, x, c_in, weight, c_out,
         <floating> 1, out, c_out)


cdef void normalise_rows(
    const floating* x, const floating* weight, const floating* bias, double epsilon,
    Py_ssize_t n, Py_ssize_t C, floating* out,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating mean, rstd
    for i in range(n):
        normalise(x + i * C, weight, bias, epsilon, C, out + i * C, &mean, &rstd)


def block_decode(
    floating[:, ::1] x not None,                    # IN/OUT (n, C): the block's input, then output
    bint pre_norm,
    bint gelu,                                      # IN: GELU, or else ReLU
    Py_ssize_t n_heads,
    Py_ssize_t start,                               # IN: how many rows came before
    floating[:, ::1] keys not None,                 # IN/OUT (S, C): rows below `start` are in use
    floating[:, ::1] values not None,               # IN/OUT (S, C)
    const floating[:, ::1] qkv_weight not None,     # IN (C, 3 C)
    const floating[::1] qkv_bias,                   # IN (3 C,) or None
    const floating[:, ::1] projection_weight,       # IN (C, C) or None
    const floating[::1] projection_bias,            # IN (C,) or None
    const floating[::1] norm1_weight not None,      # IN (C,)
    const floating[::1] norm1_bias not None,        # IN (C,)
    const floating[:, ::1] weight1 not None,        # IN (C, F)
    const floating[::1] bias1 not None,             # IN (F,)
    const floating[:, ::1] weight2 not None,        # IN (F, C)
    const floating[::1] bias2 not None,             # IN (C,)
    const floating[::1] norm2_weight not None,      # IN (C,)
    const floating[::1] norm2_bias not None,        # IN (C,)
    double epsilon1,                                # IN: of norm1
    double epsilon2,                                # IN: of norm2
    floating[::1] scratch not None,                 # block_decode_scratch_size(n, start + n, C, F)
):
    """x = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""
    cdef Py_ssize_t n = x.shape[0], C = x.shape[1], F = bias1.shape[0], S = keys.shape[0]
    cdef Py_ssize_t H = n_heads, D, i, c, h
    cdef const floating* qkv_b = NULL
    cdef const floating* projection_b = NULL
    cdef const floating* inner          # what the sub-layers see: x, or x normalised
    cdef floating* normal
    cdef floating* qkv
    cdef floating* heads
    cdef floating* hidden
    cdef floating* scores
    if H < 1 or C % H != 0:
        raise ValueError(f"n_heads must divide the {C} columns, got {H}")
    if start < 0 or start > S - n:  # start + n could overflow
        raise ValueError(f"start must leave room for {n} rows in a cache of {S}, got {start}")
    check_matrix("keys", keys.shape, S, C)
    check_matrix("values", values.shape, S, C)
    check_matrix("qkv_weight", qkv_weight.shape, C, 3 * C)
    check_blas("qkv_weight", qkv_weight.shape)
    if qkv_bias is not None:
        check_vector("qkv_bias", qkv_bias.shape, 3 * C)
    if projection_weight is not None:
        check_matrix("projection_weight", projection_weight.shape, C, C)
    if projection_bias is not None:
        check_vector("projection_bias", projection_bias.shape, C)
    check_vector("norm1_weight", norm1_weight.shape, C)
    check_vector("norm1_bias", norm1_bias.shape, C)
    check_matrix("weight1", weight1.shape, C, F)
    check_blas("weight1", weight1.shape)
    check_matrix("weight2", weight2.shape, F, C)
    check_vector("bias2", bias2.shape, C)
    check_vector("norm2_weight", norm2_weight.shape, C)
    check_vector("norm2_bias", norm2_bias.shape, C)
    if scratch.shape[0] < block_decode_scratch_size(n, start + n, C, F):
        raise ValueError(
            f"scratch must hold block_decode_scratch_size({n}, {start + n}, {C}, {F}) = "
            f"{block_decode_scratch_size(n, start + n, C, F)} numbers, got {scratch.shape[0]}"
        )
    if n == 0 or C == 0 or F == 0:
        return
    if qkv_bias is not None:
        qkv_b = &qkv_bias[0]
    if projection_bias is not None:
        projection_b = &projection_bias[0]
    D = C // H
    normal = &scratch[0]                # (n, C)
    qkv = normal + n * C                # (n, 3 C)
    heads = qkv + n * 3 * C             # (n, C)
    hidden = heads + n * C              # (n, F)
    scores = hidden + n * F             # (BLOCK, start + n)
    inner = &x[0, 0]
    if pre_norm:
        inner = normal
    with nogil:
        # Attention over the cache and the new rows.
        if pre_norm:
            normalise_rows(&x[0, 0], &norm1_weight[0], &norm1_bias[0], epsilon1, n, C, normal)
        affine(inner, &qkv_weight[0, 0],
               qkv_b, n, C, 3 * C, False, qkv)
        for i in range(n):
            for c in range(C):
                keys[start + i, c] = qkv[i * 3 * C + C + c]
                values[start + i, c] = qkv[i * 3 * C + 2 * C + c]
        for h in range(H):
            attend(qkv + h * D, 3 * C, &keys[0, h * D], &values[0, h * D], C, n, start, D,
                   heads + h * D, C, <floating*> NULL, 0, scores)
        # x = x + attention(x)
        if projection_weight is None:
            for i in range(n):
                for c in range(C):
                    x[i, c] += heads[i * C + c]
        else:
            affine(heads, &projection_weight[0, 0],
                   projection_b, n, C, C, True, &x[0, 0])
        if pre_norm:
            normalise_rows(&x[0, 0], &norm2_weight[0], &norm2_bias[0], epsilon2, n, C, normal)
        else:
            normalise_rows(&x[0, 0], &norm1_weight[0], &norm1_bias[0], epsilon1, n, C, &x[0, 0])
        # x = x + feed_forward(x)
        affine(inner, &weight1[0, 0], &bias1[0], n, C, F, False, hidden)
        for i in range(n * F):
            if gelu:
                hidden[i] = gelu_of(hidden[i])
            elif hidden[i] < 0:
                hidden[i] = 0
        affine(hidden, &weight2[0, 0], &bias2[0], n, F, C, True, &x[0, 0])
        if not pre_norm:
            normalise_rows(&x[0, 0], &norm2_weight[0], &norm2_bias[0], epsilon2, n, C, &x[0, 0])
