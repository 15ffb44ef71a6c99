"""Owns which numbers dropout keeps: it follows from where they are, and is never stored."""
from cython cimport floating
from libc.stdint cimport uint32_t, uint64_t

from rustgpt._ext.checks cimport check_ints
from rustgpt._ext.rows cimport row_dropout


cdef struct Dropout:
    const int* rows     # (N,) the number of each row in the batch of the whole step; NULL if none
    uint64_t key        # of the step and the first place in the model
    uint32_t threshold  # random bits below it say 0
    double scale        # of what is kept


cdef inline Dropout dropout_of(
    const int[::1] row_numbers, Py_ssize_t N, uint64_t key, double rate
) except *:
    """Return what a kernel was told of dropout; raise ValueError if that is wrong."""
    cdef Dropout d = [NULL, key, 0, 1.0]
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be from 0 to below 1, got {rate}")
    if row_numbers is not None:
        d.rows = check_ints("row_numbers", row_numbers, N)
    elif rate > 0:
        raise ValueError("row_numbers must be given where rate is above 0")
    if rate == 0:
        d.rows = NULL
    d.threshold, d.scale = <uint32_t> (rate * 4294967296.0), 1.0 / (1.0 - rate)
    return d


cdef inline uint64_t mixed(uint64_t z) noexcept nogil:
    """Return 64 random bits for a number: SplitMix64's (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline void drop(
    const Dropout* d, Py_ssize_t place, const floating* x, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t C, bint add, floating* out,
) noexcept nogil:
    """out (n, C) = (out if add) + x after dropout, of the rows from `first` on; out may be x."""
    cdef Py_ssize_t i
    cdef uint64_t row
    for i in range(n):
        row = <uint64_t> d.rows[first + i] + 1
        row = mixed(d.key + <uint64_t> place + row * <uint64_t> 0x9E3779B97F4A7C15)
        row_dropout(x + i * C, row, d.threshold, <floating> d.scale, add, C, out + i * C)
