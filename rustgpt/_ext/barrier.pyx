"""Owns how threads wait for each other: asleep, and without Python's lock.

`threading.Barrier` does the same in Python, where each thread that wakes up needs Python's lock
several times before it goes on. Here one call of the system puts a thread to sleep, and one wakes
it.

Beside another program, a thread may have half of a processor while one that waits for it has a
whole one for nothing. The system may take long to see that; so the one that waits lends it.
"""
import threading

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, NOWAIT_LOCK, WAIT_LOCK,
)

from rustgpt._ext.processors cimport (
    Processors, bring_to, find_processors, processor_here, send_off, thread_here,
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
        self.gates.threads = <Thread*> PyMem_Calloc(n, sizeof(Thread))
        self.gates.before = <Thread*> PyMem_Calloc(n, sizeof(Thread))
        self.gates.gates = <PyThread_type_lock*> PyMem_Calloc(2 * n, sizeof(PyThread_type_lock))
        if self.gates.lock == NULL or self.gates.gates == NULL:
            raise MemoryError
        if self.gates.threads == NULL or self.gates.before == NULL:
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
        PyMem_Free(self.gates.before)
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
    cdef Thread me
    cdef bint broken, crowded = False
    PyThread_acquire_lock(g.lock, WAIT_LOCK)
    me.number, me.processor, me.moving = 0, -1, False
    if g.lends:
        me.number, me.processor = thread_here(), processor_here()
        find_processors(0, &me.allowed)
    cdef unsigned long long meeting = g.meeting
    if not g.broken:
        crowded = arrive(g, &me)
        if g.here < g.n:
            gate = g.gates[g.second * (g.n - 1) + g.here - 1]
        else:
            open_gates(g)
    broken = g.broken
    PyThread_release_lock(g.lock)
    if gate != NULL:
        wait_and_lend(g, meeting, gate, me.processor)
        broken = g.broken
    elif crowded:
        leave(g, &me)
    if broken:
        with gil:
            raise threading.BrokenBarrierError
    return 0


cdef bint arrive(Gates* g, Thread* me) noexcept nogil:
    """Be counted; return whether this is the last, and one who waits did so where it runs."""
    cdef Py_ssize_t i
    cdef bint crowded = False
    for i in range(g.here):
        crowded |= g.threads[i].processor == me.processor
    me.moving = crowded and me.processor >= 0 and g.here == g.n - 1
    g.threads[g.here] = me[0]
    g.here += 1
    return me.moving


cdef void leave(Gates* g, const Thread* me) noexcept nogil:
    """Leave a processor to one who waited there, which it needs now."""
    cdef Py_ssize_t i
    send_off(me.processor, &me.allowed)
    PyThread_acquire_lock(g.lock, WAIT_LOCK)
    for i in range(g.n):
        if g.before[i].number == me.number:
            g.before[i].moving = False
    PyThread_release_lock(g.lock)


cdef void wait_and_lend(
    Gates* g, unsigned long long meeting, PyThread_type_lock gate, int processor
) noexcept nogil:
    """Wait for the last; if it takes long, bring one who has not arrived to this processor."""
    if processor >= 0:
        if PyThread_acquire_lock_timed(gate, PATIENCE, 0) == PY_LOCK_ACQUIRED:
            return
        # Nobody can arrive, or begin to move, while this is done.
        PyThread_acquire_lock(g.lock, WAIT_LOCK)
        if g.meeting == meeting and not g.lent and not g.broken:
            lend(g, processor)
        PyThread_release_lock(g.lock)
    PyThread_acquire_lock(gate, WAIT_LOCK)


cdef void lend(Gates* g, int processor) noexcept nogil:
    """Bring here one that came to the meeting before, and not yet to this, if any is known."""
    cdef Py_ssize_t i, j
    cdef bint missing
    cdef Processors allowed
    for i in range(g.n):
        missing = g.before[i].number != 0
        for j in range(g.here):
            missing &= g.threads[j].number != g.before[i].number
        if missing:
            g.lent = True  # once a meeting: others who wait would bring it away again
            if g.before[i].moving:  # and may not be allowed everywhere at this moment
                allowed = g.before[i].allowed
            else:
                find_processors(g.before[i].number, &allowed)
            bring_to(processor, &allowed, g.before[i].number)
            return


cdef void open_gates(Gates* g) noexcept nogil:
    """Let all pass who wait, and begin the next meeting at the other gates."""
    cdef Py_ssize_t i
    for i in range(min(g.here, g.n - 1)):
        PyThread_release_lock(g.gates[g.second * (g.n - 1) + i])
    g.threads, g.before = g.before, g.threads
    g.here, g.second, g.lent = 0, not g.second, False
    g.meeting += 1
