"""Owns a whole transformer block: forward, backward, and decoding, each in one call.

A call from Python costs microseconds and a hand-over between threads, which for small models is
as much as the arithmetic. So here the steps that `rustgpt/layers/transformer.py` spells out run
one after another without returning to Python. The block's parameters lie one after another in one
flat array, in the order of `TransformerBlock.parameters()`.

With P parameters, T tokens a text: 2 P + 4 T C operations a row forward, twice that backward. Kept
for the backward pass: (5 C + F) numbers a row with the norms before, (6 C + F) with the norms
after, and a few per head; what is cheap is computed again.
"""
from cython cimport floating
from libc.string cimport memcpy

from rustgpt._ext.activations cimport relu, relu_gradient
from rustgpt._ext.attention cimport BLOCK, attend, attend_all, attend_all_backward
from rustgpt._ext.checks cimport check_blas, check_matrix, check_offsets, check_vector
from rustgpt._ext.layer_norm cimport normalise_again, normalise_rows, normalise_rows_backward
from rustgpt._ext.linear cimport affine, affine_backward, check_bfloat16
from rustgpt._ext.rows cimport row_gelu, row_gelu_backward


cdef struct Block:
    Py_ssize_t C, F, H
    bint pre_norm, gelu, projection, bias, bfloat16
    double epsilon1, epsilon2
    # Where each parameter begins in the flat array; a norm's bias follows its weight.
    Py_ssize_t qkv_weight, qkv_bias, projection_weight, projection_bias, norm1
    Py_ssize_t weight1, bias1, weight2, bias2, norm2, size


cdef struct Kept:
    # Where each array begins in what is kept of N rows for the backward pass.
    Py_ssize_t qkv, heads, lse, sum1, mean1, rstd1, hidden, sum2, mean2, rstd2, size


cdef Block block_of(
    Py_ssize_t C, Py_ssize_t F, Py_ssize_t H, bint pre_norm, bint gelu, bint projection, bint bias,
    double epsilon1, double epsilon2, bint bfloat16,
) noexcept nogil:
    cdef Block b
    b.C, b.F, b.H = C, F, H
    b.pre_norm, b.gelu, b.projection, b.bias = pre_norm, gelu, projection, bias
    b.epsilon1, b.epsilon2, b.bfloat16 = epsilon1, epsilon2, bfloat16
    b.qkv_weight = 0
    b.qkv_bias = 3 * C * C
    b.projection_weight = b.qkv_bias + (3 * C if bias else 0)
    b.projection_bias = b.projection_weight + (C * C if projection else 0)
    b.norm1 = b.projection_bias + (C if projection and bias else 0)
    b.weight1 = b.norm1 + 2 * C
    b.bias1 = b.weight1 + C * F
    b.weight2 = b.bias1 + F
    b.bias2 = b.weight2 + F * C
    b.norm2 = b.bias2 + C
    b.size = b.norm2 + 2 * C
    return b


cdef Py_ssize_t whole_lines(Py_ssize_t N) noexcept nogil:
    """N rounded up, so that every array of so many rows begins at the edge of a cache line."""
    return (N + 15) // 16 * 16


cdef Kept kept_of(const Block* b, Py_ssize_t N) noexcept nogil:
    cdef Kept k
    cdef Py_ssize_t M = whole_lines(N)
    k.qkv = 0                                                     # (N, 3 C)
    k.heads = k.qkv + M * 3 * b.C                                 # (N, C), with a projection
    k.lse = k.heads + (M * b.C if b.projection else 0)            # (N, H)
    k.sum1 = k.lse + M * b.H                                      # (N, C): x + attention(...)
    k.mean1 = k.sum1 + M * b.C                                    # (N,)
    k.rstd1 = k.mean1 + M                                         # (N,)
    k.hidden = k.rstd1 + M                                        # (N, F): max(., 0) if ReLU
    k.sum2 = k.hidden + M * b.F                                   # (N, C), norms after
    k.mean2 = k.sum2 + (0 if b.pre_norm else M * b.C)             # (N,)
    k.rstd2 = k.mean2 + M                                         # (N,)
    k.size = k.rstd2 + M
    return k


