"""What a whole block shares with the linear layer."""
from cython cimport floating

cdef void affine(
    const floating* x, const floating* weight, const floating* bias,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add, floating* out,
) noexcept nogil

cdef void affine_backward(
    const floating* dout, const floating* x, const floating* weight,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed,
    bint add, floating* dx, floating* dweight, floating* dbias,
) noexcept nogil
