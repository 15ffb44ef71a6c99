"""Owns the decoding of a few rows: from token ids to logits through all blocks, in one call.

At RustGPT's sizes a token costs as much in calls from Python as in arithmetic; at GPT-2's the
memory is the limit, which one row reads as much of as sixteen. So the rows that are decoded
together go through the model in one call, whose products read each weight once (`few_rows.pxd`).
What the model is made of, and where its parameters lie, says a `DecoderSpec`; see
`rustgpt/reference/spec.py`. A row costs 2 P operations and 4 C for each row of its text, in each
block; all rows together read P numbers, and 2 K D for each row of each text, in each block.

Everything that is done to a row is done in the same order alone and among others, so that its
logits have the same bits. Several threads may call for the same rows: each makes some of the heads
(those that share keys and values together), and some of the columns of every other product. They
meet four times in a block.
"""
from cpython.mem cimport PyMem_Free
from cython cimport floating
from libc.math cimport sqrt
from libc.string cimport memcpy

from rustgpt._ext.activations cimport relu
from rustgpt._ext.attention cimport check_room, softmax_row
from rustgpt._ext.checks cimport (
    check_aligned, check_indices, check_ints, check_matrix, check_offsets, check_scratch,
    check_size, check_total, check_vector,
)
from rustgpt._ext.decoder_spec cimport Decoder, Scratch, read_decoder, scratch_of
from rustgpt._ext.few_rows cimport few_rows
from rustgpt._ext.rotary cimport turn_row
from rustgpt._ext.rows cimport combine, dots, row_gelu, row_swiglu
from rustgpt._ext.shard cimport Shard, edge_of, meet, shard_of
from rustgpt._ext.spec cimport GELU, SWIGLU, Norm, Spec
from rustgpt._ext.steps cimport at, normalise


cdef enum:
    # Keys that all heads pass before the next ones, so that memory is read in order.
    KEYS = 16
    # Threads look so often, for some 0.1 ms in all, whether the others are there before they sleep.
    LOOKS = 5000


cdef str SIZE = "decoder_scratch_size(spec, N, longest, threads)"


cdef class _Checked:
    """What a `DecoderSpec` says, once it was checked; it is kept with the `DecoderSpec`."""
    cdef Decoder decoder

    def __dealloc__(self):
        PyMem_Free(self.decoder.blocks)
        PyMem_Free(self.decoder.firsts)


cdef _Checked checked_of(object spec):
    cdef object known = getattr(spec, "checked", None)
    cdef _Checked checked
    if type(known) is _Checked:
        return known
    checked = _Checked()
    read_decoder(spec, &checked.decoder)
    if hasattr(spec, "checked"):
        spec.__dict__["checked"] = checked
    return checked


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
    if table is not None:
        check_table(d, longest, table.shape[0], table.shape[1])
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


cdef int check_table(
    const Decoder* d, Py_ssize_t longest, Py_ssize_t rows, Py_ssize_t columns
) except -1:
    """Raise ValueError unless a table of angles is as every block needs it."""
    cdef Py_ssize_t b, D
    for b in range(d.L):
        D = d.C // d.blocks[b].H
        if d.blocks[b].rotary and (rows < longest or columns != D):
            raise ValueError(f"table must have shape ({d.S}, {D}), got ({rows}, {columns})")
    return 0


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
