"""Owns where a block's arrays lie: its parameters, what it saves of its rows, and its scratch."""
from rustgpt._ext.attention cimport BLOCK
from rustgpt._ext.dropout cimport Dropout
from rustgpt._ext.shard cimport Shard

cdef enum:
    # Numbers of a `BlockSpec`: its kinds and sizes, and where each parameter begins.
    SIZES = 11
    PARAMETERS = 12
    # The kinds of feed-forward layers, by their activation.
    RELU = 0
    GELU = 1
    SWIGLU = 2


cdef struct Norm:
    Py_ssize_t weight, bias  # where they begin; the bias is -1 if there is none
    double epsilon
    bint rms                 # whether it is an RMS norm


cdef struct Spec:
    Py_ssize_t C, H, K, F
    Py_ssize_t W  # columns of queries, keys and values: (H + 2 K) D
    Py_ssize_t G  # columns of the hidden layer before the activation: F, or 2 F for SwiGLU
    int activation
    bint rotary   # whether positions are
    bint pre_norm, bfloat16
    bint accumulate  # the parameters' gradients: add to what is there, or write over it
    Py_ssize_t size  # P
    # Where each parameter begins in the flat array; -1 if the block has none.
    Py_ssize_t qkv_weight, qkv_bias, projection_weight, projection_bias
    Py_ssize_t weight1, bias1, weight2, bias2
    Norm norm1, norm2
    Dropout dropout  # of this call: of attention's output and, one place on, of feed-forward's


cdef inline Py_ssize_t whole(double number) except -2:
    """Return a size as a whole number; raise ValueError unless it is one from -1 to 2^60."""
    if not -1 <= number <= 2.0**60 or <Py_ssize_t> number != number:
        raise ValueError(
            f"spec must have whole numbers from -1 to 2**60 as sizes and offsets, got {number}"
        )
    return <Py_ssize_t> number


cdef inline Py_ssize_t parameter(
    str name, double first, double rows, double columns, Py_ssize_t P, bint needed=True
) except -2:
    """Return where a parameter begins; -1 if the block has none, unless it is needed.

    Raises ValueError unless it lies in the flat array.
    """
    cdef Py_ssize_t start = whole(first)
    if start < 0 and not needed:
        return start
    if start < 0 or start + rows * columns > P:
        raise ValueError(
            f"spec must place {name} of {rows:.0f} x {columns:.0f} numbers within the {P} "
            f"parameters, got {start}"
        )
    return start


cdef inline Spec read_spec(object spec) except *:
    """Return what a `BlockSpec` says, after a check: where it is wrong, kernels would crash."""
    cdef const double[::1] n
    cdef Spec b
    cdef Py_ssize_t C, F, G, P, W
    cdef bint rms
    try:
        n = spec.numbers
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"spec must be a rustgpt.reference.spec.BlockSpec: {error}") from None
    if n.shape[0] != SIZES + PARAMETERS:
        raise ValueError(f"spec must have {SIZES + PARAMETERS} numbers, got {n.shape[0]}")
    b.C, b.H, b.K, b.F, b.size = whole(n[0]), whole(n[1]), whole(n[2]), whole(n[3]), whole(n[10])
    C, F, P = b.C, b.F, b.size
    G = 2 * F if n[6] == SWIGLU else F
    if C < 0 or F < 0 or P < 0 or 3 * C >= 2**31 or G >= 2**31:
        raise ValueError(f"spec must have sizes from 0 to 2**31, got dim {C}, hidden_dim {F}")
    if b.H < 1 or C % b.H != 0:
        raise ValueError(f"spec must have n_heads that divide the {C} columns, got {b.H}")
    if b.K < 1 or b.H % b.K != 0:
        raise ValueError(f"spec must have n_kv_heads that divide the {b.H} heads, got {b.K}")
    if n[4] not in (0, 1) or n[5] not in (0, 1) or n[6] not in (RELU, GELU, SWIGLU):
        raise ValueError("spec must name kinds of norm, positions and feed-forward that there are")
    if n[5] == 1 and C // b.H % 2:
        raise ValueError(f"spec must have an even head dimension to be turned, got {C // b.H}")
    if not (n[7] == 0 or n[7] == 1) or not n[8] >= 0 or not n[9] >= 0:
        raise ValueError("spec must say whether the norms come first, and epsilons from 0 on")
    b.activation, b.rotary, b.pre_norm = <int> n[6], n[5] == 1, n[7] != 0
    b.W, b.G = C + C // b.H * b.K * 2, G
    W, rms = b.W, n[4] == 1
    b.norm1.epsilon, b.norm2.epsilon = n[8], n[9]
    b.norm1.rms = b.norm2.rms = rms
    b.bfloat16, b.accumulate, b.dropout.rows = False, True, NULL
    b.qkv_weight = parameter("qkv_weight", n[11], C, W, P)
    b.qkv_bias = parameter("qkv_bias", n[12], 1, W, P, False)
    b.projection_weight = parameter("projection_weight", n[13], C, C, P, False)
    b.projection_bias = parameter("projection_bias", n[14], 1, C, P, False)
    b.norm1.weight = parameter("norm1.weight", n[15], 1, C, P)
    b.norm1.bias = parameter("norm1.bias", n[16], 1, C, P, not rms)
    b.weight1 = parameter("weight1", n[17], C, G, P)
    b.bias1 = parameter("bias1", n[18], 1, G, P, False)
    b.weight2 = parameter("weight2", n[19], F, C, P)
    b.bias2 = parameter("bias2", n[20], 1, C, P, False)
    b.norm2.weight = parameter("norm2.weight", n[21], 1, C, P)
    b.norm2.bias = parameter("norm2.bias", n[22], 1, C, P, not rms)
    return b


