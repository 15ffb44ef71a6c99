"""Owns the steps of which a block's passes are made, each a thread's shard of it."""
from cython cimport floating
from libc.string cimport memcpy, memset

from rustgpt._ext.activations cimport relu, relu_gradient, swiglu, swiglu_gradient
from rustgpt._ext.attention cimport Part
from rustgpt._ext.dropout cimport drop
from rustgpt._ext.layer_norm cimport (
    normalise_again, normalise_rows, normalise_rows_backward, rms_again, rms_rows,
    rms_rows_backward,
)
from rustgpt._ext.spec cimport GELU, RELU, SWIGLU, Norm, Saved, Scratch, Spec, whole_lines
from rustgpt._ext.linear cimport add_gradients, affine
from rustgpt._ext.rows cimport row_gelu, row_gelu_backward
from rustgpt._ext.shard cimport Shard, edge_of


cdef enum:
    # The sub-layers, each with a mask of its own.
    ATTENTION = 0
    FEED_FORWARD = 1


cdef inline floating* at(const floating* array, Py_ssize_t offset) noexcept nogil:
    """Return where a parameter or its gradient begins; NULL if the block has none."""
    return <floating*> array + offset if offset >= 0 else NULL


cdef inline void feed_forward(
    const Spec* b, const floating* p,
    const floating* x, Py_ssize_t n,        # IN (n, C)
    floating* hidden, floating* activated,  # OUT (n, G); scratch (n, F)
    bint add, floating* out,                # IN/OUT (n, C)
) noexcept nogil:
    """out = (out if add) + activation(x @ weight1 + bias1) @ weight2 + bias2."""
    affine(x, p + b.weight1, at(p, b.bias1), n, b.C, b.G, False, False, b.bfloat16,
           hidden)                                                                    # (n, G)
    if b.activation == GELU:
        row_gelu(hidden, n * b.F, activated)
    elif b.activation == SWIGLU:
        swiglu(hidden, n, b.F, activated)
    else:
        relu(hidden, n * b.F, hidden)
    affine(hidden if b.activation == RELU else activated, p + b.weight2, at(p, b.bias2), n, b.F,
           b.C, False, add, b.bfloat16, out)                                          # (n, C)


cdef inline void project(
    const Spec* b, const floating* p, const floating* heads, Py_ssize_t n,
    bint add, floating* out,
) noexcept nogil:
    """out = (out if add) + heads @ projection_weight + projection_bias, or heads as they are."""
    cdef Py_ssize_t i
    if b.projection_weight >= 0:
        affine(heads, p + b.projection_weight, at(p, b.projection_bias),
               n, b.C, b.C, False, add, b.bfloat16, out)  # (n, C)
    elif not add:
        copy(b, heads, n, out)
    else:
        for i in range(n * b.C):
            out[i] += heads[i]


cdef inline const floating* dropped(
    const Spec* b, Py_ssize_t sub_layer, const floating* dsum, Py_ssize_t first, Py_ssize_t n,
    floating* before,
) noexcept nogil:
    """From sum = x + dropout(f), the gradient of f: in `before`, or without dropout `dsum` itself.
    """
    if b.dropout.rows == NULL:
        return dsum
    drop(&b.dropout, sub_layer, dsum, first, n, b.C, False, before)
    return before


cdef inline void copy(
    const Spec* b, const floating* x, Py_ssize_t n, floating* out
) noexcept nogil:
    """out (n, C) = x."""
    if x != out:
        memcpy(out, x, n * b.C * sizeof(floating))