cpdef Py_ssize_t block_kept_size(
    Py_ssize_t N, Py_ssize_t C, Py_ssize_t F, Py_ssize_t n_heads, bint pre_norm, bint projection
) except -1:
    """Numbers that `block_forward` keeps of N rows for `block_backward`."""
    cdef Block b = block_of(C, F, n_heads, pre_norm, False, projection, False, 0.0, 0.0, False)
    return kept_of(&b, N).size


cpdef Py_ssize_t block_scratch_size(
    Py_ssize_t N, Py_ssize_t longest, Py_ssize_t C, Py_ssize_t F
) except -1:
    """Numbers of scratch for N rows, in texts of at most `longest` rows with those before."""
    return whole_lines(N) * (max(F, 3 * C) + max(F, C) + 2 * C) + 2 * BLOCK * (longest + C)


cdef int check_block(
    Block b, const Py_ssize_t* x, const Py_ssize_t* parameters, Py_ssize_t scratch,
    Py_ssize_t longest,
) except -1:
    cdef Py_ssize_t needed = block_scratch_size(x[0], longest, b.C, b.F)
    if b.H < 1 or b.C % b.H != 0:
        raise ValueError(f"n_heads must divide the {b.C} columns, got {b.H}")
    if b.F < 0:
        raise ValueError(f"hidden_dim must not be negative, got {b.F}")
    check_blas("x", x)
    if 3 * b.C >= 2**31 or b.F >= 2**31:
        raise ValueError(f"{b.C} columns or hidden_dim {b.F} are too many")
    check_vector("parameters", parameters, b.size)
    if scratch < needed:
        raise ValueError(
            f"scratch must hold block_scratch_size({x[0]}, {longest}, {b.C}, {b.F}) = {needed} "
            f"numbers, got {scratch}"
        )
    return 0


cdef void feed_forward(
    const Block* b, const floating* p, const floating* x, Py_ssize_t n,  # IN (n, C)
    floating* hidden, floating* activated,                               # OUT (n, F); scratch
    floating* out,                                                       # IN/OUT (n, C): added to
) noexcept nogil:
    """out += activation(x @ weight1 + bias1) @ weight2 + bias2."""
    affine(x, p + b.weight1, p + b.bias1, n, b.C, b.F, False, False, b.bfloat16,
           hidden)                                                                    # (n, F)
    if b.gelu:
        row_gelu(hidden, n * b.F, activated)
    else:
        relu(hidden, n * b.F, hidden)
        activated = hidden
    affine(activated, p + b.weight2, p + b.bias2, n, b.F, b.C, False, True, b.bfloat16,
           out)                                                                       # (n, C)


cdef void project(
    const Block* b, const floating* p, const floating* heads, Py_ssize_t n, floating* out
) noexcept nogil:
    """out += heads @ projection_weight + projection_bias, or heads as they are."""
    cdef Py_ssize_t i
    if b.projection:
        affine(heads, p + b.projection_weight, p + b.projection_bias if b.bias else NULL,
               n, b.C, b.C, False, True, b.bfloat16, out)  # (n, C)
    else:
        for i in range(n * b.C):
            out[i] += heads[i]


def block_forward(
    const floating[:, ::1] x not None,        # IN (N, C)
    const int[::1] offsets not None,          # IN (B + 1,)
    const floating[::1] parameters not None,  # IN (P,)
    Py_ssize_t n_heads,
    Py_ssize_t hidden_dim,
    bint pre_norm,
    bint gelu,                                # IN: GELU, or else ReLU
    bint projection,                          # IN: whether attention has an output projection
    bint bias,                                # IN: whether attention has biases
    double epsilon1,                          # IN: of norm1
    double epsilon2,                          # IN: of norm2
    floating[:, ::1] out not None,            # OUT (N, C)
    floating[::1] kept not None,              # OUT (block_kept_size(...),)
    floating[::1] scratch not None,           # block_scratch_size(N, longest text, C, F)
    bint bfloat16=False,                      # IN: whether the linear products round to it
):
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, bfloat16)
    cdef Kept k = kept_of(&b, N)
    check_bfloat16(bfloat16, sizeof(floating))
    check_block(b, x.shape, parameters.shape, scratch.shape[0], check_offsets(offsets, N))
    check_matrix("out", out.shape, N, C)
    check_vector("kept", kept.shape, k.size)
    if N == 0 or C == 0:
        return
    with nogil:
        forward(&b, &k, &parameters[0], &x[0, 0], &offsets[0], offsets.shape[0] - 1, N,
                &out[0, 0], &kept[0], &scratch[0])


