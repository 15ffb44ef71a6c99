"""Owns the causal multi-head self-attention layer (Vaswani et al. 2017, section 3.2)."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer, normal
from rustgpt.layers.memory import Array
from rustgpt.layers.rotary import Rotary


class SelfAttention(Layer):
    """Every token looks at itself and at those before it, and takes a weighted mean of values.

    queries, keys, values = x @ qkv_weight, as one product; each of H heads does
    softmax(mask(q @ k.T / sqrt(D))) @ v on its D = C / H columns; then the output projection.
    H / K heads of queries share one of keys and values (Ainslie et al. 2023).

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
    n_kv_heads
        K, must divide `n_heads`; 0 for as many.
    rotary
        How queries and keys are turned by their position; None if positions are learned.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        rng: np.random.Generator | None,
        projection: bool = True,
        bias: bool = False,
        dtype: Any = np.float32,
        n_kv_heads: int = 0,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.n_heads = n_heads
        self.n_kv_heads = 0 if n_kv_heads == n_heads else n_kv_heads
        self.rotary = rotary
        self.projection = projection
        self.qkv_weight: Array
        self.qkv_bias: Array | None = None
        self.projection_weight: Array
        self.projection_bias: Array | None = None
        std, width = dim**-0.5, dim + 2 * (n_kv_heads or n_heads) * (dim // n_heads)  # W
        self.parameter("qkv_weight", normal(rng, std, (dim, width), dtype))
        if bias:
            self.parameter("qkv_bias", np.zeros(width))
        if projection:
            self.parameter("projection_weight", normal(rng, std, (dim, dim), dtype))
            if bias:
                self.parameter("projection_bias", np.zeros(dim))

    def forward(self, x: Array, ctx: Context) -> Array:
        N, C = x.shape
        H, K, W = self.n_heads, self.n_kv_heads, self.qkv_weight.shape[1]
        qkv, heads, lse = ctx.empty(N, W), ctx.empty(N, C), ctx.empty(N, H)
        self._multiply(x, self.qkv_weight, self.qkv_bias, qkv, ctx)  # (N, W)
        if self.rotary is not None:
            self.rotary.turn(qkv, H + (K or H), ctx)
        if ctx.cache is None:
            scratch = self._scratch(N, ctx)
            ops.attention_forward(qkv, ctx.offsets, H, heads, lse, scratch, K)  # (N, C)
        else:
            # For a full cache, so that the size is the same at every token.
            scratch = self._scratch(ctx.cache.capacity, ctx)
            kv = ctx.cached(self, "kv", W - C)  # (slots, S, 2 K D)
            ops.attention_decode(
                qkv, ctx.offsets, H, kv, ctx.slots, ctx.starts, heads, scratch, K
            )  # (N, C)
        ctx.save(self, x, qkv, heads, lse)
        if not self.projection:
            return heads
        out = ctx.empty(N, C)
        self._multiply(heads, self.projection_weight, self.projection_bias, out, ctx)  # (N, C)
        return out

    def _multiply(
        self, x: Array, weight: Array, bias: Array | None, out: Array, ctx: Context
    ) -> None:
        ops.linear_forward(x, weight, bias, out, bfloat16=ctx.bfloat16)

    def _scratch(self, length: int, ctx: Context) -> Array:
        """Return what attention needs for texts of so many rows at most."""
        # No text has more rows than all together; memory that is not written costs nothing.
        return ctx.temporary(ops.attention_scratch_size(length, self.dim // self.n_heads))

    def backward(self, dout: Array, ctx: Context) -> Array:
        N, C = dout.shape
        H, K = self.n_heads, self.n_kv_heads
        x, qkv, heads, lse = ctx.saved(self)
        # forward: out = heads @ projection_weight + projection_bias
        dheads = dout
        if self.projection:
            dheads = ctx.empty(N, C)
            self._multiply_backward(
                dout, heads, self.projection_weight, self.projection_bias, dheads, ctx
            )  # (N, C)
        # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
        dqkv = ctx.empty(*qkv.shape)
        ops.attention_backward(
            dheads, qkv, lse, ctx.offsets, H, dqkv, self._scratch(N, ctx), K
        )  # (N, W)
        # forward: q and k were turned by their position
        if self.rotary is not None:
            self.rotary.turn_back(dqkv, H + (K or H), ctx)
        # forward: qkv = x @ qkv_weight + qkv_bias
        dx = ctx.empty(N, C)
        self._multiply_backward(dqkv, x, self.qkv_weight, self.qkv_bias, dx, ctx)  # (N, C)
        return dx

    def _multiply_backward(
        self, dout: Array, x: Array, weight: Array, bias: Array | None, dx: Array, ctx: Context
    ) -> None:
        dweight = ctx.gradients.of(weight)
        dbias = None if bias is None else ctx.gradients.of(bias)
        ops.linear_backward(dout, x, weight, dx, dweight, dbias, bfloat16=ctx.bfloat16)

    def describe(self) -> str:
        C = len(self.qkv_weight)
        projection = "with" if self.projection else "no"
        heads = f"{self.n_heads} heads"
        if self.n_kv_heads:
            heads += f" over {self.n_kv_heads} of keys and values"
        rotary = "" if self.rotary is None else ", rotary positions"
        return f"SelfAttention({C}, {heads}{rotary}, {projection} output projection)"
