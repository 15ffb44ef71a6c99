"""Owns the passes over a flat parameter buffer: sum of squares, sum of two buffers, Adam."""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.checks cimport check_aligned, check_vector, index_address, vector_address
from rustgpt._ext.rows cimport row_squares
from rustgpt._ext.shard cimport edge_of

cdef enum:
    # Parts of a sum of squares.
    PARTS = 64


def sum_of_squares(
    const floating[::1] x not None,  # IN (P,)
):
    """Return sum(x^2), summed in double: the square of the L2 norm."""
    check_aligned(vector_address(x), sizeof(floating))
    cdef Py_ssize_t i, first, P = x.shape[0]
    cdef double total = 0.0
    if P == 0:
        return total
    with nogil:
        for i in range(PARTS):
            first = edge_of(P, i, PARTS)
            total += row_squares(&x[first], edge_of(P, i + 1, PARTS) - first)
    return total


def clip_by_global_norm(
    floating[::1] gradients not None,  # IN/OUT (P,): scaled so that its L2 norm is at most max_norm
    double max_norm,
):
    """gradients *= min(1, max_norm / norm); returns the norm before (Pascanu et al. 2013)."""
    check_aligned(vector_address[floating](gradients), sizeof(floating))
    cdef Py_ssize_t i, P = gradients.shape[0]
    cdef double norm = 0.0
    cdef floating factor
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0 (infinity for no clipping), got {max_norm}")
    if P == 0:
        return 0.0
    with nogil:
        norm = sqrt(row_squares(&gradients[0], P))
        if norm > max_norm:
            factor = <floating> (max_norm / norm)
            for i in range(P):
                gradients[i] *= factor
    return norm


def add_into(
    const floating[::1] x not None,  # IN (P,)
    floating[::1] out not None,      # IN/OUT (P,): added to
):
    """out += x."""
    check_aligned(vector_address(x) | vector_address[floating](out), sizeof(floating))
    cdef Py_ssize_t i, P = out.shape[0]
    check_vector("x", x.shape, P)
    with nogil:
        for i in range(P):
            out[i] += x[i]


def adam_step(
    floating[::1] parameters not None,       # IN/OUT (P,)
    const floating[::1] gradients not None,  # IN (P,)
    floating[::1] m not None,                # IN/OUT (P,): running mean of the gradient
    floating[::1] v not None,                # IN/OUT (P,): running mean of its square
    const int[::1] edges not None,           # IN: where decay begins, ends, begins again ...
    double gradient_scale,                   # IN: the gradient is multiplied by this (clipping)
    double rate,                             # IN: learning rate / (1 - beta1^t)
    double beta1,
    double beta2,
    double inverse_root,                     # IN: 1 / sqrt(1 - beta2^t)
    double epsilon,
    double decay,                            # IN: learning rate * weight decay
):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    parameters -= decay parameters + rate m / (sqrt(v) inverse_root + epsilon).

    Adam (Kingma and Ba 2015), with the decay apart from the gradient (Loshchilov and Hutter 2019).
    """
    check_aligned(
        vector_address[floating](parameters) | vector_address(gradients) |
        vector_address[floating](m) | vector_address[floating](v), sizeof(floating),
        index_address(edges),
    )
    cdef Py_ssize_t e, start, stop = 0, P = parameters.shape[0], n_edges = edges.shape[0]
    check_vector("gradients", gradients.shape, P)
    check_vector("m", m.shape, P)
    check_vector("v", v.shape, P)
    check_edges(edges, P)
    if P == 0:
        return
    cdef Update u
    u.scale, u.rate, u.beta1, u.beta2 = gradient_scale, rate, beta1, beta2
    u.inverse_root, u.epsilon = inverse_root, epsilon
    with nogil:
        for e in range(n_edges + 1):
            start, stop = stop, (<Py_ssize_t> edges[e] if e < n_edges else P)
            adam_numbers(&u, decay if e % 2 else 0.0, start, stop, &parameters[0], &gradients[0],
                         &m[0], &v[0])


cdef struct Update:
    double scale, rate, beta1, beta2, inverse_root, epsilon


cdef void adam_numbers(
    const Update* u, double decay, Py_ssize_t start, Py_ssize_t stop,
    floating* parameters, const floating* gradients, floating* m, floating* v,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating g, b1 = <floating> u.beta1, b2 = <floating> u.beta2
    cdef floating c1 = <floating> (1.0 - u.beta1), c2 = <floating> (1.0 - u.beta2)
    cdef floating scale = <floating> u.scale, step = <floating> u.rate
    cdef floating root = <floating> u.inverse_root, eps = <floating> u.epsilon
    cdef floating keep = <floating> (1.0 - decay)
    for i in range(start, stop):
        g = gradients[i] * scale
        m[i] = b1 * m[i] + c1 * g
        v[i] = b2 * v[i] + c2 * g * g
        parameters[i] = keep * parameters[i] - step * m[i] / (root_of(v[i]) * root + eps)


cdef int check_edges(const int[::1] edges, Py_ssize_t P) except -1:
    cdef Py_ssize_t e
    for e in range(edges.shape[0]):
        if not (edges[e - 1] if e else 0) <= edges[e] <= P:
            raise ValueError(f"edges[{e}] is {edges[e]}: they must rise from 0 to {P} at most")
    return 0


cdef inline floating root_of(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef extern from "<math.h>" nogil:
    float sqrtf(float x)
