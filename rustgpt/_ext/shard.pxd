"""Owns which part of a kernel's work is a thread's.

Several threads may call a kernel for one batch, each with rows of its own; see `Shard` in
`reference/arrays.py`.
"""
from cpython.object cimport PyObject

from rustgpt._ext.barrier cimport Barrier, Gates, wait_at
from rustgpt._ext.checks cimport check_ints


cdef struct Shard:
    Py_ssize_t index, n     # which thread, of how many
    Py_ssize_t first, stop  # its rows
    bint heads              # whether attention divides its heads, not its texts
    Gates* gates            # where it meets the others, if that is a compiled barrier
    PyObject* barrier       # or else any other, to be asked with Python's lock; NULL if it is alone


cdef inline Py_ssize_t edge_of(Py_ssize_t size, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Where one of so many equal parts begins."""
    return size * part // parts


cdef inline Shard alone(Py_ssize_t N) noexcept nogil:
    """All of the work for N rows."""
    cdef Shard s
    s.index, s.n, s.first, s.stop, s.heads = 0, 1, 0, N, False
    s.gates, s.barrier = NULL, NULL
    return s


cdef inline Shard shard_of(object shard, object barrier, Py_ssize_t N) except *:
    """Return what `shard` says of a batch of N rows. The caller must keep its barrier, if any."""
    cdef Shard s = alone(N)
    cdef const int[::1] edges
    cdef Py_ssize_t i
    if shard is None:
        return s
    try:
        s.index, s.heads, edges = shard.index, shard.heads, shard.edges
        barrier.wait
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"shard must be a rustgpt.reference.arrays.Shard: {error}") from None
    check_ints("shard.edges", edges, edges.shape[0])
    s.n = edges.shape[0] - 1
    if not 0 <= s.index < s.n or edges[0] != 0 or edges[s.n] != N:
        raise ValueError(
            f"shard must have edges from 0 to the {N} rows, and an index below their number less 1"
        )
    for i in range(s.n):
        if edges[i + 1] < edges[i]:
            raise ValueError(f"shard must have edges that rise, but edges[{i + 1}] is less")
    s.first, s.stop = edges[s.index], edges[s.index + 1]
    if isinstance(barrier, Barrier):
        s.gates = &(<Barrier> barrier).gates
        if s.gates.n != s.n:
            raise ValueError(f"shard must have a barrier for {s.n} threads, got {s.gates.n}")
    elif s.n > 1:
        s.barrier = <PyObject*> barrier
    return s


cdef inline int meet(const Shard* s, Py_ssize_t looks=0) except -1 nogil:
    """Wait for the other threads, if there are any; see `wait_at`."""
    if s.gates != NULL:
        wait_at(s.gates, looks)
    elif s.barrier != NULL:
        with gil:
            (<object> s.barrier).wait()
    return 0
