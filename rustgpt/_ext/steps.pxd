"""Owns the steps of which a block's passes are made, each a thread's share of it."""
from cython cimport floating
from libc.string cimport memcpy

from rustgpt._ext.activations cimport relu, relu_gradient
from rustgpt._ext.attention cimport attend_all, attend_all_backward
from rustgpt._ext.layer_norm cimport normalise_rows
from rustgpt._ext.layout cimport Block, Kept, Scratch, whole_lines
from rustgpt._ext.linear cimport add_gradients, affine
from rustgpt._ext.rows cimport row_gelu, row_gelu_backward
from rustgpt._ext.share cimport Share, edge_of, meet


cdef inline void feed_forward(
    const Block* b, const floating* p,
    const floating* x, Py_ssize_t n,        # IN (n, C)
    floating* hidden, floating* activated,  # OUT (n, F); scratch
    floating* out,                          # IN/OUT (n, C): added to
) noexcept nogil:
    """out += activation(x @ weight1 + bias1) @ weight2 + bias2."""
    affine(x, p + b.weight1, p + b.bias1, n, b.C, b.F, False, False, b.bfloat16,
           hidden)                                                                    # (n, F)
    if b.gelu:
        row_gelu(hidden, n * b.F, activated)
    else:
        relu(hidden, n * b.F, hidden)
    affine(activated if b.gelu else hidden, p + b.weight2, p + b.bias2, n, b.F, b.C, False, True,
           b.bfloat16, out)                                                           # (n, C)


cdef inline void project(
    const Block* b, const floating* p, const floating* heads, Py_ssize_t n,
    floating* out,
) noexcept nogil:
    """out += heads @ projection_weight + projection_bias, or heads as they are."""
    cdef Py_ssize_t i
    if b.projection:
        affine(heads, p + b.projection_weight, p + b.projection_bias if b.bias else NULL,
               n, b.C, b.C, False, True, b.bfloat16, out)  # (n, C)
        return
    for i in range(n * b.C):
        out[i] += heads[i]


cdef inline void copy(
    const Block* b, const floating* x, Py_ssize_t n, floating* out
) noexcept nogil:
    """out (n, C) = x."""
    if x != out:
        memcpy(out, x, n * b.C * sizeof(floating))


cdef inline int attend_share(
    const Share* s, const floating* qkv, const int* offsets, Py_ssize_t B,
    Py_ssize_t C, Py_ssize_t H, floating* heads, floating* lse, floating* scratch,
) except -1 nogil:
    """Attention of this thread's texts; or of its heads of all texts, between two meetings."""
    cdef Py_ssize_t first, stop
    if s.heads:  # of all rows, whose other columns others have made
        meet(s)
        attend_all(qkv, offsets, B, C, H, edge_of(H, s.index, s.n), edge_of(H, s.index + 1, s.n),
                   heads, lse, scratch)
        meet(s)
    else:
        texts_of(s, offsets, B, &first, &stop)
        attend_all(qkv, offsets + first, stop - first, C, H, 0, H, heads, lse, scratch)
    return 0


