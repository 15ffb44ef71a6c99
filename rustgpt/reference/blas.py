"""Owns the matrix products, in NumPy."""

from rustgpt.reference.arrays import Matrix, OutMatrix


def matrix_product(
    a: Matrix,  # (m, k), or (k, m) if trans_a
    b: Matrix,  # (k, n), or (n, k) if trans_b
    out: OutMatrix,  # (m, n)
    trans_a: bool = False,
    trans_b: bool = False,
    add: bool = False,  # to out, or else it is overwritten
) -> None:
    """out = (out if add) + op(a) @ op(b)."""
    product = (a.T if trans_a else a) @ (b.T if trans_b else b)  # (m, n)
    out[...] = out + product if add else product


KERNELS = (matrix_product,)
