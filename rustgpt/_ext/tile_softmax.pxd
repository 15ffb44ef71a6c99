"""Owns the softmax of attention's scores a tile at a time, and its gradient.

About 4 operations and one exponential a score, that of the gradient one more; the tile, of a few
rows and up to 64 scores each, stays in the first-level cache between the steps.
"""
from cython cimport floating

cdef extern from "tile_softmax.h":
    void tile_softmax_f32(float* x, Py_ssize_t ld, int m, int n, int seen, float scale,
                          float* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_f64(double* x, Py_ssize_t ld, int m, int n, int seen, double scale,
                          double* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_backward_f32(float* x, float* dp, Py_ssize_t ld, int m, int n, int seen,
                                   float scale, const float* lse, Py_ssize_t ld_lse) noexcept nogil
    void tile_softmax_backward_f64(
        double* x, double* dp, Py_ssize_t ld, int m, int n, int seen, double scale,
        const double* lse, Py_ssize_t ld_lse) noexcept nogil


cdef inline void tile_softmax(
    floating* x, Py_ssize_t ld, int m,  # IN/OUT (m, 16 n), n up to 4: scores; their softmax
    int n, int seen, floating scale,    # row i counts the first seen + i
    floating* lse, Py_ssize_t ld_lse,   # OUT (m,): the log of its denominator
) noexcept nogil:
    """x = softmax(scale * x), and 0 where it does not count."""
    if floating is float:
        tile_softmax_f32(x, ld, m, n, seen, scale, lse, ld_lse)
    else:
        tile_softmax_f64(x, ld, m, n, seen, scale, lse, ld_lse)


cdef inline void tile_softmax_backward(
    floating* x, floating* dp, Py_ssize_t ld, int m,  # IN/OUT (m, 16 n): scores, gradient
    int n, int seen, floating scale,
    const floating* lse, Py_ssize_t ld_lse,           # IN (m,)
) noexcept nogil:
    """From scores and the gradient of their softmax: softmax in x, the scores' gradient in dp."""
    if floating is float:
        tile_softmax_backward_f32(x, dp, ld, m, n, seen, scale, lse, ld_lse)
    else:
        tile_softmax_backward_f64(x, dp, ld, m, n, seen, scale, lse, ld_lse)
