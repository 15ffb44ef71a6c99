"""Owns the passes over a flat parameter buffer: sum of squares, sum of two buffers, Adam."""
from cython cimport floating
from libc.math cimport sqrt

from rustgpt._ext.checks cimport check_ints, check_norm, check_vector
from rustgpt._ext.rows cimport row_squares
from rustgpt._ext.shard cimport edge_of

cdef extern from "<math.h>" nogil:
    float root_of "sqrtf"(float x)
    double root_of "sqrt"(double x)

cdef enum:
    # Parts of a sum of squares.
    PARTS = 64


def sum_of_squares(
    const floating[::1] x not None,  # IN (P,)
):
    """Return sum(x^2), summed in double: the square of the L2 norm."""
    cdef Py_ssize_t i, first, P = x.shape[0]
    cdef floating* x0 = check_vector("x", x, P)
    cdef double total = 0.0
    with nogil:
        for i in range(PARTS):
            first = edge_of(P, i, PARTS)
            total += row_squares(x0 + first, edge_of(P, i + 1, PARTS) - first)
    return total


def clip_by_global_norm(
    floating[::1] gradients not None,  # IN/OUT (P,): scaled so that its L2 norm is at most max_norm
    double max_norm,
):
    """gradients *= min(1, max_norm / norm); returns the norm before (Pascanu et al. 2013)."""
    cdef Py_ssize_t i, P = gradients.shape[0]
    cdef floating* g = check_vector[floating]("gradients", gradients, P)
    cdef double norm
    cdef floating factor
    check_norm(max_norm)
    with nogil:
        norm = sqrt(row_squares(g, P))
        if norm > max_norm:
            factor = <floating> (max_norm / norm)
            for i in range(P):
                g[i] *= factor
    return norm


def add_into(
    const floating[::1] x not None,  # IN (P,)
    floating[::1] out not None,      # IN/OUT (P,): added to
):
    """out += x."""
    cdef Py_ssize_t i, P = out.shape[0]
    cdef floating* x0 = check_vector("x", x, P)
    cdef floating* out0 = check_vector[floating]("out", out, P)
    with nogil:
        for i in range(P):
            out0[i] += x0[i]


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
    cdef Py_ssize_t e, start, stop = 0, P = parameters.shape[0], n_edges = edges.shape[0]
    cdef floating* parameters0 = check_vector[floating]("parameters", parameters, P)
    cdef floating* gradients0 = check_vector("gradients", gradients, P)
    cdef floating* m0 = check_vector[floating]("m", m, P)
    cdef floating* v0 = check_vector[floating]("v", v, P)
    check_ints("edges", edges, n_edges)
    for e in range(n_edges):
        if not (edges[e - 1] if e else 0) <= edges[e] <= P:
            raise ValueError(f"edges[{e}] is {edges[e]}: they must rise from 0 to {P} at most")
    with nogil:
        for e in range(n_edges + 1):
            start, stop = stop, (<Py_ssize_t> edges[e] if e < n_edges else P)
            adam_numbers(gradient_scale, rate, beta1, beta2, inverse_root, epsilon,
                         decay if e % 2 else 0.0, start, stop, parameters0, gradients0, m0, v0)


cdef void adam_numbers(
    double gradient_scale, double rate, double beta1, double beta2, double inverse_root,
    double epsilon, double decay, Py_ssize_t start, Py_ssize_t stop,
    floating* parameters, const floating* gradients, floating* m, floating* v,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating g, b1 = <floating> beta1, b2 = <floating> beta2
    cdef floating c1 = <floating> (1.0 - beta1), c2 = <floating> (1.0 - beta2)
    cdef floating scale = <floating> gradient_scale, step = <floating> rate
    cdef floating root = <floating> inverse_root, eps = <floating> epsilon
    cdef floating keep = <floating> (1.0 - decay)
    for i in range(start, stop):
        g = gradients[i] * scale
        m[i] = b1 * m[i] + c1 * g
        v[i] = b2 * v[i] + c2 * g * g
        parameters[i] = keep * parameters[i] - step * m[i] / (root_of(v[i]) * root + eps)
