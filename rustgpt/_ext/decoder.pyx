"""Owns the decoding of a few rows: from token ids to logits through all blocks, in one call.

At RustGPT's sizes a token costs as much in calls from Python as in arithmetic; at GPT-2's the
memory is the limit, which one row reads as much of as sixteen. So the rows that are decoded
together go through the model in one call, whose products read each weight once (`few_rows.pxd`).
What the model is made of, and where its parameters lie, says a `DecoderSpec`; see
`rustgpt/reference/spec.py`. A row costs 2 P operations and 4 C for each row of its text, in each
block; all rows together read P numbers, and 2 K D for each row of each text, in each block.

Everything that is done to a row is done in the same order alone and among others, so that its
logits have the same bits. Several threads may call for the same rows: each makes some of the heads
(those that share keys and values together),
and some of the columns of every other product. They meet four times in a block.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cython cimport floating
from libc.math cimport sqrt
from libc.string cimport memcpy

from rustgpt._ext.activations cimport relu
from rustgpt._ext.attention cimport check_room, softmax_row
from rustgpt._ext.checks cimport (
    check_aligned, check_indices, check_ints, check_matrix, check_offsets, check_scratch,
    check_size, check_total, check_vector,
)
from rustgpt._ext.few_rows cimport few_rows
from rustgpt._ext.rotary cimport turn_row
from rustgpt._ext.rows cimport combine, dots, row_gelu, row_swiglu
from rustgpt._ext.shard cimport Shard, edge_of, meet, shard_of
from rustgpt._ext.spec cimport GELU, SWIGLU, Norm, Spec, parameter, read_spec, whole, whole_lines
from rustgpt._ext.steps cimport at, normalise


cdef enum:
    # Numbers of a `DecoderSpec`.
    NUMBERS = 12
    # Keys that all heads pass before the next ones, so that memory is read in order.
    KEYS = 16
    # Threads look so often, for some 0.1 ms in all, whether the others are there before they sleep.
    LOOKS = 5000


cdef str SIZE = "decoder_scratch_size(spec, N, longest, threads)"


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


cdef class _Checked:
    """What a `DecoderSpec` says, once it was checked; it is kept with the `DecoderSpec`."""
    cdef Decoder decoder

    def __dealloc__(self):
        PyMem_Free(self.decoder.blocks)
        PyMem_Free(self.decoder.firsts)


cdef _Checked checked_of(object spec):
    cdef object known = getattr(spec, "checked", None)
    if type(known) is not _Checked:
        known = _Checked()
        read_decoder(spec, known)
        if hasattr(spec, "checked"):
            spec.__dict__["checked"] = known
    return known


cdef int read_decoder(object spec, _Checked checked) except -1:
    """Fill in what a `DecoderSpec` says, after a check: where it is wrong, kernels would crash."""
    cdef const double[::1] n
    cdef Decoder* d = &checked.decoder
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


cdef Scratch scratch_of(const Decoder* d, const Shard* s, Py_ssize_t N, Py_ssize_t longest):
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


def decoder_scratch_size(object spec, Py_ssize_t N, Py_ssize_t longest, Py_ssize_t threads=1):
    """Numbers of scratch for N rows, of texts that have at most `longest` rows in all."""
    cdef _Checked checked = checked_of(spec)
    cdef Shard s
    check_size("N", N)
    check_size("longest", longest)
    check_size("threads", threads, 1)
    check_total(N, (4.0 + threads) * checked.decoder.C + checked.decoder.G)
    check_total(longest, checked.decoder.H)
    s.index, s.n = 0, threads
    return scratch_of(&checked.decoder, &s, N, longest).size


def decoder_forward(
    const floating[::1] parameters not None,  # IN (P,): of the whole model
    object spec not None,                     # IN: a DecoderSpec
    const int[::1] ids not None,              # IN (N,): the new tokens of each text
    const int[::1] offsets not None,          # IN (B + 1,)
    floating[:, :, :, ::1] kv not None,       # IN/OUT (L, slots, S, 2 K D): see attention_decode
    const int[::1] slots not None,            # IN (B,)
    const int[::1] starts not None,           # IN (B,)
    floating[:, ::1] logits not None,         # OUT (B, V): of what follows each text's last token
    floating[::1] scratch not None,           # decoder_scratch_size(spec, N, longest text, ...)
    object shard=None,                        # IN: this thread's, of several, as to the K heads
    const floating[:, ::1] table=None,        # IN (S, D): see rotary; None if there are no rotary
):
    """Texts go on by some tokens: logits = output(norm(blocks(tokens[ids] + places))).

    Their keys and values are appended to the cache.
    """
    cdef _Checked checked = checked_of(spec)
    cdef Decoder* d = &checked.decoder
    cdef Py_ssize_t N = ids.shape[0], B = offsets.shape[0] - 1, C = d.C, b, longest
    cdef object barrier = getattr(shard, "barrier", None)
    cdef Shard s = shard_of(shard, barrier, d.K)
    cdef Scratch w
    cdef floating* p = check_vector("parameters", parameters, d.size)
    check_offsets(offsets, N)
    check_indices("ids", ids, N, 0, d.V)
    if kv.shape[0] != d.L or kv.shape[3] != 2 * d.kv_dim:
        raise ValueError(
            f"kv must have {d.L} blocks and {2 * d.kv_dim} columns, got {kv.shape[0]} and "
            f"{kv.shape[3]}"
        )
    check_indices("slots", slots, B, 0, kv.shape[1])
    check_ints("starts", starts, B)
    longest = check_room(offsets, slots, starts, kv.shape[2])
    if longest > d.S:
        raise ValueError(f"starts must leave room for the rows in a context of {d.S}")
    for b in range(B):
        if offsets[b] == offsets[b + 1]:
            raise ValueError(f"offsets must give each text a row, but text {b} has none")
    for b in range(d.L if s.n > 1 else 0):
        if d.blocks[b].H != d.H or d.blocks[b].K != d.K:
            raise ValueError("shard must be None where blocks differ in their heads")
    if d.rotary != (table is not None):
        raise ValueError("table must be given where positions are rotary, and else be None")
    for b in range(d.L if table is not None else 0):
        if d.blocks[b].rotary and (
            table.shape[0] < longest or table.shape[1] != C // d.blocks[b].H
        ):
            raise ValueError(
                f"table must have shape ({d.S}, {C // d.blocks[b].H}), got ({table.shape[0]}, "
                f"{table.shape[1]})"
            )
    cdef floating* logits0 = check_matrix[floating]("logits", logits, B, d.V)
    w = scratch_of(d, &s, N, longest)
    cdef floating* scratch0 = check_scratch(SIZE, scratch, w.size)
    if N == 0 or C == 0 or d.V == 0:
        return
    cdef Rows rows
    rows.N, rows.B, rows.longest, rows.capacity = N, B, longest, kv.shape[2]
    rows.ids, rows.offsets, rows.slots, rows.starts = &ids[0], &offsets[0], &slots[0], &starts[0]
    rows.layer = kv.shape[1] * kv.shape[2] * 2 * d.kv_dim
    cdef floating* kv0 = &kv[0, 0, 0, 0] if d.L else NULL
    check_aligned("kv", <size_t> kv0, sizeof(floating))
    cdef const floating* table0 = NULL
    if table is not None:
        table0 = check_matrix("table", table, table.shape[0], table.shape[1])
    with nogil:
        decode(d, &s, &w, &rows, p, table0, kv0, scratch0, logits0)


cdef struct Rows:
    # What is decoded: N new rows of B texts, which have at most `longest` rows in all.
    Py_ssize_t N, B, longest
    Py_ssize_t capacity, layer  # rows of a slot, and numbers of a block, in the cache
    const int* ids
    const int* offsets
    const int* slots
    const int* starts


cdef struct Columns:
    # A thread's part of an array's columns.
    Py_ssize_t first, stop


cdef inline Columns columns_of(const Shard* s, Py_ssize_t columns) noexcept nogil:
    """Whole cache lines for each thread."""
    cdef Py_ssize_t lines = (columns + 15) // 16
    cdef Columns c
    c.first = min(columns, edge_of(lines, s.index, s.n) * 16)
    c.stop = min(columns, edge_of(lines, s.index + 1, s.n) * 16)
    return c


cdef int decode(
    const Decoder* d, const Shard* s, const Scratch* w, const Rows* rows, const floating* p,
    const floating* table, floating* kv, floating* scratch, floating* logits,
) except -1 nogil:
    cdef Py_ssize_t C = d.C, N = rows.N, b, i, row, position
    cdef Columns own = columns_of(s, C)
    cdef floating* stream = scratch + w.stream  # (N, C)
    cdef floating* normal = scratch + w.normal  # (N, C)
    # stream = tokens[ids] + places[positions]
    for b in range(rows.B):
        for row in range(rows.offsets[b], rows.offsets[b + 1]):
            position = rows.starts[b] + row - rows.offsets[b]
            for i in range(own.first, own.stop):
                stream[row * C + i] = p[d.tokens + rows.ids[row] * C + i]
            for i in range(own.first, own.stop if d.places >= 0 else own.first):
                stream[row * C + i] += p[d.places + position * C + i]
    meet(s, LOOKS)
    memcpy(normal, stream, N * C * sizeof(floating))
    for i in range(d.L):
        block_few(&d.blocks[i], s, w, rows, p + d.firsts[i], table, kv + i * rows.layer, scratch)
        if d.blocks[i].pre_norm:
            memcpy(normal, stream, N * C * sizeof(floating))
        elif i + 1 < d.L and d.blocks[i + 1].pre_norm:
            meet(s, LOOKS)  # all have read the sums
            copy_columns(normal, stream, N, C, own)
            meet(s, LOOKS)
    # The last row of each text: logits = norm(x) @ output_weight + output_bias
    for b in range(rows.B):
        memcpy(normal + b * C, normal + (rows.offsets[b + 1] - 1) * C, C * sizeof(floating))
    if d.norm.weight >= 0:
        normalise(&d.norm, p, normal, rows.B, C, normal, scratch + w.mean, scratch + w.rstd)
    own = columns_of(s, d.V)
    few_rows(d.tied, rows.B, C, normal, C, p + d.output_weight, C if d.tied else d.V,
             own.first, own.stop, at(p, d.output_bias), logits, d.V)  # (B, V)
    return 0


cdef int block_few(
    const Spec* b, const Shard* s, const Scratch* w, const Rows* rows, const floating* p,
    const floating* table, floating* kv, floating* scratch,
) except -1 nogil:
    """A block of what is in `normal`; with the norms before, `stream` has it too.

    There its output is then, or with the norms after in `normal`.
    """
    cdef Py_ssize_t C = b.C, F = b.F, G = b.G, W = b.W, N = rows.N, row
    cdef Heads heads_of = heads_of_shard(b, s)
    cdef Columns own = columns_of(s, C), inner = columns_of(s, F)
    cdef floating* stream = scratch + w.stream  # (N, C)
    cdef floating* normal = scratch + w.normal  # (N, C)
    cdef floating* qkv = scratch + w.qkv        # (N, W)
    cdef floating* heads = scratch + w.heads    # (N, C)
    cdef floating* hidden = scratch + w.hidden  # (N, G): with SwiGLU, gate and up
    if b.pre_norm:
        normalise_few(&b.norm1, p, w, N, C, scratch)
    # sum1 = x + attention(inner): this thread's heads of queries, keys and values
    if s.n == 1:
        few_rows(False, N, C, normal, C, p + b.qkv_weight, W, 0, W, at(p, b.qkv_bias), qkv, W)
    else:
        project_few(b, &heads_of, N, normal, p, qkv)
    attend_few(b, rows, &heads_of, table, qkv, kv, scratch + w.scores, heads)
    meet(s, LOOKS)
    if not b.pre_norm:
        copy_columns(normal, stream, N, C, own)
    if b.projection_weight >= 0:
        few_rows(False, N, C, heads, C, p + b.projection_weight, C, own.first, own.stop,
                 at(p, b.projection_bias), normal, C)
        heads = normal
    add_columns(heads, stream, N, C, own)
    meet(s, LOOKS)
    # sum2 = h + feed_forward(normal), where h is sum1, or normal if the norms come after
    normalise_few(&b.norm2 if b.pre_norm else &b.norm1, p, w, N, C, scratch)
    few_rows(False, N, C, normal, C, p + b.weight1, G, inner.first, inner.stop, at(p, b.bias1),
             hidden, G)
    if b.activation == SWIGLU:
        few_rows(False, N, C, normal, C, p + b.weight1, G, F + inner.first, F + inner.stop,
                 at(p, b.bias1), hidden, G)
    for row in range(N):
        activate(b, hidden + row * G + inner.first, inner.stop - inner.first)
    meet(s, LOOKS)
    if not b.pre_norm:
        copy_columns(normal, stream, N, C, own)
    few_rows(False, N, F, hidden, G, p + b.weight2, C, own.first, own.stop, at(p, b.bias2), normal,
             C)
    add_columns(normal, stream, N, C, own)
    meet(s, LOOKS)
    if not b.pre_norm:
        normalise_few(&b.norm2, p, w, N, C, scratch)
    return 0


cdef struct Heads:
    # A thread's heads of queries, and those of keys and values that they share.
    Py_ssize_t first, stop, first_kv, stop_kv


cdef inline Heads heads_of_shard(const Spec* b, const Shard* s) noexcept nogil:
    cdef Heads heads = [0, b.H, 0, b.K]
    cdef Py_ssize_t group = b.H // b.K
    if s.n > 1:
        heads.first_kv, heads.stop_kv = s.first, s.stop
        heads.first, heads.stop = s.first * group, s.stop * group
    return heads


cdef void project_few(
    const Spec* b, const Heads* own, Py_ssize_t N, const floating* normal, const floating* p,
    floating* qkv,
) noexcept nogil:
    """qkv = normal @ qkv_weight + qkv_bias, a thread's heads."""
    cdef Py_ssize_t C = b.C, W = b.W, D = C // b.H, part, start
    few_rows(False, N, C, normal, C, p + b.qkv_weight, W, own.first * D, own.stop * D,
             at(p, b.qkv_bias), qkv, W)
    for part in range(2):
        start = C + part * b.K * D
        few_rows(False, N, C, normal, C, p + b.qkv_weight, W, start + own.first_kv * D,
                 start + own.stop_kv * D, at(p, b.qkv_bias), qkv, W)