cdef void forward(
    const Block* b, const Kept* k, const floating* p, const floating* x, const int* offsets,
    Py_ssize_t B, Py_ssize_t N, floating* out, floating* kept, floating* scratch,
) noexcept nogil:
    cdef Py_ssize_t C = b.C
    cdef Py_ssize_t M = whole_lines(N)
    cdef floating* activated = scratch                                    # (N, F)
    cdef floating* normal = activated + M * max(b.F, C)                   # (N, C)
    cdef floating* attention = normal + M * C                             # attention's scratch
    cdef floating* qkv = kept + k.qkv
    cdef floating* heads = kept + k.heads if b.projection else activated  # (N, C)
    cdef floating* sum1 = kept + k.sum1
    cdef floating* sum2 = out if b.pre_norm else kept + k.sum2
    cdef const floating* inner = x
    if b.pre_norm:
        normalise_rows(x, p + b.norm1, p + b.norm1 + C, b.epsilon1, N, C, normal,
                       kept + k.mean1, kept + k.rstd1)
        inner = normal
    # sum1 = x + attention(inner)
    affine(inner, p + b.qkv_weight, p + b.qkv_bias if b.bias else NULL, N, C, 3 * C, False, False,
           b.bfloat16, qkv)                                               # (N, 3 C)
    attend_all(qkv, offsets, B, C, b.H, 0, b.H, heads, kept + k.lse, attention)   # (N, C)
    memcpy(sum1, x, N * C * sizeof(floating))
    project(b, p, heads, N, sum1)
    # sum2 = h + feed_forward(normal), where h is sum1, or normal if the norms come after
    if b.pre_norm:
        normalise_rows(sum1, p + b.norm2, p + b.norm2 + C, b.epsilon2, N, C, normal,
                       kept + k.mean2, kept + k.rstd2)
        memcpy(sum2, sum1, N * C * sizeof(floating))
    else:
        normalise_rows(sum1, p + b.norm1, p + b.norm1 + C, b.epsilon1, N, C, normal,
                       kept + k.mean1, kept + k.rstd1)
        memcpy(sum2, normal, N * C * sizeof(floating))
    feed_forward(b, p, normal, N, kept + k.hidden, activated, sum2)
    if not b.pre_norm:
        normalise_rows(sum2, p + b.norm2, p + b.norm2 + C, b.epsilon2, N, C, out,
                       kept + k.mean2, kept + k.rstd2)


