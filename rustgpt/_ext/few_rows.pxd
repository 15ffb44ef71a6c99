"""Owns the matrix products of the few rows that are decoded together.

A weight is read from memory once, in order, and the memory is asked for what comes next: for one
row that is all of the cost, for eight it still is most of it. Whatever the number of rows, each
number of the result is summed in the same order: over 16 rows of the weight each, and these sums
one after the other; or, if the weight is transposed, over every 16th number (as many as a register
holds), and then these sums. So a row's result has the same bits alone and among others.
"""
cdef extern from "few_rows.h" nogil:
    # out (n, c) = bias + x (n, k) @ w (k, c), or @ w.T of a transposed w (c, k), of the columns c
    # from `first` on and before `stop`; bias (c,) may be NULL.
    void few_rows "few_rows_f32"(
        bint transposed, Py_ssize_t n, Py_ssize_t k, const float* x, Py_ssize_t ldx,
        const float* w, Py_ssize_t ldw, Py_ssize_t first, Py_ssize_t stop, const float* bias,
        float* out, Py_ssize_t ldo)
    void few_rows "few_rows_f64"(
        bint transposed, Py_ssize_t n, Py_ssize_t k, const double* x, Py_ssize_t ldx,
        const double* w, Py_ssize_t ldw, Py_ssize_t first, Py_ssize_t stop, const double* bias,
        double* out, Py_ssize_t ldo)