cdef inline void activate(const Spec* b, floating* hidden, Py_ssize_t n) noexcept nogil:
    """Some columns of a row's hidden layer, through the activation; with SwiGLU, up is F behind."""
    if b.activation == GELU:
        row_gelu(hidden, n, hidden)
    elif b.activation == SWIGLU:
        row_swiglu(hidden, hidden + b.F, n, hidden)
    else:
        relu(hidden, n, hidden)


cdef void normalise_few(
    const Norm* norm, const floating* p, const Scratch* w, Py_ssize_t N, Py_ssize_t C,
    floating* scratch,
) noexcept nogil:
    """normal = norm(stream): each thread makes all rows for itself."""
    normalise(norm, p, scratch + w.stream, N, C, scratch + w.normal, scratch + w.mean,
              scratch + w.rstd)


cdef void copy_columns(
    const floating* x, floating* out, Py_ssize_t N, Py_ssize_t C, Columns own
) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(N):
        memcpy(out + row * C + own.first, x + row * C + own.first,
               (own.stop - own.first) * sizeof(floating))


cdef void add_columns(
    const floating* x, floating* out, Py_ssize_t N, Py_ssize_t C, Columns own
) noexcept nogil:
    """out += x. A sum that began with `out` would be rounded as finely as that is large."""
    cdef Py_ssize_t row, i
    for row in range(N):
        for i in range(own.first, own.stop):
            out[row * C + i] += x[row * C + i]


