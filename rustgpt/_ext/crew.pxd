"""What a kernel needs to be done by a crew."""
from cpython.pythread cimport PyThread_type_lock

from rustgpt._ext.barrier cimport Barrier

# Does part `index` of a kernel's work, which the kernel describes in memory of its own. It does not
# fail where there are helpers: what could is a broken barrier, and nobody breaks a crew's.
ctypedef int (*Job)(const void* work, Py_ssize_t index) except -1 nogil


cdef class Crew:
    cdef readonly Py_ssize_t n        # threads, with the one that calls the kernels
    cdef Barrier barrier              # where they meet within a job
    cdef PyThread_type_lock* go       # n - 1, each locked until a helper may begin
    cdef PyThread_type_lock* done     # n - 1, each locked until a helper has ended
    cdef PyThread_type_lock calling   # locked while a kernel is at work, or no helper is there
    cdef bint entered, left
    cdef int process                  # where the helpers are; a fork of it has none
    cdef int processor                # where the caller was, last time
    cdef int* numbers                 # n - 1, the helpers', of the system
    cdef Job job
    cdef const void* work             # NULL: to go home
    cdef list threads


cdef bint is_at_hand(Crew crew) noexcept

cdef int run(Crew crew, Job job, const void* work) except -1