def block_backward(
    const floating[:, ::1] dout not None,     # IN (N, C)
    const floating[:, ::1] x not None,        # IN (N, C)
    const int[::1] offsets not None,          # IN (B + 1,)
    const floating[::1] parameters not None,  # IN (P,)
    Py_ssize_t n_heads,
    Py_ssize_t hidden_dim,
    bint pre_norm,
    bint gelu,
    bint projection,
    bint bias,
    double epsilon1,
    double epsilon2,
    const floating[::1] kept not None,        # IN: what block_forward kept
    floating[:, ::1] dx not None,             # OUT (N, C): overwritten; may be dout itself
    floating[::1] dparameters not None,       # IN/OUT (P,): added to
    floating[::1] scratch not None,           # block_scratch_size(N, longest text, C, F)
    bint bfloat16=False,                      # IN: whether the linear products round to it
):
    """The gradients of the input and of the parameters, from the gradient of the output."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1]
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, bfloat16)
    cdef Kept k = kept_of(&b, N)
    check_bfloat16(bfloat16, sizeof(floating))
    check_block(b, x.shape, parameters.shape, scratch.shape[0], check_offsets(offsets, N))
    check_matrix("dout", dout.shape, N, C)
    check_vector("kept", kept.shape, k.size)
    check_matrix("dx", dx.shape, N, C)
    check_vector("dparameters", dparameters.shape, b.size)
    if N == 0 or C == 0:
        return
    with nogil:
        backward(&b, &k, &parameters[0], &dparameters[0], &dout[0, 0], &x[0, 0], &offsets[0],
                 offsets.shape[0] - 1, N, &kept[0], &dx[0, 0], &scratch[0])


cdef void backward(
    const Block* b, const Kept* k, const floating* p, floating* dp, const floating* dout,
    const floating* x, const int* offsets, Py_ssize_t B, Py_ssize_t N, const floating* kept,
    floating* dx, floating* scratch,
) noexcept nogil:
    cdef Py_ssize_t C = b.C
    cdef Py_ssize_t M = whole_lines(N)
    cdef floating* dhidden = scratch                         # (N, F)
    cdef floating* activated = dhidden + M * max(b.F, 3 * C)  # (N, F)
    cdef floating* normal = activated + M * max(b.F, C)      # (N, C)
    cdef floating* dnormal = normal + M * C                  # (N, C)
    cdef floating* attention = dnormal + M * C               # attention's scratch
    # What feed_forward's and attention's arrays do not need at the same time, they share.
    cdef floating* dqkv = dhidden                            # (N, 3 C)
    cdef floating* dheads = activated                        # (N, C)
    cdef const floating* sum1 = kept + k.sum1
    cdef const floating* hidden = kept + k.hidden
    cdef const floating* inner                               # what attention saw
    if not b.pre_norm:
        # forward: out = norm2(sum2); from here on the gradient of a residual sum stays in dx
        normalise_rows_backward(dout, kept + k.sum2, p + b.norm2, kept + k.mean2, kept + k.rstd2,
                                <const floating*> NULL, N, C, dx, dp + b.norm2, dp + b.norm2 + C)
        dout = dx
        normalise_again(sum1, p + b.norm1, p + b.norm1 + C, kept + k.mean1, kept + k.rstd1, N, C,
                        normal)
    else:
        normalise_again(sum1, p + b.norm2, p + b.norm2 + C, kept + k.mean2, kept + k.rstd2, N, C,
                        normal)
    # forward: sum2 = h + activated @ weight2 + bias2
    feed_forward_backward(b, p, dp, dout, hidden, normal, N, dhidden, activated,
                          dnormal if b.pre_norm else dx, not b.pre_norm)
    if b.pre_norm:
        # forward: normal = norm2(sum1), and sum1 went into sum2
        normalise_rows_backward(dnormal, sum1, p + b.norm2, kept + k.mean2, kept + k.rstd2,
                                dout, N, C, dx, dp + b.norm2, dp + b.norm2 + C)
        normalise_again(x, p + b.norm1, p + b.norm1 + C, kept + k.mean1, kept + k.rstd1, N, C,
                        normal)
        inner = normal
    else:
        # forward: h = normal = norm1(sum1)
        normalise_rows_backward(dx, sum1, p + b.norm1, kept + k.mean1, kept + k.rstd1,
                                <const floating*> NULL, N, C, dx, dp + b.norm1, dp + b.norm1 + C)
        inner = x
    # forward: sum1 = x + heads @ projection_weight + projection_bias
    if b.projection:
        affine_backward(dx, kept + k.heads, p + b.projection_weight, N, C, C, False, False,
                        b.bfloat16, dheads, dp + b.projection_weight,
                        dp + b.projection_bias if b.bias else NULL)
    else:
        dheads = dx
    # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
    attend_all_backward(dheads, kept + k.qkv, kept + k.lse, offsets, B, C, b.H, 0, b.H, dqkv,
                        attention)
    # forward: qkv = inner @ qkv_weight + qkv_bias
    affine_backward(dqkv, inner, p + b.qkv_weight, N, C, 3 * C, False, not b.pre_norm, b.bfloat16,
                    dnormal if b.pre_norm else dx,
                    dp + b.qkv_weight, dp + b.qkv_bias if b.bias else NULL)
    if b.pre_norm:
        # forward: normal = norm1(x), and x went into sum1
        normalise_rows_backward(dnormal, x, p + b.norm1, kept + k.mean1, kept + k.rstd1,
                                dx, N, C, dx, dp + b.norm1, dp + b.norm1 + C)


cdef void feed_forward_backward(
    const Block* b, const floating* p, floating* dp, const floating* dout,  # IN (n, C)
    const floating* hidden, const floating* x, Py_ssize_t n,                # IN (n, F), (n, C)
    floating* dhidden, floating* activated,                                 # scratch (n, F) each
    floating* dx, bint add,                                                 # OUT, may be dout
) noexcept nogil:
    cdef const floating* seen = hidden  # by weight2
    # forward: out = seen @ weight2 + bias2; first the part for which `seen` is not needed
    affine_backward(dout, NULL, p + b.weight2, n, b.F, b.C, False, False, b.bfloat16, dhidden, NULL,
                    NULL)
    # forward: seen = activation(hidden)
    if b.gelu:
        row_gelu_backward(dhidden, hidden, n * b.F, dhidden, activated)
        seen = activated
    else:
        relu_gradient(dhidden, hidden, n * b.F, dhidden)
    affine_backward(dout, seen, p + b.weight2, n, b.F, b.C, False, False, b.bfloat16, NULL,
                    dp + b.weight2, dp + b.bias2)
    # forward: hidden = x @ weight1 + bias1
    affine_backward(dhidden, x, p + b.weight1, n, b.C, b.F, False, add, b.bfloat16, dx,
                    dp + b.weight1, dp + b.bias1)


def block_decode(
    floating[:, ::1] x not None,              # IN/OUT (n, C): the block's input, then its output
    const floating[::1] parameters not None,  # IN (P,)
    Py_ssize_t n_heads,
    Py_ssize_t hidden_dim,
    bint pre_norm,
    bint gelu,
    bint projection,
    bint bias,
    double epsilon1,
    double epsilon2,
    Py_ssize_t start,                         # IN: how many rows came before
    floating[:, ::1] keys not None,           # IN/OUT (S, C): rows below `start` are in use
    floating[:, ::1] values not None,         # IN/OUT (S, C)
    floating[::1] scratch not None,           # block_scratch_size(n, start + n, C, F)
):
    """`block_forward` for the new rows of one text, whose rows before are in the cache."""
    cdef Py_ssize_t n = x.shape[0], C = x.shape[1], S = keys.shape[0]
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, False)
    if start < 0 or start > S - n:  # start + n could overflow
        raise ValueError(f"start must leave room for {n} rows in a cache of {S}, got {start}")
    check_matrix("keys", keys.shape, S, C)
    check_matrix("values", values.shape, S, C)
    check_block(b, x.shape, parameters.shape, scratch.shape[0], start + n)
    if n == 0 or C == 0:
        return
    with nogil:
        decode(&b, &parameters[0], &x[0, 0], n, start, &keys[0, 0], &values[0, 0], &scratch[0])


cdef void decode(
    const Block* b, const floating* p, floating* x, Py_ssize_t n, Py_ssize_t start,
    floating* keys, floating* values, floating* scratch,
) noexcept nogil:
    cdef Py_ssize_t i, h, C = b.C, D = b.C // b.H, row = C * sizeof(floating)
    cdef floating* qkv = scratch                          # (n, 3 C), then hidden (n, F)
    cdef floating* heads = qkv + n * max(b.F, 3 * C)      # (n, C), then activated (n, F)
    cdef floating* normal = heads + n * max(b.F, C)       # (n, C)
    cdef floating* scores = normal + n * C                # (BLOCK, start + n)
    cdef const floating* inner = x
    if b.pre_norm:
        normalise_rows(x, p + b.norm1, p + b.norm1 + C, b.epsilon1, n, C, normal,
                       <floating*> NULL, <floating*> NULL)
        inner = normal
    # x = x + attention(inner)
    affine(inner, p + b.qkv_weight, p + b.qkv_bias if b.bias else NULL, n, C, 3 * C, False, False,
           b.bfloat16, qkv)                               # (n, 3 C)
    for i in range(n):
        memcpy(keys + (start + i) * C, qkv + i * 3 * C + C, row)
        memcpy(values + (start + i) * C, qkv + i * 3 * C + 2 * C, row)
    for h in range(b.H):
        attend(qkv + h * D, 3 * C, keys + h * D, values + h * D, C, n, start, D,
               heads + h * D, C, <floating*> NULL, 0, scores)
    project(b, p, heads, n, x)
    # x = x + feed_forward(inner)
    if b.pre_norm:
        normalise_rows(x, p + b.norm2, p + b.norm2 + C, b.epsilon2, n, C, normal,
                       <floating*> NULL, <floating*> NULL)
    else:
        normalise_rows(x, p + b.norm1, p + b.norm1 + C, b.epsilon1, n, C, x,
                       <floating*> NULL, <floating*> NULL)
        memcpy(normal, x, n * row)
    feed_forward(b, p, normal, n, qkv, heads, x)
    if not b.pre_norm:
        normalise_rows(x, p + b.norm2, p + b.norm2 + C, b.epsilon2, n, C, x,
                       <floating*> NULL, <floating*> NULL)
