"""What a kernel needs to wait for other threads."""
from cpython.pythread cimport PyThread_type_lock


cdef struct Thread:
    int number     # the system's; 0 if it is not known
    int processor  # where it waits
    bint* sent     # to be told whether it was sent elsewhere


cdef struct Gates:
    Py_ssize_t n, here          # how many threads meet, and how many of them have arrived
    unsigned long long meeting  # which it is
    bint lends                  # whether one who waits for long lends its processor
    bint breaks                 # but not to one who is through with every second meeting
    bint watches                # whether one who waits looks for a moment before it sleeps
    Py_ssize_t lent             # how often that was done
    bint second, broken         # whether the second set of gates is in use; whether it is all over
    PyThread_type_lock lock     # on all of this
    PyThread_type_lock* gates   # 2 (n - 1), each locked unless somebody may pass
    Thread* threads             # n that have arrived
    Thread* before              # and n of the meeting before


cdef class Barrier:
    cdef Gates gates


cdef int wait_at(Gates* g) except -1 nogil

cdef void acquire(PyThread_type_lock lock, bint watches) noexcept nogil
