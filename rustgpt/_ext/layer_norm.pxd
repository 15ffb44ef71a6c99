"""What a whole block shares with layer norm."""
from cython cimport floating

cdef void normalise_rows(
    const floating* x, const floating* weight, const floating* bias, double epsilon,
    Py_ssize_t n, Py_ssize_t C, floating* out, floating* mean, floating* rstd,
) noexcept nogil

cdef void normalise_again(
    const floating* x, const floating* weight, const floating* bias,
    const floating* mean, const floating* rstd, Py_ssize_t n, Py_ssize_t C, floating* out,
) noexcept nogil

cdef void normalise_rows_backward(
    const floating* dout, const floating* x, const floating* weight,
    const floating* mean, const floating* rstd, const floating* residual,
    Py_ssize_t n, Py_ssize_t C, floating* dx, floating* dweight, floating* dbias,
) noexcept nogil

cdef void rms_rows(
    const floating* x, const floating* weight, double epsilon, Py_ssize_t n, Py_ssize_t C,
    floating* out, floating* rstd,
) noexcept nogil

cdef void rms_again(
    const floating* x, const floating* weight, const floating* rstd, Py_ssize_t n, Py_ssize_t C,
    floating* out,
) noexcept nogil

cdef void rms_rows_backward(
    const floating* dout, const floating* x, const floating* weight, const floating* rstd,
    const floating* residual, Py_ssize_t n, Py_ssize_t C, floating* dx, floating* dweight,
) noexcept nogil
