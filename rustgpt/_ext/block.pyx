"""Owns a whole transformer block: forward and backward, each in one call.

A call from Python costs microseconds and a hand-over between threads, which for small models is
as much as the arithmetic. So here the steps that `rustgpt/layers/transformer.py` spells out run
one after another without returning to Python. What a block is made of, and where its parameters
lie in one flat array, says a `BlockSpec`; see `rustgpt/reference/spec.py`.

With P parameters, T tokens a text: 2 P + 4 T C operations a row forward, twice that backward. Saved
for the backward pass: (2 C + W + G) numbers a row with the norms before, (3 C + W + G) with the
norms after, and a few per head; what is cheap is computed again. There W = (H + 2 K) D, and G is F,
or 2 F with SwiGLU.

Several threads may call for one batch, each with its shard: all arrays then have the rows of all
threads, and each thread goes through its own, but makes its part of the weights' gradients over
all rows. They meet once a pass back, and around attention where its heads are divided.
"""
from cython cimport floating
from libc.stdint cimport uint64_t

from rustgpt._ext.attention cimport (
    BLOCK, Cache, attend_all, attend_all_backward, attend_cached, check_cache,
)
from rustgpt._ext.checks cimport (
    check_matrix, check_offsets, check_scratch, check_size, check_total, check_vector,
)
from rustgpt._ext.dropout cimport drop, dropout_of
from rustgpt._ext.linear cimport affine, check_bfloat16
from rustgpt._ext.rotary cimport turn_rows
from rustgpt._ext.shard cimport Shard, alone, meet, shard_of
from rustgpt._ext.spec cimport (
    Norm, Saved, Scratch, Spec, read_spec, saved_of, scratch_of, whole_lines,
)
from rustgpt._ext.steps cimport (
    ATTENTION, FEED_FORWARD, again, at, back, clear_norms, copy, dropped, feed_forward,
    feed_forward_gradients, gradients_of, norm_back, norm_gradients, normalise, part_of, project,
    through_activation,
)


cdef str SIZE = "block_scratch_size(spec, N, longest, threads, saved)"


cdef class _CheckedSpec:
    """What a `BlockSpec` says, once it was checked; it is kept with the `BlockSpec`."""
    cdef Spec spec


cdef Spec spec_of(object spec) except *:
    cdef object known = getattr(spec, "checked", None)
    cdef _CheckedSpec checked
    if type(known) is not _CheckedSpec:
        checked = _CheckedSpec()
        checked.spec = read_spec(spec)
        if hasattr(spec, "checked"):
            spec.__dict__["checked"] = checked
        return checked.spec
    return (<_CheckedSpec> known).spec


def block_saved_size(object spec, Py_ssize_t N, bint sharded=False):
    """Numbers that `block_forward` saves of N rows for `block_backward`."""
    cdef Spec b = spec_of(spec)
    check_size("N", N)
    check_total(N, 8.0 * b.C + b.G + b.H)
    return saved_of(&b, N, sharded).size


def block_scratch_size(
    object spec, Py_ssize_t N, Py_ssize_t longest, Py_ssize_t threads=1, bint saved=True,
):
    """Numbers of scratch for N rows, in texts of at most `longest` rows with those before.

    Without `saved`, `block_forward` puts there too what it otherwise saves.
    """
    cdef Spec b = spec_of(spec)
    cdef Shard s = alone(N)
    check_size("N", N)
    check_size("longest", longest)
    check_size("threads", threads, 1)
    check_total(N, 10.0 * b.C + b.F + b.G)
    check_total(threads, 4.0 * BLOCK * (<double> longest + b.C))
    s.n = threads
    return scratch_of(&b, &s, N, longest).size + (0 if saved else saved_of(&b, N, False).size)


cdef int check_texts(const Shard* s, const int[::1] offsets) except -1:
    """Raise ValueError unless the thread's rows are whole texts, or attention divides its heads."""
    cdef Py_ssize_t b, found = s.heads
    for b in range(offsets.shape[0]):
        found |= (1 if offsets[b] == s.first else 0) | (2 if offsets[b] == s.stop else 0)
    if s.n > 1 and not s.heads and found != 3:
        raise ValueError("shard must have edges between texts, unless it divides the heads")
    return 0