cdef void attend_few(
    const Spec* b, const Rows* rows, const Heads* own, const floating* table, floating* qkv,
    floating* kv, floating* scores, floating* heads,
) noexcept nogil:
    """Append some heads' keys and values to the cache; each row attends to those before it."""
    cdef Py_ssize_t C = b.C, W = b.W, D = C // b.H, kv_dim = b.K * D, t, row, start, seen
    cdef Py_ssize_t shared = own.stop_kv - own.first_kv
    cdef floating* k
    cdef floating* new
    cdef floating* old
    for t in range(rows.B):
        start = rows.starts[t] - rows.offsets[t]
        k = kv + rows.slots[t] * rows.capacity * 2 * kv_dim  # (S, 2 K D): keys, then values
        for row in range(rows.offsets[t], rows.offsets[t + 1]):
            new = k + (start + row) * 2 * kv_dim + own.first_kv * D
            old = qkv + row * W + C + own.first_kv * D
            if b.rotary:
                turn_row(qkv + row * W + own.first * D, table + (start + row) * D,
                         own.stop - own.first, D, False)
                turn_row(old, table + (start + row) * D, shared, D, False)
            memcpy(new, old, shared * D * sizeof(floating))
            memcpy(new + kv_dim, old + kv_dim, shared * D * sizeof(floating))
        for row in range(rows.offsets[t], rows.offsets[t + 1]):
            seen = start + row + 1
            attend_row(b, own, qkv + row * W, k, seen, rows.longest, scores, heads + row * C)


