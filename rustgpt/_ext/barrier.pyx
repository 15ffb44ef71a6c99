"""Owns how threads wait for each other: asleep, and without Python's lock.

`threading.Barrier` does the same in Python, where each thread that wakes up needs Python's lock
several times before it goes on. Here one call of the system puts a thread to sleep, and one wakes
it.
"""
import threading

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, NOWAIT_LOCK, WAIT_LOCK,
)


cdef class Barrier:
    """What n threads wait at for each other, again and again.

    Who arrives early sleeps at a gate of its own, which the last one opens. There are two sets of
    gates that take turns: one that is through may be at the next meeting before another has passed
    its gate.

    Parameters
    ----------
    n
        How many they are.
    """

    def __cinit__(self, Py_ssize_t n):
        cdef Py_ssize_t i
        if not 1 <= n < 2**20:
            raise ValueError(f"n must be 1 to {2**20 - 1}, got {n}")
        self.gates.n = n
        self.gates.lock = PyThread_allocate_lock()
        self.gates.gates = <PyThread_type_lock*> PyMem_Calloc(2 * n, sizeof(PyThread_type_lock))
        if self.gates.lock == NULL or self.gates.gates == NULL:
            raise MemoryError
        for i in range(2 * (n - 1)):
            self.gates.gates[i] = PyThread_allocate_lock()
            if self.gates.gates[i] == NULL:
                raise MemoryError
            PyThread_acquire_lock(self.gates.gates[i], WAIT_LOCK)

    def __dealloc__(self):
        cdef Py_ssize_t i
        cdef PyThread_type_lock gate
        if self.gates.gates != NULL:
            for i in range(2 * (self.gates.n - 1)):
                gate = self.gates.gates[i]
                if gate != NULL:  # a lock is given back open
                    PyThread_acquire_lock(gate, NOWAIT_LOCK)
                    PyThread_release_lock(gate)
                    PyThread_free_lock(gate)
            PyMem_Free(self.gates.gates)
        if self.gates.lock != NULL:
            PyThread_free_lock(self.gates.lock)

    def wait(self):
        """Return when all threads have called this equally often.

        Raises
        ------
        threading.BrokenBarrierError
            If one of them has called `abort`, or does so before all are here.
        """
        with nogil:
            wait_at(&self.gates)

    def abort(self):
        """Let nobody wait here any more."""
        with nogil:
            PyThread_acquire_lock(self.gates.lock, WAIT_LOCK)
            self.gates.broken = True
            open_gates(&self.gates)
            PyThread_release_lock(self.gates.lock)


cdef int wait_at(Gates* g, Py_ssize_t looks=0) except -1 nogil:
    """`Barrier.wait`, after so many looks whether the gate is open, some 20 nanoseconds each.

    To be put to sleep and woken takes longer than to wait for who is nearly here.
    """
    cdef PyThread_type_lock gate = NULL
    cdef bint broken
    PyThread_acquire_lock(g.lock, WAIT_LOCK)
    if not g.broken:
        g.here += 1
        if g.here < g.n:
            gate = g.gates[g.second * (g.n - 1) + g.here - 1]
        else:
            open_gates(g)
    broken = g.broken
    PyThread_release_lock(g.lock)
    if gate != NULL:
        while looks > 0 and not PyThread_acquire_lock(gate, NOWAIT_LOCK):
            looks -= 1
        if looks == 0:
            PyThread_acquire_lock(gate, WAIT_LOCK)
        broken = g.broken
    if broken:
        with gil:
            raise threading.BrokenBarrierError
    return 0


cdef void open_gates(Gates* g) noexcept nogil:
    """Let all pass who wait, and begin the next meeting at the other gates."""
    cdef Py_ssize_t i
    for i in range(min(g.here, g.n - 1)):
        PyThread_release_lock(g.gates[g.second * (g.n - 1) + i])
    g.here, g.second = 0, not g.second
