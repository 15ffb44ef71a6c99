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
from libc.string cimport memcpy

from rustgpt._ext.processors cimport (
    bring_to, processor_here, send_off, thread_here,
)

cdef extern from "pythread.h" nogil:
    enum:
        PY_LOCK_ACQUIRED
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)


cdef enum:
    # Microseconds after which a waiting thread lends its processor.
    PATIENCE = 500


cdef class Barrier:
    """What n threads wait at for each other, again and again.

    Who arrives early sleeps at a gate of its own, which the last one opens. There are two sets of
    gates that take turns: one that is through may be at the next meeting before another has passed
    its gate.

    Parameters
    ----------
    n
        How many they are.
    lends
        Whether one who waits for long lends its processor to another, if the system lets it: Linux.
    """

    def __cinit__(self, Py_ssize_t n, bint lends=False):
        cdef Py_ssize_t i
        if not 1 <= n < 2**20:
            raise ValueError(f"n must be 1 to {2**20 - 1}, got {n}")
        self.gates.n, self.gates.lends = n, lends
        self.gates.lock = PyThread_allocate_lock()
        self.gates.threads = <Thread*> PyMem_Calloc(2 * n, sizeof(Thread))
        self.gates.gates = <PyThread_type_lock*> PyMem_Calloc(2 * n, sizeof(PyThread_type_lock))
        if self.gates.lock == NULL or self.gates.gates == NULL or self.gates.threads == NULL:
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
        PyMem_Free(self.gates.threads)
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


cdef int wait_at(Gates* g) except -1 nogil:
    """`Barrier.wait`."""
    cdef PyThread_type_lock gate = NULL
    cdef int processor = processor_here() if g.lends else -1
    cdef bint crowded = False
    PyThread_acquire_lock(g.lock, WAIT_LOCK)
    if not g.broken:
        crowded = arrive(g, processor)
        if g.here < g.n:
            gate = g.gates[g.second * (g.n - 1) + g.here - 1]
        else:
            open_gates(g)
    cdef bint broken = g.broken
    PyThread_release_lock(g.lock)
    if gate != NULL:
        if processor < 0:
            PyThread_acquire_lock(gate, WAIT_LOCK)
        else:
            wait_and_lend(g, gate, processor)
        broken = g.broken
    elif crowded:
        send_off(processor)
    if broken:
        with gil:
            raise threading.BrokenBarrierError
    return 0


cdef bint arrive(Gates* g, int processor) noexcept nogil:
    """Be counted; return whether one who waits did so where this thread runs."""
    cdef Py_ssize_t i
    cdef bint crowded = False
    for i in range(g.here):
        crowded |= g.threads[i].processor == processor
    g.threads[g.here].number = thread_here() if g.lends else 0
    g.threads[g.here].processor = processor
    g.here += 1
    return crowded and processor >= 0


cdef void wait_and_lend(Gates* g, PyThread_type_lock gate, int processor) noexcept nogil:
    """Wait for one who has not arrived; if it takes long, bring it to this thread's processor.

    Where it is, another program may be running, and the system may take long to see that here is
    nobody. Afterwards it may run anywhere again.
    """
    cdef int missing
    if PyThread_acquire_lock_timed(gate, PATIENCE, 0) == PY_LOCK_ACQUIRED:
        return
    missing = one_missing(g)
    if missing != 0:
        bring_to(processor, missing)
    PyThread_acquire_lock(gate, WAIT_LOCK)


cdef int one_missing(Gates* g) noexcept nogil:
    """The number of one that came to the meeting before, and not yet to this; 0 if none is known.
    """
    cdef Py_ssize_t i, j
    cdef int missing
    PyThread_acquire_lock(g.lock, WAIT_LOCK)
    for i in range(g.n):
        missing = g.threads[g.n + i].number
        for j in range(g.here):
            if g.threads[j].number == missing:
                missing = 0
        if missing != 0:
            break
    PyThread_release_lock(g.lock)
    return missing


cdef void open_gates(Gates* g) noexcept nogil:
    """Let all pass who wait, and begin the next meeting at the other gates."""
    cdef Py_ssize_t i
    for i in range(min(g.here, g.n - 1)):
        PyThread_release_lock(g.gates[g.second * (g.n - 1) + i])
    memcpy(g.threads + g.n, g.threads, g.n * sizeof(Thread))
    g.here, g.second = 0, not g.second
