"""Owns the RMS-norm layer (Zhang and Sennrich 2019)."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import EPSILON
from rustgpt.layers.memory import Array
from rustgpt.reference.arrays import Shard


class RMSNorm(Layer):
    """out = x / sqrt(mean(x^2) + epsilon) * weight, each row by itself.

    Parameters
    ----------
    dim
        C, numbers in a row.
    epsilon
        Keeps the division defined for a row of zeros.
    """

    divides_rows = True

    def __init__(self, dim: int, epsilon: float = EPSILON, dtype: Any = np.float32) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.epsilon = epsilon
        self.weight: Array
        self.parameter("weight", np.ones(dim))

    def forward(self, x: Array, ctx: Context) -> Array:
        N, C = x.shape
        rstd, out = ctx.empty(N), ctx.empty(N, C)
        r = ctx.rows
        ops.rms_norm_forward(x[r], self.weight, self.epsilon, out[r], rstd[r])  # (N, C)
        ctx.save(self, x, rstd)
        return out

    def backward(self, dout: Array, ctx: Context) -> Array:
        # forward: out = x * rstd * weight
        x, rstd = ctx.saved(self)
        dx = ctx.empty(*dout.shape)
        dweight = ctx.gradients.of(self.weight)
        if ctx.shard:
            self._backward_of_shard(dout, x, rstd, dx, dweight, ctx, ctx.shard)
            return dx
        ops.rms_norm_backward(dout, x, self.weight, rstd, dx, dweight)  # (N, C)
        return dx

    def _backward_of_shard(
        self, dout: Array, x: Array, rstd: Array, dx: Array, dweight: Array, ctx: Context,
        shard: Shard,
    ) -> None:  # fmt: skip
        """Fill in this thread's rows of dx; the last thread adds up the gradients of all."""
        each = ctx.empty(shard.n, self.dim)  # a thread's dweight
        mine, r = each[shard.index], shard.rows
        mine.fill(0)
        ops.rms_norm_backward(dout[r], x[r], self.weight, rstd[r], dx[r], mine)  # (n, C)
        shard.barrier.wait()
        if shard.index == shard.n - 1:
            for one in each:
                dweight += one

    def describe(self) -> str:
        return f"RMSNorm({self.dim})"
