"""Owns the element-wise non-linearities: ReLU and GELU. Cost: a read and a write an element."""
from cython cimport floating

from rustgpt._ext.checks cimport check_matrix
from rustgpt._ext.rows cimport tanh_of


def relu_forward(
    const floating[:, ::1] x not None,  # IN (N, F)
    floating[:, ::1] out not None,      # OUT (N, F), may be x itself
):
    """out = max(x, 0)."""
    cdef Py_ssize_t i, size = x.shape[0] * x.shape[1]
    cdef const floating* source
    cdef floating* target
    check_matrix("out", out.shape, x.shape[0], x.shape[1])
    if size == 0:
        return
    source, target = &x[0, 0], &out[0, 0]
    with nogil:
        for i in range(size):
            # A NaN must come through, or a diverged model would look healthy.
            target[i] = <floating> 0 if source[i] < 0 else source[i]


def relu_backward(
    const floating[:, ::1] dout not None,  # IN (N, F)
    const floating[:, ::1] x not None,     # IN (N, F): the input, or as well the output
    floating[:, ::1] dx not None,          # OUT (N, F), may be dout itself
):
    """dx = dout where x > 0, else 0."""
    cdef Py_ssize_t i, size = x.shape[0] * x.shape[1]
    cdef const floating* source
    cdef const floating* gradient
    cdef floating* target
    check_matrix("dout", dout.shape, x.shape[0], x.shape[1])
    check_matrix("dx", dx.shape, x.shape[0], x.shape[1])
    if size == 0:
        return
    source, gradient, target = &x[0, 0], &dout[0, 0], &dx[0, 0]
    with nogil:
        for i in range(size):
            target[i] = gradient[i] if source[i] > 0 else <floating> 0


def gelu_forward(
    const floating[:, ::1] x not None,  # IN (N, F)
    floating[:, ::1] out not None,      # OUT (N, F), may be x itself
):
    """out = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): the form that GPT-2 uses."""
    cdef Py_ssize_t i, size = x.shape[0] * x.shape[1]
    cdef const floating* source
    cdef floating* target
    check_matrix("out", out.shape, x.shape[0], x.shape[1])
    if size == 0:
        return
    source, target = &x[0, 0], &out[0, 0]
    with nogil:
        for i in range(size):
            target[i] = gelu_of(source[i])


def gelu_backward(
    const floating[:, ::1] dout not None,  # IN (N, F)
    const floating[:, ::1] x not None,     # IN (N, F): the input
    floating[:, ::1] dx not None,          # OUT (N, F), may be dout itself
):
    """dx = dout (0.5 (1 + t) + 0.5 x (1 - t^2) sqrt(2 / pi) (1 + 3 * 0.044715 x^2))."""
    cdef Py_ssize_t i, size = x.shape[0] * x.shape[1]
    cdef const floating* source
    cdef const floating* gradient
    cdef floating* target
    cdef floating v, t, slope, root = 0.7978845608028654, cubic = 0.044715, half = 0.5, one = 1
    cdef floating three_cubic = 3 * cubic
    check_matrix("dout", dout.shape, x.shape[0], x.shape[1])
    check_matrix("dx", dx.shape, x.shape[0], x.shape[1])
    if size == 0:
        return
    source, gradient, target = &x[0, 0], &dout[0, 0], &dx[0, 0]
    with nogil:
        for i in range(size):
            v = source[i]
            t = tanh_of(root * (v + cubic * v * v * v))
            slope = root * (one + three_cubic * v * v)
            target[i] = gradient[i] * (half * (one + t) + half * v * (one - t * t) * slope)
