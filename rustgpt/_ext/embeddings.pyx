"""Owns the embedding look-up: gather rows forward, scatter-add them backward."""
from cython cimport floating

from rustgpt._ext.checks cimport check_indices, check_matrix
from rustgpt._ext.shard cimport Shard, edge_of, shard_of


def embedding_forward(
    const int[::1] ids not None,             # IN (N,)
    const int[::1] positions not None,       # IN (N,): of each row in its text
    const floating[:, ::1] tokens not None,  # IN (V, C)
    const floating[:, ::1] places not None,  # IN (S, C)
    floating[:, ::1] out not None,           # OUT (N, C)
    object shard=None,                       # IN: this thread's, of several: it has some rows
):
    """out = tokens[ids] + places[positions], row by row."""
    cdef Py_ssize_t N = ids.shape[0], C = tokens.shape[1], n, c
    cdef Shard s = shard_of(shard, getattr(shard, "barrier", None), N)
    check_matrix("tokens", tokens, tokens.shape[0], C)
    check_matrix("places", places, places.shape[0], C)
    check_matrix[floating]("out", out, N, C)
    check_indices("ids", ids, N, 0, tokens.shape[0])
    check_indices("positions", positions, N, 0, places.shape[0])
    with nogil:
        for n in range(s.first, s.stop):
            for c in range(C):
                out[n, c] = tokens[ids[n], c] + places[positions[n], c]


def embedding_backward(
    const floating[:, ::1] dout not None,    # IN (N, C)
    const int[::1] ids not None,             # IN (N,)
    const int[::1] positions not None,       # IN (N,): of each row in its text
    floating[:, ::1] dtokens not None,       # IN/OUT (V, C): added to
    floating[:, ::1] dplaces not None,       # IN/OUT (S, C): added to
    object shard=None,                       # IN: this thread's, of several: it has some columns
):
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n], in the order of n."""
    cdef Py_ssize_t N = ids.shape[0], C = dtokens.shape[1], n, c
    cdef Shard s = shard_of(shard, getattr(shard, "barrier", None), N)
    cdef Py_ssize_t first = edge_of(C, s.index, s.n), stop = edge_of(C, s.index + 1, s.n)
    check_matrix("dout", dout, N, C)
    check_matrix[floating]("dtokens", dtokens, dtokens.shape[0], C)
    check_matrix[floating]("dplaces", dplaces, dplaces.shape[0], C)
    check_indices("ids", ids, N, 0, dtokens.shape[0])
    check_indices("positions", positions, N, 0, dplaces.shape[0])
    with nogil:
        for n in range(N):
            for c in range(first, stop):
                dtokens[ids[n], c] += dout[n, c]
                dplaces[positions[n], c] += dout[n, c]
