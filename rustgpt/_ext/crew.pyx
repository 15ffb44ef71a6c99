"""Owns threads that help inside of a kernel, and sleep there until the next one.

The kernels of a small step take a few dozen to few hundred microseconds each. If several threads
called them, each would need Python's lock in between, for which it waits longer than for the
arithmetic. A crew's helpers run no Python: one thread calls the kernels, and each kernel wakes the
helpers, does its own part, and waits until theirs are done.

To fall asleep and be woken takes as long as some of these kernels. So whoever waits here looks for
about so long, and no longer, whether it may go on; then it sleeps.

Linux likes to wake a thread on the processor of the one that wakes it, and where there are few it
does not look for an idle one. So it is told to keep the helpers off the processor of the caller.
"""
import threading

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock, NOWAIT_LOCK, WAIT_LOCK,
)

from rustgpt._ext.barrier cimport Barrier, acquire
from rustgpt._ext.processors cimport (
    Processors, find_processors, keep_off, process_here, processor_here, thread_here,
)


cdef class Crew:
    """A few threads for one kernel at a time. They are there while it is entered, once.

    What a kernel computes does not depend on its crew, not by a bit. In a process that was forked
    from the crew's, which has no threads but the forking one, kernels do without it.

    Parameters
    ----------
    n
        How many they are, with the one that calls the kernels.
    """

    def __cinit__(self, Py_ssize_t n):
        cdef Py_ssize_t i
        self.barrier = Barrier(n)
        self.barrier.gates.watches = True
        self.n, self.threads = n, []
        self.calling = closed()
        self.numbers = <int*> PyMem_Calloc(n, sizeof(int))
        self.go = <PyThread_type_lock*> PyMem_Calloc(n, sizeof(PyThread_type_lock))
        self.done = <PyThread_type_lock*> PyMem_Calloc(n, sizeof(PyThread_type_lock))
        if self.numbers == NULL or self.go == NULL or self.done == NULL:
            raise MemoryError
        for i in range(n - 1):
            self.go[i], self.done[i] = closed(), closed()

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n - 1):
            if self.go != NULL:
                free(self.go[i])
            if self.done != NULL:
                free(self.done[i])
        PyMem_Free(self.numbers)
        PyMem_Free(self.go)
        PyMem_Free(self.done)
        free(self.calling)

    def __enter__(self):
        if self.entered:
            raise RuntimeError("a crew cannot be entered twice")
        self.entered, self.process, self.processor = True, process_here(), -1
        try:
            for i in range(self.n - 1):
                self.threads.append(
                    threading.Thread(target=self._help, args=(i,), name="rustgpt", daemon=True)
                )
                self.threads[i].start()
            with nogil:
                await_helpers(self)  # each says which it is
        except BaseException:
            self._go_home()
            raise
        PyThread_release_lock(self.calling)
        return self

    def __exit__(self, *_):
        if not self.entered or self.left:
            raise RuntimeError("a crew must be entered once, and left once")
        self.left = True
        with nogil:
            PyThread_acquire_lock(self.calling, WAIT_LOCK)
        self._go_home()

    def __reduce__(self):
        return type(None), ()  # a copy of a layer has no crew

    def _go_home(self):
        cdef Py_ssize_t i
        self.work = NULL
        for i in range(len(self.threads)):
            PyThread_release_lock(self.go[i])
        for thread in self.threads:
            # Ctrl-C may have come before it was known to run; then it goes by itself.
            if thread.ident is not None:
                thread.join()
        self.threads.clear()

    def _help(self, Py_ssize_t i):
        self.numbers[i] = thread_here()
        with nogil:
            PyThread_release_lock(self.done[i])
            PyThread_acquire_lock(self.go[i], WAIT_LOCK)
            while self.work != NULL:
                self.job(self.work, i + 1)
                PyThread_release_lock(self.done[i])
                acquire(self.go[i], True)


cdef bint is_at_hand(Crew crew) noexcept:
    """Whether a crew can help: not alone, nor where its process was forked."""
    return crew.n > 1 and not (crew.entered and crew.process != process_here())


cdef int run(Crew crew, Job job, const void* work) except -1:
    """Let a crew do all parts of a kernel's work; without one, do the first, which is then all."""
    cdef Py_ssize_t i
    if crew is None:
        with nogil:
            job(work, 0)
        return 0
    if not PyThread_acquire_lock(crew.calling, NOWAIT_LOCK):
        raise ValueError("crew must be entered, and be at work on one kernel at a time")
    with nogil:
        follow(crew)
        crew.job, crew.work = job, work
        for i in range(crew.n - 1):
            PyThread_release_lock(crew.go[i])
        job(work, 0)
        await_helpers(crew)
        PyThread_release_lock(crew.calling)
    return 0


cdef void await_helpers(Crew crew) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(crew.n - 1):
        acquire(crew.done[i], True)


cdef void follow(Crew crew) noexcept nogil:
    """Let the helpers keep off where the caller is now."""
    cdef Py_ssize_t i
    cdef Processors allowed
    cdef int processor = processor_here()
    if processor != crew.processor:
        crew.processor = processor
        find_processors(0, &allowed)
        for i in range(crew.n - 1):
            keep_off(processor, &allowed, crew.numbers[i])


cdef PyThread_type_lock closed() except NULL:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock == NULL:
        raise MemoryError
    PyThread_acquire_lock(lock, WAIT_LOCK)
    return lock


cdef void free(PyThread_type_lock lock) noexcept:
    if lock != NULL:  # a lock is given back open
        PyThread_acquire_lock(lock, NOWAIT_LOCK)
        PyThread_release_lock(lock)
        PyThread_free_lock(lock)
