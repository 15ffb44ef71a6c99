"""Owns the matrix products, in NumPy."""

from rustgpt.reference.arrays import Matrix, OutMatrix, OutVector, Vector


def matrix_product(
    a: Matrix,  # (m, k), or (k, m) if trans_a
    b: Matrix,  # (k, n), or (n, k) if trans_b
    out: OutMatrix,  # (m, n)
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """out = alpha * op(a) @ op(b) + beta * out."""
    product = (a.T if trans_a else a) @ (b.T if trans_b else b)  # (m, n)
    out[...] = alpha * product + (beta * out if beta else 0)


def matrix_vector_product(
    a: Matrix,  # (m, n)
    x: Vector,  # (n,), or (m,) if trans_a
    out: OutVector,  # (m,), or (n,) if trans_a
    trans_a: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """out = alpha * op(a) @ x + beta * out."""
    out[...] = alpha * ((a.T if trans_a else a) @ x) + (beta * out if beta else 0)


KERNELS = (matrix_product, matrix_vector_product)
