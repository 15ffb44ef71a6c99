"""Owns the arithmetic on one row that a compiler vectorises only when it is spelled this way.

Cython cannot write `#pragma omp simd` (it needs no OpenMP runtime, only permission to reorder one
sum), so these few loops are C. Sums run in double: a float32 sum of squares overflows at 1e20.
"""
from cython cimport floating

cdef extern from "rows.h":
    float row_max_f32(const float* x, Py_ssize_t n) noexcept nogil
    double row_max_f64(const double* x, Py_ssize_t n) noexcept nogil
    double row_sum_f32(const float* x, Py_ssize_t n) noexcept nogil
    double row_sum_f64(const double* x, Py_ssize_t n) noexcept nogil
    double row_dot_f32(const float* x, const float* y, Py_ssize_t n) noexcept nogil
    double row_dot_f64(const double* x, const double* y, Py_ssize_t n) noexcept nogil
    double row_squares_f32(const float* x, Py_ssize_t n) noexcept nogil
    double row_squares_f64(const double* x, Py_ssize_t n) noexcept nogil
    double row_square_deviations_f32(const float* x, float mean, Py_ssize_t n) noexcept nogil
    double row_square_deviations_f64(const double* x, double mean, Py_ssize_t n) noexcept nogil
    void row_norm_sums_f32(const float* y, const float* w, const float* x, float mean,
                           Py_ssize_t n, double* sum, double* moment) noexcept nogil
    void row_norm_sums_f64(const double* y, const double* w, const double* x, double mean,
                           Py_ssize_t n, double* sum, double* moment) noexcept nogil
    void row_norm_gradient_f32(
        const float* y, const float* w, const float* x, float mean, float s, float a, float b,
        const float* residual, Py_ssize_t n, float* dx, float* dw, float* db) noexcept nogil
    void row_norm_gradient_f64(
        const double* y, const double* w, const double* x, double mean, double s, double a,
        double b, const double* residual, Py_ssize_t n, double* dx, double* dw,
        double* db) noexcept nogil
    void row_gelu_f32(const float* x, Py_ssize_t n, float* y) noexcept nogil
    void row_gelu_f64(const double* x, Py_ssize_t n, double* y) noexcept nogil
    void row_gelu_backward_f32(const float* dy, const float* x, Py_ssize_t n, float* dx,
                               float* y) noexcept nogil
    void row_gelu_backward_f64(const double* dy, const double* x, Py_ssize_t n, double* dx,
                               double* y) noexcept nogil
    void dots_f32(const float* x, const float* rows, Py_ssize_t ld, Py_ssize_t count,
                  Py_ssize_t n, float* out) noexcept nogil
    void dots_f64(const double* x, const double* rows, Py_ssize_t ld, Py_ssize_t count,
                  Py_ssize_t n, double* out) noexcept nogil
    void combine_f32(const float* a, Py_ssize_t inc, const float* rows, Py_ssize_t ld,
                     Py_ssize_t count, Py_ssize_t n, float* out) noexcept nogil
    void combine_f64(const double* a, Py_ssize_t inc, const double* rows, Py_ssize_t ld,
                     Py_ssize_t count, Py_ssize_t n, double* out) noexcept nogil
    double row_exp_f32(const float* x, float scale, float shift, float* y,
                       Py_ssize_t n) noexcept nogil
    double row_exp_f64(const double* x, double scale, double shift, double* y,
                       Py_ssize_t n) noexcept nogil


cdef inline floating row_max(const floating* x, Py_ssize_t n) noexcept nogil:
    if floating is float:
        return row_max_f32(x, n)
    else:
        return row_max_f64(x, n)


cdef inline double row_sum(const floating* x, Py_ssize_t n) noexcept nogil:
    if floating is float:
        return row_sum_f32(x, n)
    else:
        return row_sum_f64(x, n)


cdef inline double row_dot(const floating* x, const floating* y, Py_ssize_t n) noexcept nogil:
    if floating is float:
        return row_dot_f32(x, y, n)
    else:
        return row_dot_f64(x, y, n)


cdef inline double row_squares(const floating* x, Py_ssize_t n) noexcept nogil:
    if floating is float:
        return row_squares_f32(x, n)
    else:
        return row_squares_f64(x, n)


cdef inline double row_square_deviations(
    const floating* x, floating mean, Py_ssize_t n
) noexcept nogil:
    if floating is float:
        return row_square_deviations_f32(x, mean, n)
    else:
        return row_square_deviations_f64(x, mean, n)


cdef inline void row_norm_sums(
    const floating* y, const floating* w, const floating* x, floating mean, Py_ssize_t n,
    double* sum, double* moment,
) noexcept nogil:
    if floating is float:
        row_norm_sums_f32(y, w, x, mean, n, sum, moment)
    else:
        row_norm_sums_f64(y, w, x, mean, n, sum, moment)


cdef inline void row_norm_gradient(
    const floating* y, const floating* w, const floating* x, floating mean, floating s,
    floating a, floating b, const floating* residual, Py_ssize_t n,
    floating* dx, floating* dw, floating* db,
) noexcept nogil:
    if floating is float:
        row_norm_gradient_f32(y, w, x, mean, s, a, b, residual, n, dx, dw, db)
    else:
        row_norm_gradient_f64(y, w, x, mean, s, a, b, residual, n, dx, dw, db)


cdef inline void row_gelu(const floating* x, Py_ssize_t n, floating* y) noexcept nogil:
    if floating is float:
        row_gelu_f32(x, n, y)
    else:
        row_gelu_f64(x, n, y)


cdef inline void row_gelu_backward(
    const floating* dy, const floating* x, Py_ssize_t n, floating* dx, floating* y
) noexcept nogil:
    if floating is float:
        row_gelu_backward_f32(dy, x, n, dx, y)
    else:
        row_gelu_backward_f64(dy, x, n, dx, y)


cdef inline void dots(
    const floating* x, const floating* rows, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t n,
    floating* out,
) noexcept nogil:
    if floating is float:
        dots_f32(x, rows, ld, count, n, out)
    else:
        dots_f64(x, rows, ld, count, n, out)


cdef inline void combine(
    const floating* a, Py_ssize_t inc, const floating* rows, Py_ssize_t ld, Py_ssize_t count,
    Py_ssize_t n, floating* out,
) noexcept nogil:
    if floating is float:
        combine_f32(a, inc, rows, ld, count, n, out)
    else:
        combine_f64(a, inc, rows, ld, count, n, out)


cdef inline double row_exp(
    const floating* x, floating scale, floating shift, floating* y, Py_ssize_t n
) noexcept nogil:
    if floating is float:
        return row_exp_f32(x, scale, shift, y, n)
    else:
        return row_exp_f64(x, scale, shift, y, n)
