"""Owns the passes over a flat parameter buffer, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Indices, OutVector, Vector


def sum_of_squares(
    x: Vector,  # (P,)
) -> float:
    """Return sum(x^2), summed in double."""
    return float(np.sum(np.square(x, dtype=np.float64)))


def clip_by_global_norm(gradients: OutVector, max_norm: float) -> float:  # (P,)
    """gradients *= min(1, max_norm / norm); returns the norm before (Pascanu et al. 2013)."""
    norm = float(sum_of_squares(gradients) ** 0.5)
    if norm > max_norm:
        gradients *= max_norm / norm
    return norm


def add_into(x: Vector, out: OutVector) -> None:  # (P,) -> (P,)
    """out += x."""
    out += x


def adam_step(
    parameters: OutVector,  # (P,)
    gradients: Vector,  # (P,)
    m: OutVector,  # (P,): running mean of the gradient
    v: OutVector,  # (P,): running mean of its square
    edges: Indices,  # where decay begins, ends, begins again ...
    gradient_scale: float,
    rate: float,  # learning rate / (1 - beta1^t)
    beta1: float,
    beta2: float,
    inverse_root: float,  # 1 / sqrt(1 - beta2^t)
    epsilon: float,
    decay: float,  # learning rate * weight decay
) -> None:
    """Adam (Kingma and Ba 2015), with the decay apart (Loshchilov and Hutter 2019)."""
    g = gradients * gradient_scale
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g**2
    decays = np.searchsorted(edges, np.arange(len(parameters)), side="right") % 2 == 1  # (P,)
    parameters *= np.where(decays, 1 - decay, 1)
    parameters -= rate * m / (np.sqrt(v) * inverse_root + epsilon)


KERNELS = (sum_of_squares, clip_by_global_norm, add_into, adam_step)
