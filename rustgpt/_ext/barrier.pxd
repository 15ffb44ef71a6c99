"""What a kernel needs to wait for other threads."""
from cpython.pythread cimport PyThread_type_lock


cdef struct Gates:
    Py_ssize_t n, here          # how many threads meet, and how many of them have arrived
    bint second, broken         # whether the second set of gates is in use; whether it is all over
    PyThread_type_lock lock     # on all of this
    PyThread_type_lock* gates   # 2 (n - 1), each locked unless somebody may pass


cdef class Barrier:
    cdef Gates gates


cdef int wait_at(Gates* g, Py_ssize_t looks=*) except -1 nogil
