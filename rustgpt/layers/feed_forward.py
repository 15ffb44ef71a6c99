"""Owns the feed-forward layer: two linear maps with a non-linearity between them."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer, normal
from rustgpt.layers.memory import Array


class FeedForward(Layer):
    """out = activation(x @ weight1 + bias1) @ weight2 + bias2, each row by itself.

    With SwiGLU (Shazeer 2020) the first product has 2 F columns, gate and up, of which the
    activation makes F: silu(gate) * up.

    Parameters
    ----------
    dim
        C, numbers in a row.
    hidden_dim
        F, numbers between the two maps.
    rng
        Source of the initial weights, normal with variance 2 / C and 2 / F (He et al. 2015).
    activation
        "relu", "gelu" or "swiglu".
    bias
        Whether the products have a bias.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        rng: np.random.Generator | None,
        activation: str = "relu",
        dtype: Any = np.float32,
        bias: bool = True,
    ) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.activation = activation
        self.weight1: Array
        self.bias1: Array | None = None
        self.weight2: Array
        self.bias2: Array | None = None
        inner = hidden_dim * (2 if activation == "swiglu" else 1)  # G
        self.parameter("weight1", normal(rng, (2 / dim) ** 0.5, (dim, inner), dtype))
        if bias:
            self.parameter("bias1", np.zeros(inner))
        self.parameter("weight2", normal(rng, (2 / hidden_dim) ** 0.5, (hidden_dim, dim), dtype))
        if bias:
            self.parameter("bias2", np.zeros(dim))

    def forward(self, x: Array, ctx: Context) -> Array:
        N, C = x.shape
        hidden, out = ctx.empty(N, self.weight1.shape[1]), ctx.empty(N, C)
        ops.linear_forward(x, self.weight1, self.bias1, hidden, bfloat16=ctx.bfloat16)  # (N, G)
        if self.activation == "relu":
            # ReLU's gradient can be told from its output, so the input need not be kept.
            activated = hidden
            ops.relu_forward(hidden, activated)  # (N, F)
        else:
            activated = ctx.empty(N, len(self.weight2))
            getattr(ops, f"{self.activation}_forward")(hidden, activated)  # (N, G) -> (N, F)
        ops.linear_forward(
            activated, self.weight2, self.bias2, out, bfloat16=ctx.bfloat16
        )  # (N, C)
        ctx.save(self, x, hidden, activated)
        return out

    def backward(self, dout: Array, ctx: Context) -> Array:
        N, C = dout.shape
        x, hidden, activated = ctx.saved(self)
        gradient = ctx.gradients.of
        dbias1 = None if self.bias1 is None else gradient(self.bias1)
        dbias2 = None if self.bias2 is None else gradient(self.bias2)
        # forward: out = activated @ weight2 + bias2
        dactivated = ctx.empty(N, len(self.weight2))
        ops.linear_backward(
            dout, activated, self.weight2, dactivated, gradient(self.weight2), dbias2,
            bfloat16=ctx.bfloat16,
        )  # (N, F)  # fmt: skip
        # forward: activated = activation(hidden)
        dhidden = dactivated if self.activation != "swiglu" else ctx.empty(*hidden.shape)
        getattr(ops, f"{self.activation}_backward")(dactivated, hidden, dhidden)  # (N, G)
        # forward: hidden = x @ weight1 + bias1
        dx = ctx.empty(N, C)
        ops.linear_backward(
            dhidden, x, self.weight1, dx, gradient(self.weight1), dbias1, bfloat16=ctx.bfloat16
        )  # (N, C)
        return dx

    def describe(self) -> str:
        F, C = self.weight2.shape
        return f"FeedForward({C} -> {F} -> {C}, {self.activation})"
