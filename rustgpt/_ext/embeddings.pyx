"""Owns the embedding look-up: gather rows forward, scatter-add them backward.

Each text begins at position 0; `offsets` says where it does.
"""
from cython cimport floating

from rustgpt._ext.checks cimport (
    check_aligned, check_indices, check_matrix, check_offsets, index_address, matrix_address,
)
from rustgpt._ext.share cimport Share, edge_of, edges_of, share_of


cdef int check_look_up(
    const int[::1] ids, const int[::1] offsets, Py_ssize_t start, Py_ssize_t V, Py_ssize_t S
) except -1:
    """Raise ValueError unless every row of the batch has its row in both tables."""
    cdef Py_ssize_t longest = check_offsets(offsets, ids.shape[0])
    check_indices("ids", ids, 0, V)
    if start < 0 or start > S or longest > S - start:
        raise ValueError(
            f"places must have a row for each of {longest} positions from {start} on, got {S}"
        )
    return 0


def embedding_forward(
    const int[::1] ids not None,             # IN (N,)
    const int[::1] offsets not None,         # IN (B + 1,)
    Py_ssize_t start,                        # IN: position of each text's first row
    const floating[:, ::1] tokens not None,  # IN (V, C)
    const floating[:, ::1] places not None,  # IN (S, C)
    floating[:, ::1] out not None,           # OUT (N, C)
    object share=None,                       # IN: this thread's, of several: it has some rows
):
    """out[n] = tokens[ids[n]] + places[start + n - offsets[b]], b being the text of row n."""
    check_aligned(
        matrix_address(tokens) | matrix_address(places) | matrix_address[floating](out),
        sizeof(floating), index_address(ids) | index_address(offsets),
    )
    cdef Py_ssize_t N = ids.shape[0], C = tokens.shape[1]
    cdef const int[::1] edges = edges_of(share)
    cdef Share s = share_of(share, edges, None, N)
    cdef Py_ssize_t b, n, c, place
    check_matrix("places", places.shape, places.shape[0], C)
    check_matrix("out", out.shape, N, C)
    check_look_up(ids, offsets, start, tokens.shape[0], places.shape[0])
    with nogil:
        for b in range(offsets.shape[0] - 1):
            for n in range(max(s.first, offsets[b]), min(s.stop, offsets[b + 1])):
                place = start + n - offsets[b]
                for c in range(C):
                    out[n, c] = tokens[ids[n], c] + places[place, c]


def embedding_backward(
    const floating[:, ::1] dout not None,    # IN (N, C)
    const int[::1] ids not None,             # IN (N,)
    const int[::1] offsets not None,         # IN (B + 1,)
    floating[:, ::1] dtokens not None,       # IN/OUT (V, C): added to
    floating[:, ::1] dplaces not None,       # IN/OUT (S, C): added to
    object share=None,                       # IN: this thread's, of several: it has some columns
):
    """dtokens[ids[n]] += dout[n]; dplaces[n - offsets[b]] += dout[n], in the order of n."""
    check_aligned(
        matrix_address(dout) | matrix_address[floating](dtokens) |
        matrix_address[floating](dplaces), sizeof(floating), index_address(ids) |
        index_address(offsets),
    )
    cdef Py_ssize_t N = ids.shape[0], C = dtokens.shape[1]
    cdef const int[::1] edges = edges_of(share)
    cdef Share s = share_of(share, edges, None, N)
    cdef Py_ssize_t first = edge_of(C, s.index, s.n), stop = edge_of(C, s.index + 1, s.n)
    cdef Py_ssize_t b, n, c
    check_matrix("dout", dout.shape, N, C)
    check_matrix("dplaces", dplaces.shape, dplaces.shape[0], C)
    check_look_up(ids, offsets, 0, dtokens.shape[0], dplaces.shape[0])
    with nogil:
        for b in range(offsets.shape[0] - 1):
            for n in range(offsets[b], offsets[b + 1]):
                for c in range(first, stop):
                    dtokens[ids[n], c] += dout[n, c]
                    dplaces[n - offsets[b], c] += dout[n, c]
