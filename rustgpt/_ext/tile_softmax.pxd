"""Owns the softmax of attention's scores a tile at a time, and its gradient.

About 4 operations and one exponential a score, that of the gradient one more; the tile, of a few
rows and up to 64 scores each, stays in the first-level cache between the steps.
"""
cdef extern from "tile_softmax.h" nogil:
    # x (m, 16 n), n up to 4: scores, which become softmax(scale * x). Row i counts the first
    # seen + i, the others become 0; lse (m,) is the log of its denominator.
    void tile_softmax "tile_softmax_f32"(float* x, Py_ssize_t ld, int m, int n, int seen,
                                         float scale, float* lse, Py_ssize_t ld_lse)
    void tile_softmax "tile_softmax_f64"(double* x, Py_ssize_t ld, int m, int n, int seen,
                                         double scale, double* lse, Py_ssize_t ld_lse)
    # From scores and the gradient of their softmax: softmax in x, the scores' gradient in dp.
    void tile_softmax_backward "tile_softmax_backward_f32"(
        float* x, float* dp, Py_ssize_t ld, int m, int n, int seen, float scale,
        const float* lse, Py_ssize_t ld_lse)
    void tile_softmax_backward "tile_softmax_backward_f64"(
        double* x, double* dp, Py_ssize_t ld, int m, int n, int seen, double scale,
        const double* lse, Py_ssize_t ld_lse)
