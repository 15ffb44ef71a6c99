"""Owns what every kernel checks at its border before it runs unchecked: shapes and indices."""
from cython cimport floating
from libc.limits cimport INT_MAX


cdef inline int check_vector(str name, const Py_ssize_t* shape, Py_ssize_t length) except -1:
    """Raise ValueError unless the array called `name` has shape (length,)."""
    if shape[0] != length:
        raise ValueError(f"{name} must have shape ({length},), got ({shape[0]},)")
    return 0


cdef inline int check_matrix(
    str name, const Py_ssize_t* shape, Py_ssize_t rows, Py_ssize_t columns
) except -1:
    """Raise ValueError unless the array called `name` has shape (rows, columns)."""
    if shape[0] != rows or shape[1] != columns:
        raise ValueError(
            f"{name} must have shape ({rows}, {columns}), got ({shape[0]}, {shape[1]})"
        )
    return 0


cdef inline int check_blas(str name, const Py_ssize_t* shape) except -1:
    """Raise ValueError if a matrix is too large for the 32-bit sizes of BLAS."""
    if shape[0] > INT_MAX or shape[1] > INT_MAX:
        raise ValueError(
            f"{name} of shape ({shape[0]}, {shape[1]}) is too large: each side must be below 2**31"
        )
    return 0


cdef inline int check_weight(
    str name, const Py_ssize_t* shape, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed
) except -1:
    """Raise ValueError unless a linear layer's weight is (c_in, c_out), or the transposed."""
    check_blas(name, shape)
    if transposed:
        return check_matrix(name, shape, c_out, c_in)
    return check_matrix(name, shape, c_in, c_out)


cdef inline int check_indices(str name, const int[::1] indices, Py_ssize_t lowest,
                              Py_ssize_t limit) except -1:
    """Raise ValueError unless lowest <= every index < limit."""
    cdef Py_ssize_t i
    for i in range(indices.shape[0]):
        if not lowest <= indices[i] < limit:
            raise ValueError(
                f"{name}[{i}] is {indices[i]}, but must be at least {lowest} and below {limit}"
            )
    return 0


cdef inline Py_ssize_t check_offsets(const int[::1] offsets, Py_ssize_t n) except -1:
    """Raise ValueError unless offsets rise from 0 to n; return the longest sequence's length."""
    cdef Py_ssize_t b, length, longest = 0
    if offsets.shape[0] < 1 or offsets[0] != 0 or offsets[offsets.shape[0] - 1] != n:
        raise ValueError(f"offsets must begin with 0 and end with the number of rows, {n}")
    for b in range(offsets.shape[0] - 1):
        length = <Py_ssize_t> offsets[b + 1] - offsets[b]
        if length < 0:
            raise ValueError(f"offsets[{b + 1}] is smaller than offsets[{b}]: they must not fall")
        longest = max(longest, length)
    return longest


cdef inline floating* matrix_at(const floating[:, ::1] x) noexcept:
    """Return where a matrix begins; NULL if it is None or empty. (An output is given as const.)"""
    return <floating*> &x[0, 0] if x is not None and x.shape[0] and x.shape[1] else NULL


cdef inline floating* vector_at(const floating[::1] x) noexcept:
    """Return where a vector begins; NULL if it is None or empty. (An output is given as const.)"""
    return <floating*> &x[0] if x is not None and x.shape[0] else NULL


# Where an array begins, as a number; 0 if it is None or empty. (An output is given as const.)
cdef inline size_t matrix_address(const floating[:, ::1] x) noexcept:
    return <size_t> matrix_at(x)


cdef inline size_t vector_address(const floating[::1] x) noexcept:
    return <size_t> vector_at(x)


cdef inline size_t cache_address(const floating[:, :, ::1] x) noexcept:
    cdef bint there = x is not None and x.shape[0] and x.shape[1] and x.shape[2]
    return <size_t> &x[0, 0, 0] if there else 0


cdef inline size_t index_address(const int[::1] x) noexcept:
    return <size_t> &x[0] if x is not None and x.shape[0] else 0


cdef inline int check_aligned(size_t numbers, size_t itemsize, size_t indices=0) except -1:
    """Raise TypeError unless addresses, joined by |, are multiples of what lies there."""
    if numbers % itemsize or indices % sizeof(int):
        raise TypeError("an array must be aligned: pass a copy of it")
    return 0


cdef inline int check_size(str name, Py_ssize_t number, Py_ssize_t lowest=0) except -1:
    """Raise ValueError unless a number that sizes are computed from is `lowest` to 2**31 - 1."""
    if not lowest <= number <= INT_MAX:
        raise ValueError(f"{name} must be from {lowest} to {INT_MAX}, got {number}")
    return 0


cdef inline int check_total(double rows, double numbers) except -1:
    """Raise ValueError if rows * numbers is more than any memory holds."""
    if rows * numbers > 2.0**60:
        raise ValueError(f"{rows:.0f} rows of {numbers:.0f} numbers are too many")
    return 0
