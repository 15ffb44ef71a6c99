"""Owns the causal multi-head self-attention layer (Vaswani et al. 2017, section 3.2)."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Cache, Layer, normal
from rustgpt.layers.memory import Array, Indices


class SelfAttention(Layer):
    """Every token looks at itself and at those before it, and takes a weighted mean of values.

    queries, keys, values = x @ qkv_weight, as one product; each of H heads does
    softmax(mask(q @ k.T / sqrt(D))) @ v on its D = C / H columns; then the output projection.

    Parameters
    ----------
    dim
        C, numbers that represent one token.
    n_heads
        H, must divide `dim`.
    rng
        Source of the initial weights, normal with variance 1 / C.
    projection
        Whether an output projection follows the heads; RustGPT has none.
    bias
        Whether the products have a bias.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        rng: np.random.Generator | None,
        projection: bool = True,
        bias: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.n_heads = n_heads
        self.projection = projection
        self.qkv_weight: Array
        self.dqkv_weight: Array
        self.qkv_bias: Array | None = None
        self.dqkv_bias: Array | None = None
        self.projection_weight: Array
        self.dprojection_weight: Array
        self.projection_bias: Array | None = None
        self.dprojection_bias: Array | None = None
        std = dim**-0.5
        self.parameter("qkv_weight", normal(rng, std, (dim, 3 * dim), dtype))
        if bias:
            self.parameter("qkv_bias", np.zeros(3 * dim))
        if projection:
            self.parameter("projection_weight", normal(rng, std, (dim, dim), dtype))
            if bias:
                self.parameter("projection_bias", np.zeros(dim))

    def forward(self, x: Array, offsets: Indices) -> Array:
        (N, C), D = x.shape, self.dim // self.n_heads
        self.x, self.offsets = x, offsets
        self.qkv = self.buffer("qkv", N, 3 * C)
        self.heads = self.buffer("heads", N, C)
        self.lse = self.buffer("lse", N, self.n_heads)
        # No text has more rows than all together; memory that is not written costs nothing.
        self.scores = self.scratch("scores", ops.attention_scratch_size(N, D))
        self._multiply(x, self.qkv_weight, self.qkv_bias, self.qkv)  # (N, 3 C)
        ops.attention_forward(
            self.qkv, offsets, self.n_heads, self.heads, self.lse, self.scores
        )  # (N, C)
        return self._project(self.heads)

    def _multiply(self, x: Array, weight: Array, bias: Array | None, out: Array) -> None:
        ops.linear_forward(x, weight, bias, out, bfloat16=self.bfloat16)

    def _project(self, heads: Array) -> Array:  # (N, C) -> (N, C)
        if not self.projection:
            return heads
        out = self.buffer("out", *heads.shape)
        self._multiply(heads, self.projection_weight, self.projection_bias, out)
        return out

    def backward(self, dout: Array) -> Array:
        N, C = dout.shape
        # forward: out = heads @ projection_weight + projection_bias
        dheads = dout
        if self.projection:
            dheads = self.scratch("dheads", N, C)
            ops.linear_backward(
                dout, self.heads, self.projection_weight, dheads, self.dprojection_weight,
                self.dprojection_bias, bfloat16=self.bfloat16,
            )  # (N, C)  # fmt: skip
        # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
        dqkv = self.scratch("dqkv", N, 3 * C)
        ops.attention_backward(
            dheads, self.qkv, self.lse, self.offsets, self.n_heads, dqkv, self.scores
        )  # (N, 3 C)
        # forward: qkv = x @ qkv_weight + qkv_bias
        dx = self.scratch("dx", N, C)
        ops.linear_backward(
            dqkv, self.x, self.qkv_weight, dx, self.dqkv_weight, self.dqkv_bias,
            bfloat16=self.bfloat16,
        )  # (N, C)  # fmt: skip
        return dx

    def decode(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, C)
        n, C = x.shape
        qkv = self.scratch("qkv", n, 3 * C)
        self._multiply(x, self.qkv_weight, self.qkv_bias, qkv)  # (n, 3 C)
        keys, values = cache.rows(self, "keys", C), cache.rows(self, "values", C)  # (S, C)
        heads = self.buffer("heads", n, C)
        # For a full cache, so that the size is the same at every token.
        size = ops.attention_scratch_size(cache.capacity, C // self.n_heads)
        scratch = self.scratch("scores", size)
        ops.attention_decode(qkv, keys, values, cache.length, self.n_heads, heads, scratch)
        return self._project(heads)

    def describe(self) -> str:
        C = len(self.qkv_weight)
        projection = "with" if self.projection else "no"
        return f"SelfAttention({C}, {self.n_heads} heads, {projection} output projection)"
