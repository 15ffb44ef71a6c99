"""Owns the layer-norm layer (Ba, Kiros and Hinton 2016)."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array, Indices


class LayerNorm(Layer):
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias, each row by itself.

    Parameters
    ----------
    dim
        C, numbers in a row.
    epsilon
        Keeps the division defined for a row of equal numbers.
    """

    def __init__(self, dim: int, epsilon: float = 1e-5, dtype: Any = np.float32) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.epsilon = epsilon
        self.weight: Array
        self.dweight: Array
        self.bias: Array
        self.dbias: Array
        self.parameter("weight", np.ones(dim))
        self.parameter("bias", np.zeros(dim))

    def forward(self, x: Array, offsets: Indices) -> Array:
        N, C = x.shape
        self.x = x
        self.mean, self.rstd = self.buffer("mean", N), self.buffer("rstd", N)
        out = self.buffer("out", N, C)
        ops.layer_norm_forward(
            x, self.weight, self.bias, self.epsilon, out, self.mean, self.rstd
        )  # (N, C)
        return out

    def backward(self, dout: Array) -> Array:
        # forward: out = (x - mean) * rstd * weight + bias
        dx = self.scratch("dx", *dout.shape)
        ops.layer_norm_backward(
            dout, self.x, self.weight, self.mean, self.rstd, dx, self.dweight, self.dbias
        )  # (N, C)
        return dx

    def divides_rows(self) -> bool:
        return True

    def describe(self) -> str:
        return f"LayerNorm({self.dim})"
