"""Owns on which processors threads run, where the system lets a program say so (Linux).

Where it does not, or refuses, nothing is lost but time: so no error is looked at. A thread that is
moved may afterwards run where it might before, which its owner may have chosen.
"""

cdef extern from *:
    """
    #ifndef RUSTGPT_PROCESSORS
    #define RUSTGPT_PROCESSORS
    #ifdef _WIN32
    static inline int process_here(void) { return 0; } /* which cannot fork */
    #else
    #include <unistd.h>
    static inline int process_here(void) { return (int)getpid(); }
    #endif
    #if defined(__linux__)
    #include <sched.h>
    #include <sys/syscall.h>
    #include <time.h>
    typedef cpu_set_t Processors;
    static inline int thread_here(void) { return (int)syscall(SYS_gettid); }
    static inline int processor_here(void) { return sched_getcpu(); }
    static inline void find_processors(int thread, Processors* found) {
        if (sched_getaffinity(thread, sizeof *found, found) != 0) CPU_ZERO(found);
    }
    static inline int is_among(int processor, const Processors* some) {
        return processor >= 0 && processor < CPU_SETSIZE && CPU_ISSET(processor, some);
    }
    static inline void keep_off(int processor, const Processors* allowed, int thread) {
        Processors others = *allowed;
        if (thread == 0 || !is_among(processor, allowed)) return;
        CPU_CLR(processor, &others);
        if (CPU_COUNT(&others) > 0) sched_setaffinity(thread, sizeof others, &others);
    }
    static inline void allow(const Processors* allowed, int thread) {
        if (thread == 0 || CPU_COUNT(allowed) == 0) return;
        sched_setaffinity(thread, sizeof *allowed, allowed);
    }
    static inline int bring_to(int processor, int thread) {
        Processors here, allowed;
        find_processors(thread, &allowed);
        if (!is_among(processor, &allowed) || syscall(SYS_tgkill, getpid(), thread, 0) != 0)
            return 0;
        CPU_ZERO(&here);
        CPU_SET(processor, &here);
        if (sched_setaffinity(thread, sizeof here, &here) != 0) return 0;
        allow(&allowed, thread);
        return 1;
    }
    /* A thread's clock, as pthread_getcpuclockid() makes it, which knows no thread by number. */
    static inline long long time_of(int thread) {
        struct timespec t;
        if (clock_gettime((clockid_t)(~(unsigned)thread << 3 | 6), &t) != 0) return -1;
        return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
    }
    #else
    typedef int Processors;
    static inline int thread_here(void) { return 0; }
    static inline int processor_here(void) { return -1; }
    static inline void find_processors(int thread, Processors* found) { *found = 0; }
    static inline void keep_off(int processor, const Processors* allowed, int thread) {}
    static inline void allow(const Processors* allowed, int thread) {}
    static inline int bring_to(int processor, int thread) { return 0; }
    static inline long long time_of(int thread) { return -1; }
    #endif
    #endif
    """
    ctypedef struct Processors:
        pass
    # The system's number of the calling process, and of the calling thread.
    int process_here() noexcept nogil
    int thread_here() noexcept nogil
    # Where the calling thread is; -1 if that is not known.
    int processor_here() noexcept nogil
    # Where a thread may run; 0 is the calling one.
    void find_processors(int thread, Processors* found) noexcept nogil
    # From now on a thread runs where it is allowed, but not on one processor; or there too.
    void keep_off(int processor, const Processors* allowed, int thread) noexcept nogil
    void allow(const Processors* allowed, int thread) noexcept nogil
    # A thread of this process comes to a processor: 1, or 0 if it may not run there. Afterwards it
    # may run where it might before: no two may do this at once.
    int bring_to(int processor, int thread) noexcept nogil
    # How many microseconds a thread has computed; -1 if that is not known.
    long long time_of(int thread) noexcept nogil
