"""Owns the arithmetic on one row that a compiler vectorises only when it is spelled this way.

Cython cannot write `#pragma omp simd` (it needs no OpenMP runtime, only permission to reorder one
sum), so these few loops are C. Sums run in double: a float32 sum of squares overflows at 1e20.
Which of two functions a name stands for says the type of its arguments.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "rows.h" nogil:
    float row_max "row_max_f32"(const float* x, Py_ssize_t n)
    double row_max "row_max_f64"(const double* x, Py_ssize_t n)
    double row_sum "row_sum_f32"(const float* x, Py_ssize_t n)
    double row_sum "row_sum_f64"(const double* x, Py_ssize_t n)
    double row_dot "row_dot_f32"(const float* x, const float* y, Py_ssize_t n)
    double row_dot "row_dot_f64"(const double* x, const double* y, Py_ssize_t n)
    double row_squares "row_squares_f32"(const float* x, Py_ssize_t n)
    double row_squares "row_squares_f64"(const double* x, Py_ssize_t n)
    double row_square_deviations "row_square_deviations_f32"(
        const float* x, float mean, Py_ssize_t n)
    double row_square_deviations "row_square_deviations_f64"(
        const double* x, double mean, Py_ssize_t n)
    void row_norm_sums "row_norm_sums_f32"(
        const float* y, const float* w, const float* x, float mean, Py_ssize_t n, double* sum,
        double* moment)
    void row_norm_sums "row_norm_sums_f64"(
        const double* y, const double* w, const double* x, double mean, Py_ssize_t n, double* sum,
        double* moment)
    void row_norm_gradient "row_norm_gradient_f32"(
        const float* y, const float* w, const float* x, float mean, float s, float a, float b,
        const float* residual, Py_ssize_t n, float* dx, float* dw, float* db)
    void row_norm_gradient "row_norm_gradient_f64"(
        const double* y, const double* w, const double* x, double mean, double s, double a,
        double b, const double* residual, Py_ssize_t n, double* dx, double* dw, double* db)
    void row_rms_gradient "row_rms_gradient_f32"(
        const float* y, const float* w, const float* x, float s, float b, const float* residual,
        Py_ssize_t n, float* dx, float* dw)
    void row_rms_gradient "row_rms_gradient_f64"(
        const double* y, const double* w, const double* x, double s, double b,
        const double* residual, Py_ssize_t n, double* dx, double* dw)
    void row_swiglu "row_swiglu_f32"(const float* g, const float* u, Py_ssize_t n, float* y)
    void row_swiglu "row_swiglu_f64"(const double* g, const double* u, Py_ssize_t n, double* y)
    void row_swiglu_backward "row_swiglu_backward_f32"(
        const float* dy, const float* g, const float* u, Py_ssize_t n, float* dg, float* du,
        float* y)
    void row_swiglu_backward "row_swiglu_backward_f64"(
        const double* dy, const double* g, const double* u, Py_ssize_t n, double* dg, double* du,
        double* y)
    void row_gelu "row_gelu_f32"(const float* x, Py_ssize_t n, float* y)
    void row_gelu "row_gelu_f64"(const double* x, Py_ssize_t n, double* y)
    void row_gelu_backward "row_gelu_backward_f32"(
        const float* dy, const float* x, Py_ssize_t n, float* dx, float* y)
    void row_gelu_backward "row_gelu_backward_f64"(
        const double* dy, const double* x, Py_ssize_t n, double* dx, double* y)
    void dots "dots_f32"(const float* x, const float* rows, Py_ssize_t ld, Py_ssize_t count,
                         Py_ssize_t n, float* out)
    void dots "dots_f64"(const double* x, const double* rows, Py_ssize_t ld, Py_ssize_t count,
                         Py_ssize_t n, double* out)
    void combine "combine_f32"(const float* a, const float* rows, Py_ssize_t ld, Py_ssize_t count,
                               Py_ssize_t n, bint add, float* out)
    void combine "combine_f64"(const double* a, const double* rows, Py_ssize_t ld,
                               Py_ssize_t count, Py_ssize_t n, bint add, double* out)
    double row_exp "row_exp_f32"(const float* x, float scale, float shift, float* y, Py_ssize_t n)
    double row_exp "row_exp_f64"(const double* x, double scale, double shift, double* y,
                                 Py_ssize_t n)
    void row_dropout "row_dropout_f32"(
        const float* x, uint64_t row, uint32_t threshold, float scale, bint add, Py_ssize_t n,
        float* out)
    void row_dropout "row_dropout_f64"(
        const double* x, uint64_t row, uint32_t threshold, double scale, bint add, Py_ssize_t n,
        double* out)
