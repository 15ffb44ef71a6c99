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
    Processors, allow, bring_to, find_processors, keep_off, processor_here, thread_here, time_of,
)

cdef extern from *:
    """
    #if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    #define RUSTGPT_PAUSE() __builtin_ia32_pause()
    #elif defined(__GNUC__) && defined(__aarch64__)
    #define RUSTGPT_PAUSE() __asm__ volatile("isb")
    #elif defined(_MSC_VER) && defined(_M_X64)
    #include <immintrin.h>
    #define RUSTGPT_PAUSE() _mm_pause()
    #else
    #define RUSTGPT_PAUSE()
    #endif
    """
    void pause "RUSTGPT_PAUSE"() noexcept nogil

cdef extern from "pythread.h" nogil:
    enum:
        PY_LOCK_ACQUIRED
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr)


cdef enum:
    # Microseconds after which a waiting thread looks whether to lend its processor; then it looks
    # again after twice as long each time, up to so many for each of the threads.
    PATIENCE = 100
    PATIENCE_AT_MOST = 400
    # Looks at a lock before a thread of a crew sleeps. On Zen 5 they take 15 microseconds, and to
    # fall asleep and be woken 21; where a pause is longer, they take up to 40.
    LOOKS = 600


# Held while a thread is moved: two who move one thread would mistake what the other has done for
# where it may run. Nobody waits for it: a forked process may find it held for ever.
cdef PyThread_type_lock moving = PyThread_allocate_lock()
if moving == NULL:
    raise MemoryError


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
    breaks
        Whether after every second meeting the threads do what is unknown here. Then nobody is
        moved who is through: a thread that it starts may run where it might at that moment.

    Attributes
    ----------
    lent
        How often a processor was lent.
    """

    def __cinit__(self, Py_ssize_t n, bint lends=False, bint breaks=False):
        cdef Py_ssize_t i
        if not 1 <= n < 2**20:
            raise ValueError(f"n must be 1 to {2**20 - 1}, got {n}")
        self.gates.n, self.gates.lends, self.gates.breaks = n, lends, breaks
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

    @property
    def lent(self):
        return self.gates.lent

    def abort(self):
        """Let nobody wait here any more."""
        with nogil:
            PyThread_acquire_lock(self.gates.lock, WAIT_LOCK)
            self.gates.broken = True
            open_gates(&self.gates, -1)
            PyThread_release_lock(self.gates.lock)


cdef int wait_at(Gates* g) except -1 nogil:
    """`Barrier.wait`."""
    cdef PyThread_type_lock gate = NULL
    cdef bint broken, sent = False
    acquire(g.lock, g.watches)
    cdef int processor = processor_here() if g.lends else -1
    cdef unsigned long long meeting = g.meeting
    cdef Py_ssize_t place = g.here
    if not g.broken:
        arrive(g, processor, &sent)
        if g.here < g.n:
            gate = g.gates[g.second * (g.n - 1) + place]
        else:
            open_gates(g, processor)
    broken = g.broken
    PyThread_release_lock(g.lock)
    if gate != NULL:
        if processor < 0 or not wait_and_lend(g, meeting, place, gate):
            acquire(gate, g.watches)
        broken = g.broken
    cdef bint leaves = g.breaks and meeting % 2 == 1
    if sent or leaves:
        PyThread_acquire_lock(g.lock, WAIT_LOCK)  # until nobody is moving this thread
        if leaves:
            g.before[place].number = 0
        PyThread_release_lock(g.lock)
    if broken:
        with gil:
            raise threading.BrokenBarrierError
    return 0


cdef void acquire(PyThread_type_lock lock, bint watches) noexcept nogil:
    """Wait for a lock, at first awake if one `watches`."""
    cdef int looks = LOOKS if watches else 0
    while looks > 0:
        if PyThread_acquire_lock(lock, NOWAIT_LOCK):
            return
        pause()
        looks -= 1
    PyThread_acquire_lock(lock, WAIT_LOCK)


cdef void arrive(Gates* g, int processor, bint* sent) noexcept nogil:
    g.threads[g.here].number = thread_here() if processor >= 0 else 0
    g.threads[g.here].processor = processor
    g.threads[g.here].sent = sent
    g.here += 1


cdef bint wait_and_lend(
    Gates* g, unsigned long long meeting, Py_ssize_t place, PyThread_type_lock gate
) noexcept nogil:
    """Wait for the last, and lend this processor to those that stand still; return whether the
    gate was passed.
    """
    cdef long long patience = PATIENCE, before, now
    cdef Py_ssize_t lent, turn = 0
    cdef int late
    while True:
        PyThread_acquire_lock(g.lock, WAIT_LOCK)
        late, lent = 0, g.lent
        if g.meeting == meeting and not g.broken:
            late = one_missing(g, turn)
        PyThread_release_lock(g.lock)
        before = time_of(late) if late != 0 else -1
        if before < 0:
            return False
        if PyThread_acquire_lock_timed(gate, patience, 0) == PY_LOCK_ACQUIRED:
            return True
        now = time_of(late)
        if now >= 0 and 2 * (now - before) < patience:
            lend(g, meeting, place, late, lent)
        patience = min(2 * patience, PATIENCE_AT_MOST * <long long> g.n)
        turn += 1


cdef bint is_among(int number, const Thread* threads, Py_ssize_t n) noexcept nogil:
    """Whether one of n threads has this number."""
    cdef Py_ssize_t i
    for i in range(n):
        if threads[i].number == number:
            return True
    return False


cdef bint is_missing(const Gates* g, int number) noexcept nogil:
    """Whether a thread, whose number is known, has not arrived."""
    return number != 0 and not is_among(number, g.threads, g.here)


cdef int one_missing(const Gates* g, Py_ssize_t turn) noexcept nogil:
    """Return the number of one that came to the meeting before and not yet to this, 0 if none is
    known; each turn of another.
    """
    cdef Py_ssize_t i
    cdef int found
    for i in range(g.n):
        found = g.before[(turn + i) % g.n].number
        if is_missing(g, found):
            return found
    return 0


cdef void lend(
    Gates* g, unsigned long long meeting, Py_ssize_t place, int late, Py_ssize_t lent
) noexcept nogil:
    """Bring a thread to this processor, unless another one was first, or it has arrived or does
    now what is unknown here.
    """
    PyThread_acquire_lock(g.lock, WAIT_LOCK)  # it can do neither while this is done
    cdef bint wanted = g.meeting == meeting and not g.broken and g.lent == lent
    if wanted and is_missing(g, late) and is_among(late, g.before, g.n):
        g.threads[place].processor = processor_here()
        if PyThread_acquire_lock(moving, NOWAIT_LOCK):
            g.lent += bring_to(g.threads[place].processor, late)
            PyThread_release_lock(moving)
    PyThread_release_lock(g.lock)


cdef void open_gates(Gates* g, int processor) noexcept nogil:
    """Let all pass who wait, and begin the next meeting at the other gates.

    One whose processor was lent wakes up on another than `processor`, which is still in use. There
    a sleeper goes first: if the thread in use went instead, it would have to wait for its turn.
    """
    cdef Py_ssize_t i
    cdef PyThread_type_lock gate
    for i in range(min(g.here, g.n - 1)):
        gate = g.gates[g.second * (g.n - 1) + i]
        if processor < 0 or g.threads[i].processor != processor:
            PyThread_release_lock(gate)
        else:
            open_elsewhere(gate, &g.threads[i], processor)
    g.threads, g.before = g.before, g.threads
    g.here, g.second = 0, not g.second
    g.meeting += 1


cdef void open_elsewhere(
    PyThread_type_lock gate, const Thread* thread, int processor
) noexcept nogil:
    """Open a gate for a thread that shall not go on where it waits."""
    cdef Processors allowed
    cdef int number = thread.number
    if not PyThread_acquire_lock(moving, NOWAIT_LOCK):
        PyThread_release_lock(gate)
        return
    find_processors(number, &allowed)
    keep_off(processor, &allowed, number)
    thread.sent[0] = True  # it stays until it may run where it might before
    PyThread_release_lock(gate)
    allow(&allowed, number)
    PyThread_release_lock(moving)
