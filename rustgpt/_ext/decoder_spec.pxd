"""Owns where a whole model's arrays lie: its parameters, and the scratch of those who decode."""
from cpython.mem cimport PyMem_Malloc

from rustgpt._ext.shard cimport Shard
from rustgpt._ext.spec cimport Norm, Spec, parameter, read_spec, whole, whole_lines

cdef enum:
    NUMBERS = 12  # of a `DecoderSpec`


cdef struct Decoder:
    Py_ssize_t V, S, C, size  # S rows of positions
    bint tied
    bint rotary         # whether a block's positions are
    Py_ssize_t tokens, places, output_weight, output_bias  # the second and last -1 if there is none
    Norm norm           # the last one; its weight is -1 if there is none
    Py_ssize_t L, H, K  # blocks; the most heads of a block, and those of keys and values
    Py_ssize_t W, G     # the most columns of queries, keys and values, and of the hidden layer
    Py_ssize_t kv_dim   # columns of keys, and as many of values, of every block
    Spec* blocks        # (L,)
    Py_ssize_t* firsts  # (L,) where a block's parameters begin


cdef inline int read_decoder(object spec, Decoder* d) except -1:
    """Fill in what a `DecoderSpec` says, after a check: where it is wrong, kernels would crash."""
    cdef const double[::1] n
    cdef Py_ssize_t i, C, P
    cdef Spec block
    try:
        n, blocks, firsts = spec.numbers, tuple(spec.blocks), tuple(map(int, spec.firsts))
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"spec must be a rustgpt.reference.spec.DecoderSpec: {error}") from None
    if n.shape[0] != NUMBERS or len(blocks) != len(firsts):
        raise ValueError(f"spec must have {NUMBERS} numbers, and a place for each block")
    d.V, d.S, d.C, d.size, d.tied = whole(n[0]), whole(n[1]), whole(n[2]), whole(n[3]), n[4] != 0
    C, P = d.C, d.size
    if min(d.V, d.S, C, P) < 0 or max(d.V, d.S, 3 * C) >= 2**31:
        raise ValueError(f"spec must have sizes from 0 to 2**31, got {d.V}, {d.S}, {C}")
    d.tokens = parameter("tokens", n[6], d.V, C, P)
    d.places = parameter("places", n[7], d.S, C, P, False)
    d.norm.epsilon, d.norm.weight = n[5], parameter("norm.weight", n[8], 1, C, P, False)
    d.norm.bias = parameter("norm.bias", n[9], 1, C, P, False)
    d.norm.rms = d.norm.bias < 0
    d.output_weight = parameter("output.weight", n[10], d.V, C, P)
    d.output_bias = parameter("output.bias", n[11], 1, d.V, P, False)
    if not n[5] >= 0:
        raise ValueError(f"spec must have an epsilon from 0 on, got {n[5]}")
    d.L, d.H, d.K, d.W, d.G, d.kv_dim, d.rotary = len(blocks), 1, 1, 0, 0, C, False
    d.blocks = <Spec*> PyMem_Malloc(d.L * sizeof(Spec))
    d.firsts = <Py_ssize_t*> PyMem_Malloc(d.L * sizeof(Py_ssize_t))
    if d.blocks == NULL or d.firsts == NULL:
        raise MemoryError
    for i in range(d.L):
        block = read_spec(blocks[i])
        if block.C != C:
            raise ValueError(f"spec must have blocks of {C} columns, but block {i} has {block.C}")
        d.blocks[i], d.firsts[i] = block, parameter(f"block {i}", firsts[i], 1, block.size, P)
        d.H, d.W, d.G = max(d.H, block.H), max(d.W, block.W), max(d.G, block.G)
        d.K, d.rotary = max(d.K, block.K), d.rotary or block.rotary
        if i > 0 and (block.W - C) // 2 != d.kv_dim:
            raise ValueError("spec must have blocks with equally many columns of keys and values")
        d.kv_dim = (block.W - C) // 2
    return 0


cdef struct Scratch:
    # Where each array begins. All threads see the first ones; the last are for each of them.
    Py_ssize_t stream, heads, qkv, hidden, scores, normal, mean, rstd, size


cdef inline Scratch scratch_of(
    const Decoder* d, const Shard* s, Py_ssize_t N, Py_ssize_t longest
) noexcept nogil:
    cdef Scratch w
    cdef Py_ssize_t C = d.C, own = whole_lines(N * C) + 2 * whole_lines(N)
    w.stream = 0                                        # (N, C): the residual sums
    w.heads = w.stream + whole_lines(N * C)             # (N, C)
    w.qkv = w.heads + whole_lines(N * C)                # (N, W)
    w.hidden = w.qkv + whole_lines(N * d.W)             # (N, G)
    w.scores = w.hidden + whole_lines(N * d.G)          # (H, longest)
    w.normal = w.scores + whole_lines(d.H * longest) + s.index * own  # (N, C)
    w.mean = w.normal + whole_lines(N * C)              # (N,)
    w.rstd = w.mean + whole_lines(N)                    # (N,)
    w.size = w.normal + (s.n - s.index) * own
    return w
