"""Owns where a block's arrays lie: its parameters, what it keeps of its rows, and its scratch."""
from rustgpt._ext.attention cimport BLOCK
from rustgpt._ext.share cimport Share


cdef struct Block:
    Py_ssize_t C, F, H
    bint pre_norm, gelu, projection, bias, bfloat16
    bint overwrite  # the parameters' gradients, instead of adding to them
    double epsilon1, epsilon2
    # Where each parameter begins in the flat array; a norm's bias follows its weight.
    Py_ssize_t qkv_weight, qkv_bias, projection_weight, projection_bias, norm1
    Py_ssize_t weight1, bias1, weight2, bias2, norm2, size


cdef struct Kept:
    # Where each array begins in what is kept of N rows for the backward pass.
    Py_ssize_t qkv, heads, lse, sum1, mean1, rstd1, hidden, sum2, mean2, rstd2, size


cdef inline Block block_of(
    Py_ssize_t C, Py_ssize_t F, Py_ssize_t H, bint pre_norm, bint gelu, bint projection, bint bias,
    double epsilon1, double epsilon2, bint bfloat16,
) noexcept nogil:
    cdef Block b
    b.C, b.F, b.H = C, F, H
    b.pre_norm, b.gelu, b.projection, b.bias = pre_norm, gelu, projection, bias
    b.epsilon1, b.epsilon2, b.bfloat16, b.overwrite = epsilon1, epsilon2, bfloat16, False
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


cdef inline Py_ssize_t whole_lines(Py_ssize_t N) noexcept nogil:
    """N rounded up, so that every array of so many rows begins at the edge of a cache line."""
    return (N + 15) // 16 * 16


cdef inline Kept kept_of(const Block* b, Py_ssize_t N, bint shared) noexcept nogil:
    cdef Kept k
    cdef Py_ssize_t M = whole_lines(N)
    k.qkv = 0                                                     # (N, 3 C)
    k.heads = k.qkv + M * 3 * b.C                                 # (N, C), if it is read again
    k.lse = k.heads + (M * b.C if b.projection or shared else 0)  # (N, H)
    k.sum1 = k.lse + M * b.H                                      # (N, C): x + attention(...)
    k.mean1 = k.sum1 + M * b.C                                    # (N,)
    k.rstd1 = k.mean1 + M                                         # (N,)
    k.hidden = k.rstd1 + M                                        # (N, F): max(., 0) if ReLU
    k.sum2 = k.hidden + M * b.F                                   # (N, C), norms after
    k.mean2 = k.sum2 + (0 if b.pre_norm else M * b.C)             # (N,)
    k.rstd2 = k.mean2 + M                                         # (N,)
    k.size = k.rstd2 + M
    return k


cdef inline Py_ssize_t attention_size(Py_ssize_t longest, Py_ssize_t C) noexcept nogil:
    return whole_lines(2 * BLOCK * (longest + C))


cdef struct Scratch:
    # Where each array begins in the scratch. What need not hold at the same time shares a place;
    # but what the other threads see holds until they have made the gradients of the weights.
    Py_ssize_t dhidden, activated, dqkv, dheads, normal1, normal2, dsum1, dsum2, dnormal
    Py_ssize_t attention, dnorms, size


cdef inline Scratch scratch_of(
    const Block* b, const Share* s, Py_ssize_t N, Py_ssize_t longest
) noexcept nogil:
    cdef Scratch w
    cdef Py_ssize_t M = whole_lines(N), C = b.C, F = b.F
    w.dhidden = 0                                              # (N, F)
    if s.n == 1:
        w.activated = w.dhidden + M * max(F, 3 * C)            # (N, F)
        w.normal1 = w.normal2 = w.activated + M * max(F, C)    # (N, C)
        w.dnormal = w.normal1 + M * C                          # (N, C)
        w.attention = w.dnormal + M * C
        w.dqkv, w.dheads = w.dhidden, w.activated              # (N, 3 C), (N, C)
        w.dsum1 = w.dsum2 = w.dnorms = 0                       # are in dx, and in the gradients
        w.size = w.attention + attention_size(longest, C)
        return w
    w.activated = w.dhidden + M * F                            # (N, F)
    w.dqkv = w.activated + M * F                               # (N, 3 C)
    w.dnormal = w.dqkv + M * 3 * C                             # (N, C)
    w.dheads = w.dnormal                                       # (N, C)
    w.normal1 = w.dnormal + M * C                              # (N, C)
    w.normal2 = w.normal1 + M * C                              # (N, C)
    w.dsum1 = w.normal2 + M * C                                # (N, C)
    w.dsum2 = w.dsum1 + M * C                                  # (N, C)
    w.dnorms = w.dsum2 + M * C                                 # (n, 4 C): each thread's own
    w.attention = w.dnorms + s.n * whole_lines(4 * C) + s.index * attention_size(longest, C)
    w.size = w.dnorms + s.n * (whole_lines(4 * C) + attention_size(longest, C))
    return w
