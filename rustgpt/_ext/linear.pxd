"""What a whole block shares with the linear layer."""
from cython cimport floating

from rustgpt._ext.shard cimport Shard

cdef int check_bfloat16(bint bfloat16, Py_ssize_t itemsize) except -1

cdef void affine(
    const floating* x, const floating* weight, const floating* bias,
    Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out, bint transposed, bint add,
    bint bfloat16, floating* out,
) noexcept nogil

cdef void add_gradients(
    const Shard* s,
    const floating* dout, const floating* x, Py_ssize_t n, Py_ssize_t c_in, Py_ssize_t c_out,
    bint transposed, bint add, bint bfloat16,
    floating* dweight, floating* dbias,
) noexcept nogil
