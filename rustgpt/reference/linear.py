"""Owns the linear layer, in NumPy: out = x @ weight + bias, and its gradients."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def linear_forward(
    x: Array,  # (N, C_in)
    weight: Array,  # (C_in, C_out), or (C_out, C_in) if transposed
    bias: Array | None,  # (C_out,)
    out: Array,  # (N, C_out)
    transposed: bool = False,
) -> None:
    """out = x @ weight + bias."""
    out[...] = x @ (weight.T if transposed else weight)  # (N, C_in) @ (C_in, C_out)
    if bias is not None:
        out += bias


def linear_backward(
    dout: Array,  # (N, C_out)
    x: Array,  # (N, C_in)
    weight: Array,  # (C_in, C_out), or (C_out, C_in) if transposed
    dx: Array | None,  # (N, C_in): overwritten
    dweight: Array,  # like weight: added to
    dbias: Array | None,  # (C_out,): added to
    transposed: bool = False,
) -> None:
    """dx = dout @ weight.T; dweight += x.T @ dout; dbias += sum of dout over the rows.

    From out[n, j] = sum_i x[n, i] weight[i, j] + bias[j]: the derivative by x[n, i] is
    weight[i, j], by weight[i, j] it is x[n, i], by bias[j] it is 1.
    """
    if dx is not None:
        dx[...] = dout @ (weight if transposed else weight.T)  # (N, C_out) @ (C_out, C_in)
    dweight += dout.T @ x if transposed else x.T @ dout  # (C_in, N) @ (N, C_out)
    if dbias is not None:
        dbias += dout.sum(axis=0)


KERNELS = (linear_forward, linear_backward)
