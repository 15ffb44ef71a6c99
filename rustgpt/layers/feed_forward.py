"""Owns the feed-forward layer: two linear maps with a non-linearity between them."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer, normal
from rustgpt.layers.memory import Array


class FeedForward(Layer):
    """out = activation(x @ weight1 + bias1) @ weight2 + bias2, each row by itself.

    Parameters
    ----------
    dim
        C, numbers in a row.
    hidden_dim
        F, numbers between the two maps.
    rng
        Source of the initial weights, normal with variance 2 / C and 2 / F (He et al. 2015).
    activation
        "relu" or "gelu".
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        rng: np.random.Generator | None,
        activation: str = "relu",
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.activation = activation
        self.weight1: Array
        self.bias1: Array
        self.weight2: Array
        self.bias2: Array
        self.parameter("weight1", normal(rng, (2 / dim) ** 0.5, (dim, hidden_dim), dtype))
        self.parameter("bias1", np.zeros(hidden_dim))
        self.parameter("weight2", normal(rng, (2 / hidden_dim) ** 0.5, (hidden_dim, dim), dtype))
        self.parameter("bias2", np.zeros(dim))

    def forward(self, x: Array, ctx: Context) -> Array:
        N, C = x.shape
        F = len(self.bias1)
        hidden, out = ctx.empty(N, F), ctx.empty(N, C)
        ops.linear_forward(x, self.weight1, self.bias1, hidden, bfloat16=ctx.bfloat16)  # (N, F)
        if self.activation == "relu":
            # ReLU's gradient can be told from its output, so the input need not be kept.
            activated = hidden
            ops.relu_forward(hidden, activated)  # (N, F)
        else:
            activated = ctx.empty(N, F)
            ops.gelu_forward(hidden, activated)  # (N, F)
        ops.linear_forward(
            activated, self.weight2, self.bias2, out, bfloat16=ctx.bfloat16
        )  # (N, C)
        ctx.save(self, x, hidden, activated)
        return out

    def backward(self, dout: Array, ctx: Context) -> Array:
        N, C = dout.shape
        x, hidden, activated = ctx.saved(self)
        gradient = ctx.gradients.of
        # forward: out = activated @ weight2 + bias2
        dhidden = ctx.empty(N, len(self.bias1))
        ops.linear_backward(
            dout, activated, self.weight2, dhidden, gradient(self.weight2), gradient(self.bias2),
            bfloat16=ctx.bfloat16,
        )  # (N, F)  # fmt: skip
        # forward: activated = activation(hidden)
        activation_backward = ops.relu_backward if self.activation == "relu" else ops.gelu_backward
        activation_backward(dhidden, hidden, dhidden)  # (N, F)
        # forward: hidden = x @ weight1 + bias1
        dx = ctx.empty(N, C)
        ops.linear_backward(
            dhidden, x, self.weight1, dx, gradient(self.weight1), gradient(self.bias1),
            bfloat16=ctx.bfloat16,
        )  # (N, C)  # fmt: skip
        return dx

    def describe(self) -> str:
        C, F = self.weight1.shape
        return f"FeedForward({C} -> {F} -> {C}, {self.activation})"
