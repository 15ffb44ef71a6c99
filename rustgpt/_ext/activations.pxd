"""What a whole block shares with the activations: a stretch of numbers at once."""
from cython cimport floating

cdef void relu(const floating* x, Py_ssize_t size, floating* out) noexcept nogil

cdef void relu_gradient(
    const floating* dout, const floating* x, Py_ssize_t size, floating* dx
) noexcept nogil

cdef void swiglu(const floating* x, Py_ssize_t n, Py_ssize_t F, floating* out) noexcept nogil

cdef void swiglu_gradient(
    const floating* dout, const floating* x, Py_ssize_t n, Py_ssize_t F, floating* dx,
    floating* out,
) noexcept nogil
