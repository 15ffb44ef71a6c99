"""Owns layer normalisation, in NumPy (Ba, Kiros and Hinton 2016)."""

import numpy as np

from rustgpt.reference.arrays import Matrix, OutMatrix, OutVector, Vector


def layer_norm_forward(
    x: Matrix,  # (N, C)
    weight: Vector,  # (C,)
    bias: Vector,  # (C,)
    epsilon: float,
    out: OutMatrix,  # (N, C)
    mean: OutVector,  # (N,)
    rstd: OutVector,  # (N,)
) -> None:
    """out = z * weight + bias, z = (x - mean) * rstd, rstd = 1 / sqrt(variance + epsilon)."""
    mean[...] = x.mean(axis=1)
    rstd[...] = 1 / np.sqrt(x.var(axis=1) + epsilon)
    z = (x - mean[:, None]) * rstd[:, None]  # (N, C)
    out[...] = z * weight + bias


def layer_norm_backward(
    dout: Matrix,  # (N, C)
    x: Matrix,  # (N, C)
    weight: Vector,  # (C,)
    mean: Vector,  # (N,)
    rstd: Vector,  # (N,)
    dx: OutMatrix,  # (N, C): overwritten
    dweight: OutVector,  # (C,): added to
    dbias: OutVector,  # (C,): added to
) -> None:
    """dx = rstd (dz - mean(dz) - z mean(dz z)), dz = dout weight.

    The two means are what the row's mean and its variance pass back to every element: z does not
    change when x is shifted or stretched, so dx has no part along either.
    """
    z = (x - mean[:, None]) * rstd[:, None]  # (N, C)
    dz = dout * weight  # (N, C)
    mean_dz = dz.mean(axis=1, keepdims=True)  # (N, 1)
    mean_dz_z = (dz * z).mean(axis=1, keepdims=True)  # (N, 1)
    dweight += (dout * z).sum(axis=0)
    dbias += dout.sum(axis=0)
    dx[...] = rstd[:, None] * (dz - mean_dz - z * mean_dz_z)


KERNELS = (layer_norm_forward, layer_norm_backward)
