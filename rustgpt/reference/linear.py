"""Owns the linear layer, in NumPy: out = x @ weight + bias, and its gradients."""

import numpy as np

from rustgpt.reference.arrays import Array, Matrix, OutMatrix, OutVector, Vector


def rounded(x: Array) -> Array:
    """Return x rounded to bfloat16, the upper half of a float32: to nearest, and ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    # A lower half above 0x8000 carries into the upper one; at 0x8000, only if that is odd.
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, upper.view(np.float32)).astype(x.dtype)


def product(a: Array, b: Array, bfloat16: bool) -> Array:  # (m, k), (k, n) -> (m, n)
    """Return a @ b, or that of their rounded numbers."""
    return rounded(a) @ rounded(b) if bfloat16 else a @ b


def linear_forward(
    x: Matrix,  # (N, C_in)
    weight: Matrix,  # (C_in, C_out), or (C_out, C_in) if transposed
    bias: Vector | None,  # (C_out,)
    out: OutMatrix,  # (N, C_out)
    transposed: bool = False,
    bfloat16: bool = False,  # whether the products' factors are rounded to it
) -> None:
    """out = x @ weight + bias."""
    # (N, C_in) @ (C_in, C_out)
    out[...] = product(x, weight.T if transposed else weight, bfloat16)
    if bias is not None:
        out += bias


def linear_backward(
    dout: Matrix,  # (N, C_out)
    x: Matrix,  # (N, C_in)
    weight: Matrix,  # (C_in, C_out), or (C_out, C_in) if transposed
    dx: OutMatrix | None,  # (N, C_in): overwritten
    dweight: OutMatrix,  # like weight: added to
    dbias: OutVector | None,  # (C_out,): added to
    transposed: bool = False,
    bfloat16: bool = False,  # whether the products' factors are rounded to it
) -> None:
    """dx = dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout over the rows.

    From out[n, j] = sum_i x[n, i] weight[i, j] + bias[j]: the derivative by x[n, i] is
    weight[i, j], by weight[i, j] it is x[n, i], by bias[j] it is 1.
    """
    if dx is not None:
        # (N, C_out) @ (C_out, C_in)
        dx[...] = product(dout, weight if transposed else weight.T, bfloat16)
    # (C_in, N) @ (N, C_out)
    dweight += product(dout.T, x, bfloat16) if transposed else product(x.T, dout, bfloat16)
    if dbias is not None:
        dbias += dout.sum(axis=0)


KERNELS = (linear_forward, linear_backward)