cdef inline Part part_of(
    const Shard* s, const int* offsets, Py_ssize_t B, Py_ssize_t H, Py_ssize_t K
) noexcept nogil:
    """A thread's heads of all texts; or the texts between its first row and its last.

    Heads that share one of the K heads of keys stay together: they add to the same gradient.
    """
    cdef Part part = [0, B, 0, H]
    if s.heads:
        part.head = edge_of(K, s.index, s.n) * (H // K)
        part.stop_head = edge_of(K, s.index + 1, s.n) * (H // K)
        return part
    while part.text < B and offsets[part.text] < s.first:
        part.text += 1
    part.stop_text = part.text
    while part.stop_text < B and offsets[part.stop_text + 1] <= s.stop:
        part.stop_text += 1
    return part


cdef inline void normalise(
    const Norm* norm, const floating* p, const floating* x, Py_ssize_t n, Py_ssize_t C,
    floating* out, floating* mean, floating* rstd,
) noexcept nogil:
    """out (n, C) = a norm of the block, of some rows x."""
    if norm.rms:
        rms_rows(x, p + norm.weight, norm.epsilon, n, C, out, rstd)
    else:
        normalise_rows(x, p + norm.weight, p + norm.bias, norm.epsilon, n, C, out, mean, rstd)


cdef inline void again(
    const Norm* norm, const floating* p, const floating* x, const floating* mean,
    const floating* rstd, Py_ssize_t n, Py_ssize_t C, floating* out,
) noexcept nogil:
    """The same output from what was kept."""
    if norm.rms:
        rms_again(x, p + norm.weight, rstd, n, C, out)
    else:
        normalise_again(x, p + norm.weight, p + norm.bias, mean, rstd, n, C, out)


cdef inline void norm_back(
    const Norm* norm, const floating* p, const floating* dout, const floating* x,
    const floating* mean, const floating* rstd, const floating* residual, Py_ssize_t n,
    Py_ssize_t C, floating* dx, floating* dweight, floating* dbias,
) noexcept nogil:
    """dx = (residual, unless NULL) + the gradient of x, from out = norm(x)."""
    if norm.rms:
        rms_rows_backward(dout, x, p + norm.weight, rstd, residual, n, C, dx, dweight)
    else:
        normalise_rows_backward(dout, x, p + norm.weight, mean, rstd, residual, n, C, dx, dweight,
                                dbias)


cdef inline void back(
    const Spec* b, const floating* weight, const floating* dout, Py_ssize_t n,
    Py_ssize_t c_in, Py_ssize_t c_out, bint add, floating* dx,
) noexcept nogil:
    """dx = (dx if add) + dout @ weight.T, from out = x @ weight."""
    affine(dout, weight, <const floating*> NULL, n, c_out, c_in, True, add, b.bfloat16, dx)


cdef inline void through_activation(
    const Spec* b, const floating* p,
    const floating* dout,                      # IN (n, C)
    const floating* hidden, Py_ssize_t n,      # IN (n, G)
    floating* dhidden, floating* activated,    # OUT (n, G), (n, F); the second unless ReLU
) noexcept nogil:
    """From out = activation(hidden) @ weight2 + bias2, the gradient of hidden."""
    if b.activation == SWIGLU:
        back(b, p + b.weight2, dout, n, b.F, b.C, False, activated)
        swiglu_gradient(activated, hidden, n, b.F, dhidden, activated)
        return
    back(b, p + b.weight2, dout, n, b.F, b.C, False, dhidden)
    if b.activation == GELU:
        row_gelu_backward(dhidden, hidden, n * b.F, dhidden, activated)
    else:
        relu_gradient(dhidden, hidden, n * b.F, dhidden)


# The gradients of the weights, a thread's part of them, over N rows.


cdef inline void gradients_of(
    const Spec* b, const Shard* s, const floating* dout, const floating* x, Py_ssize_t N,
    Py_ssize_t c_in, Py_ssize_t c_out, floating* dp, Py_ssize_t weight, Py_ssize_t bias,
) noexcept nogil:
    """From out = x @ weight + bias, if the block has that weight."""
    if weight >= 0:
        add_gradients(s, dout, x, N, c_in, c_out, False, b.accumulate, b.bfloat16, dp + weight,
                      at(dp, bias))


cdef inline void feed_forward_gradients(
    const Spec* b, const Saved* k, const Scratch* w, const Shard* s, floating* dp,
    const floating* dout, const floating* saved, const floating* scratch, Py_ssize_t N,
) noexcept nogil:
    cdef const floating* seen = saved + k.hidden if b.activation == RELU else scratch + w.activated
    # forward: out = seen @ weight2 + bias2; hidden = normal2 @ weight1 + bias1
    gradients_of(b, s, dout, seen, N, b.F, b.C, dp, b.weight2, b.bias2)
    gradients_of(b, s, scratch + w.dhidden, scratch + w.normal2, N, b.C, b.G, dp, b.weight1,
                 b.bias1)


cdef inline void clear_norms(
    const Spec* b, const Shard* s, floating* dp, floating* dnorms
) noexcept nogil:
    """Zero what the passes back add to, unless it shall be added to."""
    cdef Py_ssize_t row = b.C * sizeof(floating)
    if not b.accumulate and s.index == 0:
        memset(dp + b.norm1.weight, 0, row)
        memset(dp + b.norm2.weight, 0, row)
        if not b.norm1.rms:
            memset(dp + b.norm1.bias, 0, row)
            memset(dp + b.norm2.bias, 0, row)
    if s.n > 1:
        memset(dnorms, 0, 4 * row)


cdef inline void norm_gradients(
    const Spec* b, const Shard* s, floating* dp, const floating* dnorms
) noexcept nogil:
    """Add up what each thread has of the norms' gradients, in their order."""
    cdef Py_ssize_t i, c, C = b.C
    cdef const floating* d
    for i in range(s.n):
        d = dnorms + i * whole_lines(4 * C)
        for c in range(C):
            dp[b.norm1.weight + c] += d[c]
            dp[b.norm2.weight + c] += d[2 * C + c]
        for c in range(0 if b.norm1.rms else C):
            dp[b.norm1.bias + c] += d[C + c]
            dp[b.norm2.bias + c] += d[3 * C + c]
