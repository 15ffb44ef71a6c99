"""Owns the embedding look-up: gather rows forward, scatter-add them backward."""
from cython cimport floating

from rustgpt._ext.checks cimport check_indices, check_matrix, check_vector
from rustgpt._ext.share cimport Share, edge_of, edges_of, share_of


def embedding_forward(
    const int[::1] ids not None,                 # IN (N,)
    const int[::1] positions not None,           # IN (N,)
    const floating[:, ::1] tokens not None,      # IN (V, C)
    const floating[:, ::1] places not None,      # IN (max_seq_len, C)
    floating[:, ::1] out not None,               # OUT (N, C)
):
    """out[n] = tokens[ids[n]] + places[positions[n]]."""
    cdef Py_ssize_t N = ids.shape[0], C = tokens.shape[1]
    cdef Py_ssize_t n, c
    check_vector("positions", positions.shape, N)
    check_matrix("places", places.shape, places.shape[0], C)
    check_matrix("out", out.shape, N, C)
    check_indices("ids", ids, 0, tokens.shape[0])
    check_indices("positions", positions, 0, places.shape[0])
    with nogil:
        for n in range(N):
            for c in range(C):
                out[n, c] = tokens[ids[n], c] + places[positions[n], c]


def embedding_backward(
    const floating[:, ::1] dout not None,   # IN (N, C)
    const int[::1] ids not None,            # IN (N,)
    const int[::1] positions not None,      # IN (N,)
    floating[:, ::1] dtokens not None,      # IN/OUT (V, C): added to
    floating[:, ::1] dplaces not None,      # IN/OUT (max_seq_len, C): added to
    object share=None,                      # IN: this thread's, of several: it has some columns
):
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n], in the order of n."""
    cdef Py_ssize_t N = ids.shape[0], C = dtokens.shape[1]
    cdef const int[::1] edges = edges_of(share)
    cdef Share s = share_of(share, edges, N)
    cdef Py_ssize_t first = edge_of(C, s.index, s.n), stop = edge_of(C, s.index + 1, s.n)
    cdef Py_ssize_t n, c
    check_matrix("dout", dout.shape, N, C)
    check_vector("positions", positions.shape, N)
    check_matrix("dplaces", dplaces.shape, dplaces.shape[0], C)
    check_indices("ids", ids, 0, dtokens.shape[0])
    check_indices("positions", positions, 0, dplaces.shape[0])
    with nogil:
        for n in range(N):
            for c in range(first, stop):
                dtokens[ids[n], c] += dout[n, c]
                dplaces[positions[n], c] += dout[n, c]