cdef void attend_row(
    const Spec* b, const Heads* own, const floating* q, const floating* k, Py_ssize_t seen,
    Py_ssize_t longest, floating* scores,  # scratch (H, longest)
    floating* out,                         # OUT (C,): these heads
) noexcept nogil:
    cdef Py_ssize_t D = b.C // b.H, kv_dim = b.K * D, group = b.H // b.K, block, j, h, some
    cdef floating scale = <floating> (1.0 / sqrt(<double> D))
    # Pass 1: scores = q @ k.T, for all heads some keys at a time
    for block in range((seen + KEYS - 1) // KEYS):
        j = block * KEYS
        some = min(<Py_ssize_t> KEYS, seen - j)
        for h in range(own.first, own.stop):
            dots(q + h * D, k + j * 2 * kv_dim + h // group * D, 2 * kv_dim, some, D,
                 scores + h * longest + j)
    # Pass 2: softmax
    for h in range(own.first, own.stop):
        softmax_row(scores + h * longest, seen, seen, scale, <floating*> NULL)
    # Pass 3: out = probabilities @ v, likewise
    for block in range((seen + KEYS - 1) // KEYS):
        j = block * KEYS
        some = min(<Py_ssize_t> KEYS, seen - j)
        for h in range(own.first, own.stop):
            combine(scores + h * longest + j, k + j * 2 * kv_dim + kv_dim + h // group * D,
                    2 * kv_dim, some, D, j > 0, out + h * D)
