"""Owns a whole transformer block: forward, backward, and decoding, each in one call.

A call from Python costs microseconds and a hand-over between threads, which for small models is
as much as the arithmetic. So here the steps that `rustgpt/layers/transformer.py` spells out run
one after another without returning to Python. The block's parameters lie one after another in one
flat array, in the order of `TransformerBlock.parameters()`.

With P parameters, T tokens a text: 2 P + 4 T C operations a row forward, twice that backward. Kept
for the backward pass: (5 C + F) numbers a row with the norms before, (6 C + F) with the norms
after, and a few per head; what is cheap is computed again.

Several threads may call for one batch, each with its share: all arrays then have the rows of all
threads, and each thread goes through its own, but makes its part of the weights' gradients over
all rows. They meet once a pass back, and around attention where its heads are divided.
"""
from cython cimport floating
from libc.string cimport memcpy, memset

from rustgpt._ext.attention cimport BLOCK, attend
from rustgpt._ext.checks cimport (
    check_aligned, check_blas, check_matrix, check_offsets, check_size, check_total, check_vector,
    index_address, matrix_address, vector_address,
)
from rustgpt._ext.layer_norm cimport normalise_again, normalise_rows, normalise_rows_backward
from rustgpt._ext.layout cimport (
    Block, Kept, Scratch, block_of, kept_of, scratch_of, whole_lines,
)
from rustgpt._ext.linear cimport affine, check_bfloat16
from rustgpt._ext.share cimport (
    Share, alone, barrier_of, edges_of, meet, share_of,
)
from rustgpt._ext.steps cimport (
    attend_share, attend_share_backward, back, copy, feed_forward, feed_forward_gradients,
    norm_gradients, normalise, project, projection_gradients, qkv_gradients, through_activation,
)


def block_kept_size(
    Py_ssize_t N, Py_ssize_t C, Py_ssize_t F, Py_ssize_t n_heads, bint pre_norm, bint projection,
    bint shared=False,
):
    """Numbers that `block_forward` keeps of N rows for `block_backward`."""
    check_size("N", N)
    check_size("C", C)
    check_size("F", F)
    check_size("n_heads", n_heads)
    check_total(N, 8.0 * C + F + n_heads)
    cdef Block b = block_of(C, F, n_heads, pre_norm, False, projection, False, 0.0, 0.0, False)
    return kept_of(&b, N, shared).size


def block_scratch_size(
    Py_ssize_t N, Py_ssize_t longest, Py_ssize_t C, Py_ssize_t F, Py_ssize_t threads=1
):
    """Numbers of scratch for N rows, in texts of at most `longest` rows with those before."""
    check_size("N", N)
    check_size("longest", longest)
    check_size("C", C)
    check_size("F", F)
    check_size("threads", threads, 1)
    check_total(N, 8.0 * C + 2.0 * F)
    check_total(threads, 4.0 * BLOCK * (<double> longest + C))
    return scratch_size(N, longest, C, F, threads)


cdef Py_ssize_t scratch_size(
    Py_ssize_t N, Py_ssize_t longest, Py_ssize_t C, Py_ssize_t F, Py_ssize_t threads
) noexcept:
    cdef Share s = alone(N)
    cdef Block b = block_of(C, F, 1, False, False, False, False, 0.0, 0.0, False)
    s.n = threads
    return scratch_of(&b, &s, N, longest).size


cdef int check_block(
    Block b, const Py_ssize_t* x, const Py_ssize_t* parameters, Py_ssize_t scratch,
    Py_ssize_t longest, const Share* s,
) except -1:
    cdef Py_ssize_t needed
    if b.H < 1 or b.C % b.H != 0:
        raise ValueError(f"n_heads must divide the {b.C} columns, got {b.H}")
    if b.F < 0:
        raise ValueError(f"hidden_dim must not be negative, got {b.F}")
    check_blas("x", x)
    if 3 * b.C >= 2**31 or b.F >= 2**31:
        raise ValueError(f"{b.C} columns or hidden_dim {b.F} are too many")
    check_vector("parameters", parameters, b.size)
    needed = scratch_size(x[0], longest, b.C, b.F, s.n)
    if scratch < needed:
        raise ValueError(
            f"scratch must hold block_scratch_size({x[0]}, {longest}, {b.C}, {b.F}, {s.n}) = "
            f"{needed} numbers, got {scratch}"
        )
    return 0


