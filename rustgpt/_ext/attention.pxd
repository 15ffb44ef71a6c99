"""What decoding shares with attention: one head of one sequence, forward."""
from cython cimport floating
from libc.math cimport log, sqrt

from rustgpt._ext.blas cimport gemm
from rustgpt._ext.rows cimport row_exp, row_max

cdef enum:
    BLOCK = 64  # query rows whose scores are in cache at once


cdef inline void attend(
    const floating* q, Py_ssize_t ldq,                      # IN (rows, D)
    const floating* k, const floating* v, Py_ssize_t ldkv,  # IN (start + rows, D)
    Py_ssize_t rows, Py_ssize_t start, Py_ssize_t D,
    floating* out, Py_ssize_t ldo,                          # OUT (rows, D)
    floating* lse, Py_ssize_t ld_lse,                       # OUT (rows,) or NULL
    floating* scores,                                       # scratch (BLOCK, start + rows)
) noexcept nogil:
    """One head of one sequence: query row i sees the keys 0 .. start + i."""
    cdef Py_ssize_t block, i0, i, j, r, seen, keys
    cdef floating scale = <floating> (1.0 / sqrt(<double> D)), largest, inverse
    cdef floating* row
    cdef double total
    for block in range((rows + BLOCK - 1) // BLOCK):
        i0 = block * BLOCK
        r = min(<Py_ssize_t> BLOCK, rows - i0)
        keys = start + i0 + r
        # Pass 1: scores = q @ k.T                                    (r, keys)
        gemm(False, True, r, keys, D, <floating> 1, q + i0 * ldq, ldq, k, ldkv,
             <floating> 0, scores, keys)
        # Pass 2: softmax over the keys that a row may see; the rest become zero.
        for i in range(r):
            row = scores + i * keys
            seen = start + i0 + i + 1
            largest = row_max(row, seen) * scale
            total = row_exp(row, scale, largest, row, seen)
            inverse = <floating> (1.0 / total)
            for j in range(seen):
                row[j] *= inverse
            for j in range(seen, keys):
                row[j] = 0
            if lse != NULL:
                lse[(i0 + i) * ld_lse] = largest + <floating> log(total)
        # Pass 3: out = probabilities @ v                             (r, D)
        gemm(False, False, r, D, keys, <floating> 1, scores, keys, v, ldkv,
             <floating> 0, out + i0 * ldo, ldo)