cdef floating* check_table(
    const Spec* b, const floating[:, ::1] table, Py_ssize_t longest
) except? NULL:
    """Raise ValueError unless there is a table of angles just where there are rotary positions."""
    if b.rotary != (table is not None):
        raise ValueError("table must be given where positions are rotary, and else be None")
    if table is not None and table.shape[0] < longest:
        raise ValueError(
            f"table must have a row for each of {longest} positions, got {table.shape[0]}"
        )
    return check_matrix("table", table, 0 if table is None else table.shape[0], b.C // b.H)


def block_forward(
    const floating[:, ::1] x not None,        # IN (N, C)
    const int[::1] offsets not None,          # IN (B + 1,)
    const floating[::1] parameters not None,  # IN (P,)
    object spec not None,                     # IN: a BlockSpec
    floating[:, ::1] out not None,            # OUT (N, C)
    floating[::1] saved,                      # OUT (block_saved_size(...),), or None: not needed
    floating[::1] scratch not None,           # block_scratch_size(spec, N, longest text, ...)
    bint bfloat16=False,                      # IN: whether the linear products round to it
    object shard=None,                        # IN: this thread's, of several
    floating[:, :, ::1] kv=None,              # IN/OUT (slots, S, 2 K D): see attention_decode
    const int[::1] slots=None,                # IN (B,)
    const int[::1] starts=None,               # IN (B,)
    const int[::1] row_numbers=None,          # IN (N,): with key, key + 1 and rate as in `dropout`
    uint64_t key=0,                           # IN
    double rate=0.0,                          # IN
    const floating[:, ::1] table=None,        # IN (S, D): see rotary; None if they are learned
):
    """out = norm2(h + feed_forward(h)), h = norm1(x + attention(x)); or with the norms before.

    With a cache the texts go on, and see the rows before; there is no way back then, and no
    dropout.
    """
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], longest = check_offsets(offsets, N)
    cdef object barrier = getattr(shard, "barrier", None)
    cdef Spec b = spec_of(spec)
    cdef Shard s = shard_of(shard, barrier, N)
    cdef Saved k = saved_of(&b, N, s.n > 1)
    cdef bint cached = kv is not None or slots is not None or starts is not None
    cdef Cache cache
    if cached and s.n > 1:
        raise ValueError("shard must be None where there is a cache")
    if cached and rate > 0:
        raise ValueError("rate must be 0 where there is a cache")
    if cached:
        longest = check_cache(offsets, kv, slots, starts, (b.W - b.C) // 2, &cache)
    b.bfloat16, b.dropout = bfloat16, dropout_of(row_numbers, N, key, rate)
    check_bfloat16(bfloat16, sizeof(floating))
    check_texts(&s, offsets)
    if saved is None and s.n > 1:
        raise ValueError("saved must be given where there is a shard")
    cdef Scratch w = scratch_of(&b, &s, N, longest)
    cdef floating* table0 = check_table(&b, table, longest)
    cdef floating* x0 = check_matrix("x", x, N, b.C)
    cdef floating* parameters0 = check_vector("parameters", parameters, b.size)
    cdef floating* out0 = check_matrix[floating]("out", out, N, C)
    cdef floating* saved0 = check_vector[floating]("saved", saved, k.size)
    cdef Py_ssize_t unsaved = k.size if saved is None else 0
    cdef floating* scratch0 = check_scratch(SIZE, scratch, w.size + unsaved)
    if N == 0 or C == 0:
        return
    if saved is None:
        saved0 = scratch0 + w.size
    with nogil:
        forward(&b, &k, &w, &s, &cache if cached else NULL, parameters0, table0, x0, &offsets[0],
                offsets.shape[0] - 1, out0, saved0, scratch0)


cdef int forward(
    const Spec* b, const Saved* k, const Scratch* w, const Shard* s, const Cache* cache,
    const floating* p, const floating* table, const floating* x, const int* offsets, Py_ssize_t B,
    floating* out, floating* saved, floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t C = b.C, W = b.W, r = s.first, n = s.stop - s.first  # this thread's rows
    cdef floating* activated = scratch + w.activated + r * b.F            # (n, F)
    cdef floating* normal = scratch + w.normal1 + r * C                   # (n, C)
    cdef floating* heads = (                                              # (N, C)
        saved + k.heads if b.projection_weight >= 0 or s.n > 1 else scratch + w.dheads
    )
    cdef floating* sum1 = saved + k.sum1 + r * C
    cdef floating* sum2 = out + r * C if b.pre_norm else saved + k.sum2 + r * C
    cdef const floating* inner = x + r * C
    # With dropout a sub-layer's output is first in the scratch, and then added.
    cdef bint add = b.dropout.rows == NULL
    cdef floating* f = scratch + w.before1 + r * C                        # (n, C)
    if b.pre_norm:
        normalise(&b.norm1, p, x + r * C, n, C, normal, saved + k.mean1 + r, saved + k.rstd1 + r)
        inner = normal
    # sum1 = x + attention(inner)
    affine(inner, p + b.qkv_weight, at(p, b.qkv_bias), n, C, W, False, False, b.bfloat16,
           saved + k.qkv + r * W)                                         # (n, W)
    if b.rotary:
        turn_rows(saved + k.qkv, W, offsets, cache.starts if cache != NULL else NULL, B, r, s.stop,
                  table, b.H + b.K, C // b.H, False)
    if cache == NULL:
        if s.heads:
            meet(s)  # others have made other rows, and will go on with other columns
        attend_all(saved + k.qkv, offsets, part_of(s, offsets, B, b.H, b.K), C, b.H, b.K,
                   heads, saved + k.lse, scratch + w.attention)           # (n, C)
        if s.heads:
            meet(s)
    else:
        attend_cached(saved + k.qkv, offsets, B, C, b.H, b.K, cache, heads,
                      scratch + w.attention)                              # (n, C)
    copy(b, x + r * C, n, sum1)
    project(b, p, heads + r * C, n, add, sum1 if add else f)
    if not add:
        drop(&b.dropout, ATTENTION, f, r, n, C, True, sum1)
    # sum2 = h + feed_forward(normal), where h is sum1, or normal if the norms come after
    if b.pre_norm:
        normalise(&b.norm2, p, sum1, n, C, normal, saved + k.mean2 + r, saved + k.rstd2 + r)
        copy(b, <const floating*> sum1, n, sum2)
    else:
        normalise(&b.norm1, p, sum1, n, C, normal, saved + k.mean1 + r, saved + k.rstd1 + r)
        copy(b, <const floating*> normal, n, sum2)
    feed_forward(b, p, normal, n, saved + k.hidden + r * b.G, activated, add, sum2 if add else f)
    if not add:
        drop(&b.dropout, FEED_FORWARD, f, r, n, C, True, sum2)
    if not b.pre_norm:
        normalise(&b.norm2, p, sum2, n, C, out + r * C, saved + k.mean2 + r, saved + k.rstd2 + r)
    return 0


def block_backward(
    const floating[:, ::1] dout not None,     # IN (N, C)
    const floating[:, ::1] x not None,        # IN (N, C)
    const int[::1] offsets not None,          # IN (B + 1,)
    const floating[::1] parameters not None,  # IN (P,)
    object spec not None,                     # IN: a BlockSpec
    const floating[::1] saved not None,       # IN: what block_forward saved
    floating[:, ::1] dx not None,             # OUT (N, C): overwritten; may be dout itself
    floating[::1] dparameters not None,       # IN/OUT (P,): added to
    floating[::1] scratch not None,           # block_scratch_size(spec, N, longest text, ...)
    bint accumulate=True,                     # IN: or else dparameters is overwritten
    bint bfloat16=False,                      # IN: whether the linear products round to it
    object shard=None,                        # IN: this thread's, of several
    const int[::1] row_numbers=None,          # IN (N,): with key, key + 1 and rate as in `dropout`
    uint64_t key=0,                           # IN
    double rate=0.0,                          # IN
    const floating[:, ::1] table=None,        # IN (S, D): see rotary; None if they are learned
):
    """The gradients of the input and of the parameters, from the gradient of the output."""
    cdef Py_ssize_t N = x.shape[0], C = x.shape[1], longest = check_offsets(offsets, N)
    cdef object barrier = getattr(shard, "barrier", None)
    cdef Spec b = spec_of(spec)
    cdef Shard s = shard_of(shard, barrier, N)
    cdef Saved k = saved_of(&b, N, s.n > 1)
    cdef Scratch w = scratch_of(&b, &s, N, longest)
    cdef floating* table0 = check_table(&b, table, longest)
    b.accumulate, b.bfloat16 = accumulate, bfloat16
    b.dropout = dropout_of(row_numbers, N, key, rate)
    check_bfloat16(bfloat16, sizeof(floating))
    check_texts(&s, offsets)
    cdef floating* dout0 = check_matrix("dout", dout, N, C)
    cdef floating* x0 = check_matrix("x", x, N, b.C)
    cdef floating* parameters0 = check_vector("parameters", parameters, b.size)
    cdef floating* saved0 = check_vector("saved", saved, k.size)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, C)
    cdef floating* dparameters0 = check_vector[floating]("dparameters", dparameters, b.size)
    cdef floating* scratch0 = check_scratch(SIZE, scratch, w.size)
    if N == 0 or C == 0:
        if not accumulate:
            dparameters[:] = 0
        return
    with nogil:
        backward(&b, &k, &w, &s, parameters0, table0, dparameters0, dout0, x0, &offsets[0],
                 offsets.shape[0] - 1, N, saved0, dx0, scratch0)


cdef int backward(
    const Spec* b, const Saved* k, const Scratch* w, const Shard* s,
    const floating* p, const floating* table, floating* dp, const floating* dout,
    const floating* x, const int* offsets, Py_ssize_t B, Py_ssize_t N, const floating* saved,
    floating* dx, floating* scratch,
) except -1 nogil:
    cdef Py_ssize_t C = b.C, r = s.first, n = s.stop - s.first  # this thread's rows
    # One thread adds up the gradients of the norms where they belong, several each in its own
    # place; and one makes those of the weights at once, several when all have made their rows.
    cdef bint one = s.n == 1, dropping = b.dropout.rows != NULL
    cdef floating* dnorms = dp if one else scratch + w.dnorms + s.index * whole_lines(4 * C)
    # The gradients of both residual sums: alone, they take turns in dx.
    cdef floating* dsum1 = dx if one else scratch + w.dsum1 + r * C
    cdef floating* dsum2 = dx if one else scratch + w.dsum2 + r * C
    clear_norms(b, s, dp, dnorms)
    if one and b.pre_norm and dout != dx:
        dsum2 = <floating*> dout  # is read only
    backward_feed_forward(b, k, w, s, p, dp, dnorms, dout + r * C, n, saved, scratch, dsum2,
                          dx + r * C, dsum1)
    backward_attention(b, k, w, s, p, table, dp, dnorms, dsum1, x, offsets, B, n, saved, scratch,
                       dx)
    if one:
        return 0
    meet(s)
    # What was made last comes first: it is still in the cache.
    gradients_of(b, s, scratch + w.dqkv, scratch + w.normal1 if b.pre_norm else x, N, C, b.W, dp,
                 b.qkv_weight, b.qkv_bias)
    gradients_of(b, s, scratch + (w.before1 if dropping else w.dsum1), saved + k.heads, N, C, C,
                 dp, b.projection_weight, b.projection_bias)
    feed_forward_gradients(b, k, w, s, dp, scratch + (w.before2 if dropping else w.dsum2), saved,
                           scratch, N)
    if s.index == 0:
        norm_gradients(b, s, dp, scratch + w.dnorms)
    return 0


cdef void backward_feed_forward(
    const Spec* b, const Saved* k, const Scratch* w, const Shard* s,
    const floating* p, floating* dp, floating* dnorms,
    const floating* dout, Py_ssize_t n,  # IN (n, C)
    const floating* saved, floating* scratch,
    floating* dsum2, floating* dx,       # scratch (n, C); the second may be dout
    floating* dsum1,                     # OUT (n, C): the gradient of sum1
) noexcept nogil:
    cdef Py_ssize_t C = b.C, r = s.first
    # The norm that made normal2 of sum1.
    cdef const Norm* inner = &b.norm2 if b.pre_norm else &b.norm1
    cdef const floating* sum1 = saved + k.sum1 + r * C
    cdef const floating* mean = saved + (k.mean2 if b.pre_norm else k.mean1) + r
    cdef const floating* rstd = saved + (k.rstd2 if b.pre_norm else k.rstd1) + r
    cdef floating* dhidden = scratch + w.dhidden + r * b.G    # (n, G)
    cdef floating* dnormal = scratch + w.dnormal + r * C if b.pre_norm else dx
    cdef const floating* df
    if b.pre_norm:
        copy(b, dout, n, dsum2)
    else:
        # forward: out = norm2(sum2)
        norm_back(&b.norm2, p, dout, saved + k.sum2 + r * C, saved + k.mean2 + r,
                  saved + k.rstd2 + r, <const floating*> NULL, n, C, dsum2, dnorms + w.dweight2,
                  dnorms + w.dbias2)
    again(inner, p, sum1, mean, rstd, n, C, scratch + w.normal2 + r * C)
    # forward: sum2 = h + dropout(activation(normal2 @ weight1 + bias1) @ weight2 + bias2)
    df = dropped(b, FEED_FORWARD, <const floating*> dsum2, r, n, scratch + w.before2 + r * C)
    through_activation(b, p, df, saved + k.hidden + r * b.G, n, dhidden,
                       scratch + w.activated + r * b.F)      # (n, G)
    if s.n == 1:
        feed_forward_gradients(b, k, w, s, dp, df, saved, scratch, n)
    # forward: normal2 = inner(sum1), and h is sum1, or normal2 if the norms come after
    if not b.pre_norm:
        copy(b, dsum2, n, dnormal)
    back(b, p + b.weight1, dhidden, n, C, b.G, not b.pre_norm, dnormal)
    norm_back(inner, p, dnormal, sum1, mean, rstd, dsum2 if b.pre_norm else NULL, n, C, dsum1,
              dnorms + (w.dweight2 if b.pre_norm else w.dweight1),
              dnorms + (w.dbias2 if b.pre_norm else w.dbias1))


cdef int backward_attention(
    const Spec* b, const Saved* k, const Scratch* w, const Shard* s,
    const floating* p, const floating* table, floating* dp, floating* dnorms,
    const floating* dsum1,  # IN (n, C); alone, it is dx
    const floating* x, const int* offsets, Py_ssize_t B, Py_ssize_t n,
    const floating* saved, floating* scratch, floating* dx,
) except -1 nogil:
    cdef Py_ssize_t C = b.C, W = b.W, r = s.first
    cdef floating* mine = dx + r * C                          # (n, C)
    cdef floating* dnormal = scratch + w.dnormal + r * C      # (n, C)
    cdef floating* dheads = scratch + w.dheads                # (N, C)
    cdef floating* dqkv = scratch + w.dqkv                    # (N, W)
    if b.pre_norm:
        again(&b.norm1, p, x + r * C, saved + k.mean1 + r, saved + k.rstd1 + r, n, C,
              scratch + w.normal1 + r * C)
    # forward: sum1 = x + dropout(heads @ projection_weight + projection_bias)
    cdef const floating* df = dropped(b, ATTENTION, dsum1, r, n, scratch + w.before1 + r * C)
    if b.projection_weight >= 0:
        back(b, p + b.projection_weight, df, n, C, C, False, dheads + r * C)
        if s.n == 1:
            gradients_of(b, s, df, saved + k.heads, n, C, C, dp, b.projection_weight,
                         b.projection_bias)
    else:
        dheads = <floating*> df - r * C
    # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
    if s.heads:
        meet(s)
    attend_all_backward(dheads, saved + k.qkv, saved + k.lse, offsets,
                        part_of(s, offsets, B, b.H, b.K), C, b.H, b.K, dqkv, scratch + w.attention)
    if s.heads:
        meet(s)
    # forward: q and k were turned
    if b.rotary:
        turn_rows(dqkv, W, offsets, <const int*> NULL, B, r, s.stop, table, b.H + b.K, C // b.H,
                  True)
    # forward: qkv = inner @ qkv_weight + qkv_bias
    if b.pre_norm:
        # inner = norm1(x), and x went into sum1
        back(b, p + b.qkv_weight, dqkv + r * W, n, C, W, False, dnormal)
        norm_back(&b.norm1, p, dnormal, x + r * C, saved + k.mean1 + r, saved + k.rstd1 + r, dsum1,
                  n, C, mine, dnorms + w.dweight1, dnorms + w.dbias1)
    else:
        copy(b, dsum1, n, mine)
        back(b, p + b.qkv_weight, dqkv + r * W, n, C, W, True, mine)
    if s.n == 1:
        gradients_of(b, s, dqkv, scratch + w.normal1 if b.pre_norm else x, n, C, W, dp,
                     b.qkv_weight, b.qkv_bias)
    return 0