cdef struct Saved:
    # Where each array begins in what is saved of N rows for the backward pass.
    Py_ssize_t qkv, heads, lse, sum1, mean1, rstd1, hidden, sum2, mean2, rstd2, size


cdef inline Py_ssize_t whole_lines(Py_ssize_t size) noexcept nogil:
    """`size` numbers rounded up, so that every array begins at the edge of a cache line."""
    return (size + 15) // 16 * 16


cdef inline Saved saved_of(const Spec* b, Py_ssize_t N, bint sharded) noexcept nogil:
    cdef Saved k
    cdef bint heads = b.projection_weight >= 0 or sharded          # whether they are read again
    k.qkv = 0                                                      # (N, W)
    k.heads = k.qkv + whole_lines(N * b.W)                         # (N, C)
    k.lse = k.heads + (whole_lines(N * b.C) if heads else 0)       # (N, H)
    k.sum1 = k.lse + whole_lines(N * b.H)                          # (N, C): x + attention(...)
    k.mean1 = k.sum1 + whole_lines(N * b.C)                        # (N,)
    k.rstd1 = k.mean1 + whole_lines(N)                             # (N,)
    k.hidden = k.rstd1 + whole_lines(N)                            # (N, G): max(., 0) if ReLU
    k.sum2 = k.hidden + whole_lines(N * b.G)                       # (N, C), norms after
    k.mean2 = k.sum2 + (0 if b.pre_norm else whole_lines(N * b.C))  # (N,)
    k.rstd2 = k.mean2 + whole_lines(N)                             # (N,)
    k.size = k.rstd2 + whole_lines(N)
    return k


cdef inline Py_ssize_t attention_size(Py_ssize_t longest, Py_ssize_t C) noexcept nogil:
    return whole_lines(2 * BLOCK * (longest + C))


cdef struct Scratch:
    # Where each array begins in the scratch. What need not hold at the same time shares a place;
    # but what the other threads see holds until they have made the gradients of the weights.
    # before1 and before2, with dropout alone: what each sub-layer gives, and its gradient.
    Py_ssize_t dhidden, activated, dqkv, dheads, normal1, normal2, dsum1, dsum2, dnormal
    Py_ssize_t before1, before2, attention, dnorms, size
    # And where the gradients of the norms begin in the array in which a thread adds them up: with
    # those of the other parameters, or, of several threads, beside each other.
    Py_ssize_t dweight1, dbias1, dweight2, dbias2


cdef inline Scratch scratch_of(
    const Spec* b, const Shard* s, Py_ssize_t N, Py_ssize_t longest
) noexcept nogil:
    cdef Scratch w
    cdef Py_ssize_t C = b.C, F = b.F, G = b.G, W = b.W, rows = whole_lines(N * C)
    w.dhidden = 0                                              # (N, G)
    if s.n == 1:
        w.activated = w.dhidden + whole_lines(N * max(G, W))              # (N, F)
        w.normal1 = w.normal2 = w.activated + whole_lines(N * max(F, C))  # (N, C)
        w.dnormal = w.normal1 + rows                           # (N, C)
        w.attention = w.dnormal + rows
        w.dqkv, w.dheads = w.dhidden, w.activated              # (N, W), (N, C)
        w.before1 = w.before2 = w.dnormal                      # (N, C)
        w.dsum1 = w.dsum2 = w.dnorms = 0                       # are in dx, and in the gradients
        w.dweight1, w.dbias1 = b.norm1.weight, b.norm1.bias
        w.dweight2, w.dbias2 = b.norm2.weight, b.norm2.bias
        w.size = w.attention + attention_size(longest, C)
        return w
    w.activated = w.dhidden + whole_lines(N * G)               # (N, F)
    w.dqkv = w.activated + whole_lines(N * F)                  # (N, W)
    w.dnormal = w.dqkv + whole_lines(N * W)                    # (N, C)
    w.dheads = w.dnormal                                       # (N, C)
    w.normal1 = w.dnormal + rows                               # (N, C)
    w.normal2 = w.normal1 + rows                               # (N, C)
    w.dsum1 = w.normal2 + rows                                 # (N, C)
    w.dsum2 = w.dsum1 + rows                                   # (N, C)
    w.before1 = w.dsum2 + rows                                 # (N, C)
    w.before2 = w.before1 + rows                               # (N, C)
    w.dnorms = w.before2 + rows                                # (n, 4 C): each thread's own
    w.dweight1, w.dbias1, w.dweight2, w.dbias2 = 0, C, 2 * C, 3 * C
    w.attention = w.dnorms + s.n * whole_lines(4 * C) + s.index * attention_size(longest, C)
    w.size = w.dnorms + s.n * (whole_lines(4 * C) + attention_size(longest, C))
    return w
