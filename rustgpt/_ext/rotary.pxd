"""Owns rotary positions of rows of queries and keys (Su et al. 2021), turned where they lie."""
from cython cimport floating


cdef inline void turn_row(
    floating* x, const floating* angles, Py_ssize_t heads, Py_ssize_t D, bint back
) noexcept nogil:
    """(a, b) = (a cos - b sin, b cos + a sin), a and b being the halves of each head of a row."""
    cdef Py_ssize_t h, i, half = D // 2
    cdef const floating* cos = angles
    cdef const floating* sin = angles + half
    cdef floating* a
    cdef floating* b
    cdef floating first, second, sign = -1 if back else 1
    for h in range(heads):
        a = x + h * D
        b = a + half
        for i in range(half):
            first, second = a[i], b[i]
            a[i] = first * cos[i] - second * (sign * sin[i])
            b[i] = second * cos[i] + first * (sign * sin[i])


cdef inline void turn_rows(
    floating* x, Py_ssize_t ld,             # IN/OUT (N, ld): the first heads * D columns
    const int* offsets, const int* starts,  # IN (B + 1,), (B,) or NULL for 0
    Py_ssize_t B, Py_ssize_t first, Py_ssize_t stop,  # the rows that are turned
    const floating* table, Py_ssize_t heads, Py_ssize_t D, bint back,
) noexcept nogil:
    """Turn some rows by their positions; back, by the opposite angles."""
    cdef Py_ssize_t b, row, before
    for b in range(B):
        before = (starts[b] if starts != NULL else 0) - offsets[b]
        for row in range(max(first, offsets[b]), min(stop, offsets[b + 1])):
            turn_row(x + row * ld, table + (before + row) * D, heads, D, back)