cdef int check_texts(const Share* s, const int[::1] offsets) except -1:
    """Raise ValueError unless the thread's rows are whole texts, or attention divides its heads."""
    cdef Py_ssize_t b, found = s.heads
    for b in range(offsets.shape[0]):
        found |= (1 if offsets[b] == s.first else 0) | (2 if offsets[b] == s.stop else 0)
    if s.n > 1 and not s.heads and found != 3:
        raise ValueError("share must have edges between texts, unless it divides the heads")
    return 0


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
    floating[::1] scratch not None,           # block_scratch_size(N, longest text, C, F, ...)
    bint bfloat16=False,                      # IN: whether the linear products round to it
    object share=None,                        # IN: this thread's, of several
):
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before."""
    check_aligned(
        matrix_address(x) | vector_address(parameters) | matrix_address[floating](out) |
        vector_address[floating](kept) | vector_address[floating](scratch), sizeof(floating),
        index_address(offsets),
    )
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], longest = check_offsets(offsets, N)
    cdef const int[::1] edges = edges_of(share)
    cdef object barrier = barrier_of(share)
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, bfloat16)
    cdef Share s = share_of(share, edges, barrier, N)
    cdef Kept k = kept_of(&b, N, s.n > 1)
    check_bfloat16(bfloat16, sizeof(floating))
    check_texts(&s, offsets)
    check_block(b, x.shape, parameters.shape, scratch.shape[0], longest, &s)
    check_matrix("out", out.shape, N, C)
    check_vector("kept", kept.shape, k.size)
    if N == 0 or C == 0:
        return
    cdef Scratch w = scratch_of(&b, &s, N, longest)
    with nogil:
        forward(&b, &k, &w, &s, &parameters[0], &x[0, 0], &offsets[0], offsets.shape[0] - 1,
                &out[0, 0], &kept[0], &scratch[0])


cdef int forward(
    const Block* b, const Kept* k, const Scratch* w, const Share* s,
    const floating* p, const floating* x, const int* offsets, Py_ssize_t B, floating* out,
    floating* kept, floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t C = b.C, r = s.first, n = s.stop - s.first  # this thread's rows
    cdef floating* activated = scratch + w.activated + r * b.F            # (n, F)
    cdef floating* normal = scratch + w.normal1 + r * C                   # (n, C)
    cdef floating* all_heads = (
        kept + k.heads if b.projection or s.n > 1 else scratch + w.dheads
    )                                                                     # (N, C)
    cdef floating* sum1 = kept + k.sum1 + r * C
    cdef floating* sum2 = out + r * C if b.pre_norm else kept + k.sum2 + r * C
    cdef const floating* inner = x + r * C
    if b.pre_norm:
        normalise(b, k, s, 1, p, x + r * C, n, normal, kept)
        inner = normal
    # sum1 = x + attention(inner)
    affine(inner, p + b.qkv_weight, p + b.qkv_bias if b.bias else NULL, n, C, 3 * C, False,
           False, b.bfloat16, kept + k.qkv + r * 3 * C)                   # (n, 3 C)
    attend_share(s, kept + k.qkv, offsets, B, C, b.H, all_heads, kept + k.lse,
                 scratch + w.attention)                                   # (n, C)
    copy(b, x + r * C, n, sum1)
    project(b, p, all_heads + r * C, n, sum1)
    # sum2 = h + feed_forward(normal), where h is sum1, or normal if the norms come after
    normalise(b, k, s, 2 if b.pre_norm else 1, p, sum1, n, normal, kept)
    copy(b, <const floating*> (sum1 if b.pre_norm else normal), n, sum2)
    feed_forward(b, p, normal, n, kept + k.hidden + r * b.F, activated, sum2)
    if not b.pre_norm:
        normalise_rows(kept + k.sum2 + r * C, p + b.norm2, p + b.norm2 + C, b.epsilon2, n, C,
                       out + r * C, kept + k.mean2 + r, kept + k.rstd2 + r)
    return 0


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
    floating[::1] scratch not None,           # block_scratch_size(N, longest text, C, F, ...)
    bint bfloat16=False,                      # IN: whether the linear products round to it
    object share=None,                        # IN: this thread's, of several
    bint overwrite=False,                     # IN: whether to write over dparameters instead
):
    """The gradients of the input and of the parameters, from the gradient of the output."""
    check_aligned(
        matrix_address(dout) | matrix_address(x) | vector_address(parameters) |
        vector_address(kept) | matrix_address[floating](dx) |
        vector_address[floating](dparameters) | vector_address[floating](scratch),
        sizeof(floating), index_address(offsets),
    )
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], longest = check_offsets(offsets, N)
    cdef const int[::1] edges = edges_of(share)
    cdef object barrier = barrier_of(share)
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, bfloat16)
    cdef Share s = share_of(share, edges, barrier, N)
    b.overwrite = overwrite
    cdef Kept k = kept_of(&b, N, s.n > 1)
    check_bfloat16(bfloat16, sizeof(floating))
    check_texts(&s, offsets)
    check_block(b, x.shape, parameters.shape, scratch.shape[0], longest, &s)
    check_matrix("dout", dout.shape, N, C)
    check_vector("kept", kept.shape, k.size)
    check_matrix("dx", dx.shape, N, C)
    check_vector("dparameters", dparameters.shape, b.size)
    if N == 0 or C == 0:
        if overwrite:
            dparameters[:] = 0
        return
    cdef Scratch w = scratch_of(&b, &s, N, longest)
    with nogil:
        backward(&b, &k, &w, &s, &parameters[0], &dparameters[0], &dout[0, 0], &x[0, 0],
                 &offsets[0], offsets.shape[0] - 1, N, &kept[0], &dx[0, 0], &scratch[0])


cdef int backward(
    const Block* b, const Kept* k, const Scratch* w, const Share* s,
    const floating* p, floating* dp, const floating* dout, const floating* x, const int* offsets,
    Py_ssize_t B, Py_ssize_t N, const floating* kept, floating* dx, floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t C = b.C, r = s.first, n = s.stop - s.first  # this thread's rows
    cdef bint one = s.n == 1  # otherwise the gradients of the weights are made at the end
    cdef floating* mine = dx + r * C
    # The gradients of both residual sums: alone, they take turns in dx.
    cdef floating* dsum1 = mine if one else scratch + w.dsum1 + r * C
    cdef floating* dsum2 = mine if one else scratch + w.dsum2 + r * C
    cdef floating* dnormal = scratch + w.dnormal + r * C
    cdef floating* dheads = scratch + w.dheads               # (N, C)
    cdef floating* dnorm1 = dp + b.norm1                     # (2 C,), and that of norm2
    cdef floating* dnorm2 = dp + b.norm2
    cdef const floating* sum1 = kept + k.sum1 + r * C
    if b.overwrite and s.index == 0:
        memset(dnorm1, 0, 2 * C * sizeof(floating))
        memset(dnorm2, 0, 2 * C * sizeof(floating))
    if not one:
        dnorm1 = scratch + w.dnorms + s.index * whole_lines(4 * C)
        dnorm2 = dnorm1 + 2 * C
        memset(dnorm1, 0, 4 * C * sizeof(floating))
    if b.pre_norm:
        if not one:
            memcpy(dsum2, dout + r * C, n * C * sizeof(floating))
        elif dout != dx:
            dsum2 = <floating*> dout  # is read only
        normalise_again(sum1, p + b.norm2, p + b.norm2 + C, kept + k.mean2 + r, kept + k.rstd2 + r,
                        n, C, scratch + w.normal2 + r * C)
    else:
        # forward: out = norm2(sum2)
        normalise_rows_backward(dout + r * C, kept + k.sum2 + r * C, p + b.norm2,
                                kept + k.mean2 + r, kept + k.rstd2 + r, <const floating*> NULL, n,
                                C, dsum2, dnorm2, dnorm2 + C)
        normalise_again(sum1, p + b.norm1, p + b.norm1 + C, kept + k.mean1 + r, kept + k.rstd1 + r,
                        n, C, scratch + w.normal2 + r * C)
        dnormal = mine
    # forward: sum2 = h + activation(normal2 @ weight1 + bias1) @ weight2 + bias2
    through_activation(b, p, dsum2, kept + k.hidden + r * b.F, n, scratch + w.dhidden + r * b.F,
                       scratch + w.activated + r * b.F)      # (n, F)
    if one:
        feed_forward_gradients(b, k, w, s, dp, dsum2, kept, scratch, n)
    if b.pre_norm:
        # forward: normal2 = norm2(sum1), and sum1 went into sum2
        back(b, p + b.weight1, scratch + w.dhidden + r * b.F, n, C, b.F, False, dnormal)
        normalise_rows_backward(dnormal, sum1, p + b.norm2, kept + k.mean2 + r, kept + k.rstd2 + r,
                                dsum2, n, C, dsum1, dnorm2, dnorm2 + C)
        normalise_again(x + r * C, p + b.norm1, p + b.norm1 + C, kept + k.mean1 + r,
                        kept + k.rstd1 + r, n, C, scratch + w.normal1 + r * C)
    else:
        # forward: h = normal2 = norm1(sum1)
        copy(b, dsum2, n, dnormal)
        back(b, p + b.weight1, scratch + w.dhidden + r * b.F, n, C, b.F, True, dnormal)
        normalise_rows_backward(dnormal, sum1, p + b.norm1, kept + k.mean1 + r, kept + k.rstd1 + r,
                                <const floating*> NULL, n, C, dsum1, dnorm1, dnorm1 + C)
    # forward: sum1 = x + heads @ projection_weight + projection_bias
    if b.projection:
        back(b, p + b.projection_weight, dsum1, n, C, C, False, dheads + r * C)
        if one:
            projection_gradients(b, k, s, dp, dsum1, kept, n)
    else:
        dheads = dx if one else scratch + w.dsum1
    # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
    attend_share_backward(s, dheads, kept + k.qkv, kept + k.lse, offsets, B, C, b.H,
                          scratch + w.dqkv, scratch + w.attention)
    # forward: qkv = inner @ qkv_weight + qkv_bias
    if b.pre_norm:
        # inner = norm1(x), and x went into sum1
        back(b, p + b.qkv_weight, scratch + w.dqkv + r * 3 * C, n, C, 3 * C, False, dnormal)
        normalise_rows_backward(dnormal, x + r * C, p + b.norm1, kept + k.mean1 + r,
                                kept + k.rstd1 + r, dsum1, n, C, mine, dnorm1, dnorm1 + C)
    else:
        copy(b, dsum1, n, mine)
        back(b, p + b.qkv_weight, scratch + w.dqkv + r * 3 * C, n, C, 3 * C, True, mine)
    if one:
        qkv_gradients(b, w, s, dp, x, scratch, n)
        return 0
    meet(s)
    # What was made last comes first: it is still in the cache.
    qkv_gradients(b, w, s, dp, x, scratch, N)
    projection_gradients(b, k, s, dp, scratch + w.dsum1, kept, N)
    feed_forward_gradients(b, k, w, s, dp, scratch + w.dsum2, kept, scratch, N)
    if s.index == 0:
        norm_gradients(b, s, dp, scratch + w.dnorms)
    return 0


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
    check_aligned(
        matrix_address[floating](x) | vector_address(parameters) | matrix_address[floating](keys)
        | matrix_address[floating](values) | vector_address[floating](scratch), sizeof(floating),
    )
    cdef Py_ssize_t n = x.shape[0], C = x.shape[1], S = keys.shape[0]
    cdef Block b = block_of(C, hidden_dim, n_heads, pre_norm, gelu, projection, bias,
                            epsilon1, epsilon2, False)
    if start < 0 or start > S - n:  # start + n could overflow
        raise ValueError(f"start must leave room for {n} rows in a cache of {S}, got {start}")
    check_matrix("keys", keys.shape, S, C)
    check_matrix("values", values.shape, S, C)
    cdef Share s = alone(n)
    check_block(b, x.shape, parameters.shape, scratch.shape[0], start + n, &s)
    if n == 0 or C == 0:
        return
    with nogil:
        decode(&b, &s, &parameters[0], &x[0, 0], n, start, &keys[0, 0], &values[0, 0], &scratch[0])


cdef int decode(
    const Block* b, const Share* s, const floating* p, floating* x, Py_ssize_t n, Py_ssize_t start,
    floating* keys, floating* values, floating* scratch,
) except -1 nogil:
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
    affine(inner, p + b.qkv_weight, p + b.qkv_bias if b.bias else NULL, n, C, 3 * C, False,
           False, b.bfloat16, qkv)                        # (n, 3 C)
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
    return 0