cdef inline int attend_share_backward(
    const Share* s, const floating* dheads, const floating* qkv,
    const floating* lse, const int* offsets, Py_ssize_t B, Py_ssize_t C, Py_ssize_t H,
    floating* dqkv, floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t first, stop
    if s.heads:
        meet(s)
        attend_all_backward(dheads, qkv, lse, offsets, B, C, H, edge_of(H, s.index, s.n),
                            edge_of(H, s.index + 1, s.n), dqkv, scratch)
        meet(s)
    else:
        texts_of(s, offsets, B, &first, &stop)
        attend_all_backward(dheads, qkv, lse, offsets + first, stop - first, C, H, 0, H, dqkv,
                            scratch)
    return 0


cdef inline void texts_of(
    const Share* s, const int* offsets, Py_ssize_t B, Py_ssize_t* first, Py_ssize_t* stop
) noexcept nogil:
    """The texts of a thread: those from its first row to its last."""
    first[0] = 0
    while first[0] < B and offsets[first[0]] < s.first:
        first[0] += 1
    stop[0] = first[0]
    while stop[0] < B and offsets[stop[0] + 1] <= s.stop:
        stop[0] += 1


cdef inline void normalise(
    const Block* b, const Kept* k, const Share* s, int which, const floating* p,
    const floating* x, Py_ssize_t n, floating* out, floating* kept,
) noexcept nogil:
    """out (n, C) = norm1 or norm2 of x, this thread's rows."""
    cdef floating* mean = kept + (k.mean1 if which == 1 else k.mean2) + s.first
    cdef floating* rstd = kept + (k.rstd1 if which == 1 else k.rstd2) + s.first
    cdef const floating* weight = p + (b.norm1 if which == 1 else b.norm2)
    normalise_rows(x, weight, weight + b.C, b.epsilon1 if which == 1 else b.epsilon2, n, b.C, out,
                   mean, rstd)


cdef inline void back(
    const Block* b, const floating* weight, const floating* dout, Py_ssize_t n,
    Py_ssize_t c_in, Py_ssize_t c_out, bint add, floating* dx,
) noexcept nogil:
    """dx = (dx if add) + dout @ weight.T, from out = x @ weight."""
    affine(dout, weight, <const floating*> NULL, n, c_out, c_in, True, add, b.bfloat16, dx)


cdef inline void through_activation(
    const Block* b, const floating* p,
    const floating* dout,                      # IN (n, C)
    const floating* hidden, Py_ssize_t n,      # IN (n, F)
    floating* dhidden, floating* activated,    # OUT (n, F); the second if GELU
) noexcept nogil:
    """From out = activation(hidden) @ weight2 + bias2, the gradient of hidden."""
    back(b, p + b.weight2, dout, n, b.F, b.C, False, dhidden)
    if b.gelu:
        row_gelu_backward(dhidden, hidden, n * b.F, dhidden, activated)
    else:
        relu_gradient(dhidden, hidden, n * b.F, dhidden)


# The gradients of the weights, a thread's part of them, over N rows.


cdef inline void feed_forward_gradients(
    const Block* b, const Kept* k, const Scratch* w, const Share* s, floating* dp,
    const floating* dout, const floating* kept, const floating* scratch, Py_ssize_t N,
) noexcept nogil:
    cdef const floating* seen = scratch + w.activated if b.gelu else kept + k.hidden
    # forward: out = seen @ weight2 + bias2; hidden = normal2 @ weight1 + bias1
    gradients_of(b, s, dout, seen, N, b.F, b.C, dp + b.weight2, dp + b.bias2)
    gradients_of(b, s, scratch + w.dhidden, scratch + w.normal2, N, b.C, b.F, dp + b.weight1,
                 dp + b.bias1)


cdef inline void projection_gradients(
    const Block* b, const Kept* k, const Share* s, floating* dp, const floating* dout,
    const floating* kept, Py_ssize_t N,
) noexcept nogil:
    # forward: out = heads @ projection_weight + projection_bias
    if b.projection:
        gradients_of(b, s, dout, kept + k.heads, N, b.C, b.C, dp + b.projection_weight,
                     dp + b.projection_bias if b.bias else NULL)


cdef inline void qkv_gradients(
    const Block* b, const Scratch* w, const Share* s, floating* dp, const floating* x,
    const floating* scratch, Py_ssize_t N,
) noexcept nogil:
    # forward: qkv = inner @ qkv_weight + qkv_bias, inner = norm1(x) or x
    gradients_of(b, s, scratch + w.dqkv, scratch + w.normal1 if b.pre_norm else x, N, b.C, 3 * b.C,
                 dp + b.qkv_weight, dp + b.qkv_bias if b.bias else NULL)


cdef inline void gradients_of(
    const Block* b, const Share* s, const floating* dout, const floating* x, Py_ssize_t N,
    Py_ssize_t c_in, Py_ssize_t c_out, floating* dweight, floating* dbias,
) noexcept nogil:
    add_gradients(s, dout, x, N, c_in, c_out, False, not b.overwrite, b.bfloat16, dweight, dbias)


cdef inline void norm_gradients(
    const Block* b, const Share* s, floating* dp, const floating* dnorms
) noexcept nogil:
    """Add up what each thread has of the norms' gradients, in their order."""
    cdef Py_ssize_t i, c
    for i in range(s.n):
        for c in range(2 * b.C):
            dp[b.norm1 + c] += dnorms[i * whole_lines(4 * b.C) + c]
            dp[b.norm2 + c] += dnorms[i * whole_lines(4 * b.C) + 2 * b.C + c]
