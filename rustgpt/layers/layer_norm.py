"""Owns the layer-norm layer (Ba, Kiros and Hinton 2016)."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array, Indices
from rustgpt.layers.team import Member


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
        r = self.member.rows if self.member else slice(None)
        ops.layer_norm_forward(
            x[r], self.weight, self.bias, self.epsilon, out[r], self.mean[r], self.rstd[r]
        )  # (N, C)
        return out

    def backward(self, dout: Array) -> Array:
        # forward: out = (x - mean) * rstd * weight + bias
        dx = self.scratch("dx", *dout.shape)
        if self.member:
            self._backward_in_team(dout, dx, self.member)
            return dx
        ops.layer_norm_backward(
            dout, self.x, self.weight, self.mean, self.rstd, dx, self.dweight, self.dbias
        )  # (N, C)
        return dx

    def _backward_in_team(self, dout: Array, dx: Array, member: Member) -> None:
        """Fill in this thread's rows of dx; the gradients are few, and the last thread's to add."""
        n, C = member.team.n, self.dim
        each = self.scratch("each", n, 2, C)  # a thread's dweight and dbias
        mine, r = each[member.share.index], member.rows
        mine.fill(0)
        ops.layer_norm_backward(
            dout[r], self.x[r], self.weight, self.mean[r], self.rstd[r], dx[r], mine[0], mine[1]
        )  # (n, C)
        member.share.barrier.wait()
        if member.share.index == n - 1:
            for dweight, dbias in each:
                self.dweight += dweight
                self.dbias += dbias

    def works_in_team(self) -> bool:
        return type(self) is LayerNorm

    def describe(self) -> str:
        return f"LayerNorm({self.dim})"
