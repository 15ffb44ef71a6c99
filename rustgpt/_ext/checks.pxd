"""Owns what every kernel checks at its border before it runs unchecked: shapes and indices.

A check of an array returns where it begins: NULL if it is None or empty. What is no input, and so
not const, is given with its type, as in `check_matrix[floating]("out", out, N, C)`.
"""
from cython cimport floating
from libc.limits cimport INT_MAX


cdef inline int check_aligned(str name, size_t address, size_t itemsize) except -1:
    """Raise TypeError unless an address is a multiple of the size of what lies there."""
    if address % itemsize:
        raise TypeError(f"{name} must be aligned: pass a copy of it")
    return 0


cdef inline int check_length(str name, Py_ssize_t found, Py_ssize_t length) except -1:
    if found != length:
        raise ValueError(f"{name} must have shape ({length},), got ({found},)")
    return 0


cdef inline floating* check_vector(
    str name, const floating[::1] x, Py_ssize_t length
) except? NULL:
    """Raise ValueError unless the array called `name` has shape (length,)."""
    if x is None:
        return NULL
    check_length(name, x.shape[0], length)
    if length == 0:
        return NULL
    check_aligned(name, <size_t> &x[0], sizeof(floating))
    return <floating*> &x[0]


cdef inline floating* check_matrix(
    str name, const floating[:, ::1] x, Py_ssize_t rows, Py_ssize_t columns
) except? NULL:
    """Raise ValueError unless the array called `name` has shape (rows, columns), which BLAS takes.
    """
    if x is None:
        return NULL
    if x.shape[0] != rows or x.shape[1] != columns:
        raise ValueError(
            f"{name} must have shape ({rows}, {columns}), got ({x.shape[0]}, {x.shape[1]})"
        )
    if rows > INT_MAX or columns > INT_MAX:
        raise ValueError(
            f"{name} of shape ({rows}, {columns}) is too large: each side must be below 2**31"
        )
    if rows == 0 or columns == 0:
        return NULL
    check_aligned(name, <size_t> &x[0, 0], sizeof(floating))
    return <floating*> &x[0, 0]


cdef inline floating* check_weight(
    str name, const floating[:, ::1] x, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed
) except? NULL:
    """Raise ValueError unless a linear layer's weight is (c_in, c_out), or the transposed."""
    if transposed:
        return check_matrix(name, x, c_out, c_in)
    return check_matrix(name, x, c_in, c_out)


cdef inline floating* check_scratch(
    str size_of, floating[::1] scratch, Py_ssize_t needed
) except? NULL:
    """Raise ValueError unless scratch has as many numbers as the kernel called `size_of` says."""
    if scratch.shape[0] < needed:
        raise ValueError(
            f"scratch must hold {size_of} = {needed} numbers, got {scratch.shape[0]}"
        )
    return check_vector[floating]("scratch", scratch, scratch.shape[0])


cdef inline const int* check_ints(str name, const int[::1] x, Py_ssize_t length) except? NULL:
    """Raise ValueError unless the array called `name` has shape (length,)."""
    check_length(name, x.shape[0], length)
    if length == 0:
        return NULL
    check_aligned(name, <size_t> &x[0], sizeof(int))
    return &x[0]


cdef inline const int* check_indices(
    str name, const int[::1] x, Py_ssize_t length, Py_ssize_t lowest, Py_ssize_t limit
) except? NULL:
    """Raise ValueError unless there are `length` indices, and lowest <= every index < limit."""
    cdef Py_ssize_t i
    cdef const int* indices = check_ints(name, x, length)
    for i in range(length):
        if not lowest <= indices[i] < limit:
            raise ValueError(
                f"{name}[{i}] is {indices[i]}, but must be at least {lowest} and below {limit}"
            )
    return indices


cdef inline Py_ssize_t check_offsets(const int[::1] offsets, Py_ssize_t n) except -1:
    """Raise ValueError unless offsets rise from 0 to n; return the longest sequence's length."""
    cdef Py_ssize_t b, length, longest = 0
    check_ints("offsets", offsets, offsets.shape[0])
    if offsets.shape[0] < 1 or offsets[0] != 0 or offsets[offsets.shape[0] - 1] != n:
        raise ValueError(f"offsets must begin with 0 and end with the number of rows, {n}")
    for b in range(offsets.shape[0] - 1):
        length = <Py_ssize_t> offsets[b + 1] - offsets[b]
        if length < 0:
            raise ValueError(f"offsets[{b + 1}] is smaller than offsets[{b}]: they must not fall")
        longest = max(longest, length)
    return longest


cdef inline int check_size(str name, Py_ssize_t number, Py_ssize_t lowest=0) except -1:
    """Raise ValueError unless a number that sizes are computed from is `lowest` to 2**31 - 1."""
    if not lowest <= number <= INT_MAX:
        raise ValueError(f"{name} must be from {lowest} to {INT_MAX}, got {number}")
    return 0


cdef inline int check_norm(double max_norm) except -1:
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0 (infinity for no clipping), got {max_norm}")
    return 0


cdef inline int check_total(double rows, double numbers) except -1:
    """Raise ValueError if rows * numbers is more than any memory holds."""
    if rows * numbers > 2.0**60:
        raise ValueError(f"{rows:.0f} rows of {numbers:.0f} numbers are too many")
    return 0
