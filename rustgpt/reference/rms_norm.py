"""Owns RMS normalisation, in NumPy (Zhang and Sennrich 2019)."""

import numpy as np

from rustgpt.reference.arrays import Matrix, OutMatrix, OutVector, Vector


def rms_norm_forward(
    x: Matrix,  # (N, C)
    weight: Vector,  # (C,)
    epsilon: float,
    out: OutMatrix,  # (N, C)
    rstd: OutVector,  # (N,)
) -> None:
    """out = z * weight, z = x * rstd, rstd = 1 / sqrt(mean(x^2) + epsilon)."""
    rstd[...] = 1 / np.sqrt((x * x).mean(axis=1) + epsilon)
    out[...] = x * rstd[:, None] * weight


def rms_norm_backward(
    dout: Matrix,  # (N, C)
    x: Matrix,  # (N, C)
    weight: Vector,  # (C,)
    rstd: Vector,  # (N,)
    dx: OutMatrix,  # (N, C): overwritten
    dweight: OutVector,  # (C,): added to
) -> None:
    """dx = rstd (dz - z mean(dz z)), dz = dout weight.

    z does not change when x is stretched, so dx has no part along x.
    """
    z = x * rstd[:, None]  # (N, C)
    dz = dout * weight  # (N, C)
    mean_dz_z = (dz * z).mean(axis=1, keepdims=True)  # (N, 1)
    dweight += (dout * z).sum(axis=0)
    dx[...] = rstd[:, None] * (dz - z * mean_dz_z)


KERNELS = (rms_norm_forward, rms_norm_backward)
