"""Owns the linear layer, in NumPy: out = x @ weight + bias, and its gradients."""

from rustgpt.reference.arrays import Matrix, OutMatrix, OutVector, Vector


def linear_forward(
    x: Matrix,  # (N, C_in)
    weight: Matrix,  # (C_in, C_out), or (C_out, C_in) if transposed
    bias: Vector | None,  # (C_out,)
    out: OutMatrix,  # (N, C_out)
    transposed: bool = False,
) -> None:
    """out = x @ weight + bias."""
    out[...] = x @ (weight.T if transposed else weight)  # (N, C_in) @ (C_in, C_out)
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
