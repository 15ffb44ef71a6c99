"""Owns the layer-norm layer (Ba, Kiros and Hinton 2016)."""

from typing import Any, Final

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array
from rustgpt.reference.arrays import Shard

EPSILON: Final = 1e-5


class LayerNorm(Layer):
    """out = (x - mean) / sqrt(variance + epsilon) * weight + bias, each row by itself.

    Parameters
    ----------
    dim
        C, numbers in a row.
    epsilon
        Keeps the division defined for a row of equal numbers.
    """

    divides_rows = True

    def __init__(self, dim: int, epsilon: float = EPSILON, dtype: Any = np.float32) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.epsilon = epsilon
        self.weight: Array
        self.bias: Array
        self.parameter("weight", np.ones(dim))
        self.parameter("bias", np.zeros(dim))

    def forward(self, x: Array, ctx: Context) -> Array:
        N, C = x.shape
        mean, rstd, out = ctx.empty(N), ctx.empty(N), ctx.empty(N, C)
        r = ctx.rows
        ops.layer_norm_forward(
            x[r], self.weight, self.bias, self.epsilon, out[r], mean[r], rstd[r]
        )  # (N, C)
        ctx.save(self, x, mean, rstd)
        return out

    def backward(self, dout: Array, ctx: Context) -> Array:
        # forward: out = (x - mean) * rstd * weight + bias
        x, mean, rstd = ctx.saved(self)
        dx = ctx.empty(*dout.shape)
        dweight, dbias = ctx.gradients.of(self.weight), ctx.gradients.of(self.bias)
        if ctx.shard:
            self._backward_of_shard(dout, x, mean, rstd, dx, dweight, dbias, ctx, ctx.shard)
            return dx
        ops.layer_norm_backward(dout, x, self.weight, mean, rstd, dx, dweight, dbias)  # (N, C)
        return dx

    def _backward_of_shard(
        self, dout: Array, x: Array, mean: Array, rstd: Array, dx: Array, dweight: Array,
        dbias: Array, ctx: Context, shard: Shard,
    ) -> None:  # fmt: skip
        """Fill in this thread's rows of dx; the last thread adds up the gradients of all."""
        each = ctx.empty(shard.n, 2, self.dim)  # a thread's dweight and dbias
        mine, r = each[shard.index], shard.rows
        mine.fill(0)
        ops.layer_norm_backward(
            dout[r], x[r], self.weight, mean[r], rstd[r], dx[r], mine[0], mine[1]
        )  # (n, C)
        shard.barrier.wait()
        if shard.index == shard.n - 1:
            for one_dweight, one_dbias in each:
                dweight += one_dweight
                dbias += one_dbias

    def describe(self) -> str:
        return f"LayerNorm({self.dim})"
