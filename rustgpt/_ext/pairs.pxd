"""Owns the look-up of a pair of numbers in a table that `rustgpt.text.pairs` has made.

A table is a hash table with linear probing, (size, 2): a key (-1 where there is none) and beside
it its value. The size is a power of two, and more than there are keys.
"""
from libc.stdint cimport int64_t, uint64_t

cdef struct Pairs:
    const int64_t* table
    int shift                   # of the product that is the hash: 64 - log2(size)
    Py_ssize_t mask             # size - 1


cdef inline Pairs pairs_of(const int64_t[:, ::1] table) except *:
    """Raise ValueError unless this can be a table."""
    cdef Py_ssize_t size = table.shape[0], i
    cdef bint free = False
    cdef Pairs pairs
    if size < 2 or size & (size - 1) or table.shape[1] != 2:
        raise ValueError(
            f"a table must have shape (a power of two from 2 on, 2), got ({size}, {table.shape[1]})"
        )
    for i in range(size):
        if table[i, 0] < 0:
            free = True
            break
    if not free:
        raise ValueError("a table must have a free place")
    pairs.table = &table[0, 0]
    pairs.mask = size - 1
    pairs.shift = 64
    while size > 1:
        size >>= 1
        pairs.shift -= 1
    return pairs


cdef inline int64_t value_of(const Pairs* pairs, uint64_t left, uint64_t right) noexcept nogil:
    """Return the value of a pair; -1 if it is not in the table."""
    cdef uint64_t key = left << 32 | right
    return found_from(pairs, key, <Py_ssize_t> (key * 0x9E3779B97F4A7C15u >> pairs.shift))


cdef inline int64_t near_value_of(const Pairs* pairs, uint64_t left, uint64_t right) noexcept nogil:
    """Return the same of a table in which numbers on the left that are near lie near each other."""
    if left < 2:
        return value_of(pairs, left, right)
    cdef Py_ssize_t place = <Py_ssize_t> (2 * left + (right & 15)) & pairs.mask
    return found_from(pairs, left << 32 | right, place)


cdef inline int64_t found_from(const Pairs* pairs, uint64_t key, Py_ssize_t i) noexcept nogil:
    """Return the value of a key that stands at i or behind."""
    while pairs.table[2 * i] != <int64_t> key:
        if pairs.table[2 * i] < 0:
            return -1
        i = i + 1 & pairs.mask
    return pairs.table[2 * i + 1]
