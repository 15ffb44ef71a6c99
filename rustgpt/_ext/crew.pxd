"""What a kernel needs to be done by a crew."""
from cpython.pythread cimport PyThread_type_lock

from rustgpt._ext.barrier cimport Barrier

# Does part `index` of a kernel's work, which the kernel describes in memory of its own.
ctypedef int (*Job)(const void* work, Py_ssize_t index) except -1 nogil


cdef extern from *:
    """
    #ifndef RUSTGPT_CREW
    #define RUSTGPT_CREW
    #if defined(__linux__)
    #include <pthread.h>
    #include <sched.h>
    typedef cpu_set_t processors;
    static inline int processor_here(void) { return sched_getcpu(); }
    static inline void find_processors(processors* found) {
        CPU_ZERO(found);
        pthread_getaffinity_np(pthread_self(), sizeof *found, found);
    }
    /* Where that is not possible nothing is lost but time: so no error is looked at. */
    static inline void keep_off(int processor, const processors* allowed, unsigned long thread) {
        processors others = *allowed;
        if (processor < 0 || processor >= CPU_SETSIZE) return;
        CPU_CLR(processor, &others);
        if (CPU_COUNT(&others) > 0)
            pthread_setaffinity_np((pthread_t)thread, sizeof others, &others);
    }
    #else
    typedef int processors;
    static inline int processor_here(void) { return 0; }
    static inline void find_processors(processors* found) { *found = 0; }
    static inline void keep_off(int processor, const processors* allowed, unsigned long thread) {}
    #endif
    #endif
    """
    ctypedef struct processors:
        pass
    int processor_here() noexcept nogil
    void find_processors(processors* found) noexcept nogil
    void keep_off(int processor, const processors* allowed, unsigned long thread) noexcept nogil


cdef class Crew:
    cdef readonly Py_ssize_t n        # threads, with the one that calls the kernels
    cdef Barrier barrier              # where they meet within a job
    cdef PyThread_type_lock* go       # n - 1, each locked until a helper may begin
    cdef PyThread_type_lock* done     # n - 1, each locked until a helper has ended
    cdef PyThread_type_lock calling   # locked while a kernel is at work, or no helper is there
    cdef processors allowed           # where threads may run
    cdef int processor                # where the caller was, last time
    cdef unsigned long* idents        # n - 1, of the helpers' threads
    cdef Job job
    cdef const void* work             # NULL: to go home
    cdef list threads


cdef int run(Crew crew, Job job, const void* work) except -1
