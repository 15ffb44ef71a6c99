"""Owns the element-wise non-linearities: ReLU, GELU and SwiGLU. Cost: a read and a write an
element, and but for ReLU one exponential and one division, forward and again backward."""
from cython cimport floating

from rustgpt._ext.checks cimport check_matrix
from rustgpt._ext.rows cimport row_gelu, row_gelu_backward, row_swiglu, row_swiglu_backward


cdef void relu(const floating* x, Py_ssize_t size, floating* out) noexcept nogil:
    """out = max(x, 0); out may be x."""
    cdef Py_ssize_t i
    for i in range(size):
        # A NaN must come through, or a diverged model would look healthy.
        out[i] = <floating> 0 if x[i] < 0 else x[i]


cdef void relu_gradient(
    const floating* dout, const floating* x, Py_ssize_t size, floating* dx
) noexcept nogil:
    """dx = dout where x > 0, else 0; dx may be dout."""
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = dout[i] if x[i] > 0 else <floating> 0


cdef void swiglu(const floating* x, Py_ssize_t n, Py_ssize_t F, floating* out) noexcept nogil:
    """out (n, F) = silu(gate) * up, x (n, 2 F) = [gate, up]."""
    cdef Py_ssize_t i
    for i in range(n):
        row_swiglu(x + i * 2 * F, x + i * 2 * F + F, F, out + i * F)


cdef void swiglu_gradient(
    const floating* dout, const floating* x, Py_ssize_t n, Py_ssize_t F, floating* dx,
    floating* out,
) noexcept nogil:
    """dx (n, 2 F), from dout (n, F); and what swiglu gives, unless out is NULL. out may be dout."""
    cdef Py_ssize_t i
    for i in range(n):
        row_swiglu_backward(dout + i * F, x + i * 2 * F, x + i * 2 * F + F, F, dx + i * 2 * F,
                            dx + i * 2 * F + F, out + i * F if out != NULL else NULL)


def relu_forward(
    const floating[:, ::1] x not None,  # IN (N, F)
    floating[:, ::1] out not None,      # OUT (N, F), may be x itself
):
    """out = max(x, 0)."""
    cdef Py_ssize_t N = x.shape[0], F = x.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, F)
    cdef floating* out0 = check_matrix[floating]("out", out, N, F)
    with nogil:
        relu(x0, N * F, out0)


def relu_backward(
    const floating[:, ::1] dout not None,  # IN (N, F)
    const floating[:, ::1] x not None,     # IN (N, F): the input, or as well the output
    floating[:, ::1] dx not None,          # OUT (N, F), may be dout itself
):
    """dx = dout where x > 0, else 0."""
    cdef Py_ssize_t N = x.shape[0], F = x.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, F)
    cdef floating* x0 = check_matrix("x", x, N, F)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, F)
    with nogil:
        relu_gradient(dout0, x0, N * F, dx0)


def gelu_forward(
    const floating[:, ::1] x not None,  # IN (N, F)
    floating[:, ::1] out not None,      # OUT (N, F), may be x itself
):
    """out = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): the form that GPT-2 uses."""
    cdef Py_ssize_t N = x.shape[0], F = x.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, F)
    cdef floating* out0 = check_matrix[floating]("out", out, N, F)
    with nogil:
        row_gelu(x0, N * F, out0)


def gelu_backward(
    const floating[:, ::1] dout not None,  # IN (N, F)
    const floating[:, ::1] x not None,     # IN (N, F): the input
    floating[:, ::1] dx not None,          # OUT (N, F), may be dout itself
):
    """dx = dout (0.5 (1 + t) + 0.5 x (1 - t^2) sqrt(2 / pi) (1 + 3 * 0.044715 x^2))."""
    cdef Py_ssize_t N = x.shape[0], F = x.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, F)
    cdef floating* x0 = check_matrix("x", x, N, F)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, F)
    with nogil:
        row_gelu_backward(dout0, x0, N * F, dx0, NULL)


def swiglu_forward(
    const floating[:, ::1] x not None,  # IN (N, 2 F): gate and up, side by side
    floating[:, ::1] out not None,      # OUT (N, F)
):
    """out = gate / (1 + exp(-gate)) * up."""
    cdef Py_ssize_t N = out.shape[0], F = out.shape[1]
    cdef floating* x0 = check_matrix("x", x, N, 2 * F)
    cdef floating* out0 = check_matrix[floating]("out", out, N, F)
    with nogil:
        swiglu(x0, N, F, out0)


def swiglu_backward(
    const floating[:, ::1] dout not None,  # IN (N, F)
    const floating[:, ::1] x not None,     # IN (N, 2 F): the input
    floating[:, ::1] dx not None,          # OUT (N, 2 F): overwritten
):
    """dgate = dout up s (1 + gate (1 - s)), dup = dout gate s, s = 1 / (1 + exp(-gate))."""
    cdef Py_ssize_t N = dout.shape[0], F = dout.shape[1]
    cdef floating* dout0 = check_matrix("dout", dout, N, F)
    cdef floating* x0 = check_matrix("x", x, N, 2 * F)
    cdef floating* dx0 = check_matrix[floating]("dx", dx, N, 2 * F)
    with nogil:
        swiglu_gradient(dout0, x0, N, F, dx0, <floating*> NULL)
