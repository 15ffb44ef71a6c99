"""Owns ReLU, GELU and SwiGLU, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Array, Matrix, OutMatrix

ROOT = 0.7978845608028654  # sqrt(2 / pi)
CUBIC = 0.044715


def relu_forward(x: Matrix, out: OutMatrix) -> None:  # (N, F) -> (N, F)
    """out = max(x, 0)."""
    out[...] = np.maximum(x, 0)


def relu_backward(dout: Matrix, x: Matrix, dx: OutMatrix) -> None:  # (N, F), (N, F) -> (N, F)
    """dx = dout where x > 0, else 0."""
    dx[...] = np.where(x > 0, dout, 0)


def gelu_forward(x: Matrix, out: OutMatrix) -> None:  # (N, F) -> (N, F)
    """out = 0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    near = np.clip(x, -10, 10)  # beyond, tanh(u) is -1 or 1 to the last bit, and x^3 could overflow
    out[...] = 0.5 * x * (1 + np.tanh(ROOT * (near + CUBIC * near**3)))


def gelu_backward(dout: Matrix, x: Matrix, dx: OutMatrix) -> None:  # (N, F), (N, F) -> (N, F)
    """dx = dout (0.5 (1 + tanh(u)) + 0.5 x (1 - tanh(u)^2) du/dx)."""
    near = np.clip(x, -10, 10)
    t = np.tanh(ROOT * (near + CUBIC * near**3))
    slope = ROOT * (1 + 3 * CUBIC * near**2)  # du/dx
    dx[...] = dout * (0.5 * (1 + t) + 0.5 * near * (1 - t**2) * slope)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without an exponential that overflows."""
    e = np.exp(-np.abs(x))
    s: Array = np.where(x < 0, e, 1) / (1 + e)
    return s


def swiglu_forward(x: Matrix, out: OutMatrix) -> None:  # (N, 2 F) -> (N, F)
    """out = silu(gate) * up, x = [gate, up], silu(g) = g / (1 + exp(-g)) (Shazeer 2020)."""
    gate, up = np.split(x, 2, axis=1)  # (N, F) each
    out[...] = gate * sigmoid(gate) * up


def swiglu_backward(
    dout: Matrix,  # (N, F)
    x: Matrix,  # (N, 2 F)
    dx: OutMatrix,  # (N, 2 F): overwritten
) -> None:
    """dgate = dout up s (1 + gate (1 - s)), dup = dout silu(gate), s = sigmoid(gate)."""
    gate, up = np.split(x, 2, axis=1)  # (N, F) each
    s = sigmoid(gate)
    dx[...] = np.hstack([dout * up * s * (1 + gate * (1 - s)), dout * gate * s])


KERNELS = (
    relu_forward, relu_backward, gelu_forward, gelu_backward, swiglu_forward, swiglu_backward,
)  # fmt: skip
