"""Owns on which processors threads run, where the system lets a program say so (Linux).

Where it does not, or refuses, nothing is lost but time: so no error is looked at.
"""

cdef extern from *:
    """
    #ifndef RUSTGPT_PROCESSORS
    #define RUSTGPT_PROCESSORS
    #if defined(__linux__)
    #include <sched.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline int thread_here(void) { return (int)syscall(SYS_gettid); }
    static inline int processor_here(void) { return sched_getcpu(); }
    static inline int find_processors(int processor, cpu_set_t* found) {
        return processor >= 0 && processor < CPU_SETSIZE
            && sched_getaffinity(0, sizeof *found, found) == 0 && CPU_ISSET(processor, found);
    }
    static inline void keep_off(int processor, int thread) {
        cpu_set_t others;
        if (!find_processors(processor, &others)) return;
        CPU_CLR(processor, &others);
        if (CPU_COUNT(&others) > 0) sched_setaffinity(thread, sizeof others, &others);
    }
    static inline void send_off(int processor) {
        cpu_set_t all;
        if (!find_processors(processor, &all)) return;
        keep_off(processor, 0);
        sched_setaffinity(0, sizeof all, &all);
    }
    static inline void bring_to(int processor, int thread) {
        cpu_set_t all, here;
        if (!find_processors(processor, &all)) return;
        CPU_ZERO(&here);
        CPU_SET(processor, &here);
        if (sched_setaffinity(thread, sizeof here, &here) == 0)
            sched_setaffinity(thread, sizeof all, &all);
    }
    #else
    static inline int thread_here(void) { return 0; }
    static inline int processor_here(void) { return -1; }
    static inline void keep_off(int processor, int thread) {}
    static inline void send_off(int processor) {}
    static inline void bring_to(int processor, int thread) {}
    #endif
    #endif
    """
    # The system's number of the calling thread.
    int thread_here() noexcept nogil
    # Where it is; -1 if that is not known.
    int processor_here() noexcept nogil
    # From now on a thread may run wherever the caller may, but not on one processor.
    void keep_off(int processor, int thread) noexcept nogil
    # The caller goes to another processor than this, where it is; it may come back.
    void send_off(int processor) noexcept nogil
    # A thread comes to a processor; then it may run wherever the caller may.
    void bring_to(int processor, int thread) noexcept nogil
