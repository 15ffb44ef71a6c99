"""Owns what a token and its position begin with: the embedding look-up, which gathers rows forward
and scatter-adds them backward, and rotary positions."""
from cython cimport floating

from rustgpt._ext.checks cimport check_indices, check_matrix, check_offsets
from rustgpt._ext.rotary cimport turn_rows
from rustgpt._ext.shard cimport Shard, edge_of, shard_of


def embedding_forward(
    const int[::1] ids not None,             # IN (N,)
    const int[::1] positions not None,       # IN (N,): of each row in its text
    const floating[:, ::1] tokens not None,  # IN (V, C)
    const floating[:, ::1] places,           # IN (S, C), or None: positions are no vectors
    floating[:, ::1] out not None,           # OUT (N, C)
    object shard=None,                       # IN: this thread's, of several: it has some rows
):
    """out = tokens[ids] + places[positions], row by row."""
    cdef Py_ssize_t N = ids.shape[0], C = tokens.shape[1], n, c
    cdef Shard s = shard_of(shard, getattr(shard, "barrier", None), N)
    check_matrix("tokens", tokens, tokens.shape[0], C)
    check_matrix[floating]("out", out, N, C)
    check_indices("ids", ids, N, 0, tokens.shape[0])
    if places is not None:
        check_matrix("places", places, places.shape[0], C)
        check_indices("positions", positions, N, 0, places.shape[0])
    with nogil:
        for n in range(s.first, s.stop):
            for c in range(C):
                out[n, c] = tokens[ids[n], c]
            for c in range(C if places is not None else 0):
                out[n, c] += places[positions[n], c]


def embedding_backward(
    const floating[:, ::1] dout not None,    # IN (N, C)
    const int[::1] ids not None,             # IN (N,)
    const int[::1] positions not None,       # IN (N,): of each row in its text
    floating[:, ::1] dtokens not None,       # IN/OUT (V, C): added to
    floating[:, ::1] dplaces,                # IN/OUT (S, C): added to; or None
    object shard=None,                       # IN: this thread's, of several: it has some columns
):
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n], in the order of n."""
    cdef Py_ssize_t N = ids.shape[0], C = dtokens.shape[1], n, c
    cdef Shard s = shard_of(shard, getattr(shard, "barrier", None), N)
    cdef Py_ssize_t first = edge_of(C, s.index, s.n), stop = edge_of(C, s.index + 1, s.n)
    check_matrix("dout", dout, N, C)
    check_matrix[floating]("dtokens", dtokens, dtokens.shape[0], C)
    check_indices("ids", ids, N, 0, dtokens.shape[0])
    if dplaces is not None:
        check_matrix[floating]("dplaces", dplaces, dplaces.shape[0], C)
        check_indices("positions", positions, N, 0, dplaces.shape[0])
    with nogil:
        for n in range(N):
            for c in range(first, stop):
                dtokens[ids[n], c] += dout[n, c]
            for c in range(first, stop if dplaces is not None else first):
                dplaces[positions[n], c] += dout[n, c]


def rotary(
    floating[:, ::1] x not None,            # IN/OUT (N, columns): the first n_heads * D are turned
    const int[::1] offsets not None,        # IN (B + 1,)
    const floating[:, ::1] table not None,  # IN (S, D): D / 2 cosines and as many sines
    Py_ssize_t n_heads,                     # IN: of queries and keys together
    bint back=False,                        # IN: by the opposite angles
    const int[::1] starts=None,             # IN (B,): how many rows of each text came before
):
    """(a, b) = (a cos - b sin, b cos + a sin), a and b being the halves of each head."""
    cdef Py_ssize_t N = x.shape[0], D = table.shape[1], S = table.shape[0], B, b
    cdef Py_ssize_t longest = check_offsets(offsets, N)
    cdef const int* starts0 = NULL
    B = offsets.shape[0] - 1
    if starts is not None:
        starts0 = check_indices("starts", starts, B, 0, S + 1)
        for b in range(B):
            longest = max(longest, <Py_ssize_t> starts[b] + offsets[b + 1] - offsets[b])
    if longest > S:
        raise ValueError(f"table must have a row for each of {longest} positions, got {S}")
    if D % 2 or n_heads < 0 or n_heads > x.shape[1] // max(D, 1):
        raise ValueError(
            f"table must have an even number of columns, and x {n_heads} times as many, "
            f"got {D} and {x.shape[1]}"
        )
    cdef floating* x0 = check_matrix[floating]("x", x, N, x.shape[1])
    cdef floating* table0 = check_matrix("table", table, S, D)
    with nogil:
        turn_rows(x0, x.shape[1], &offsets[0], starts0, B, 0, N if D else 0, table0, n_heads, D,
                  back)
