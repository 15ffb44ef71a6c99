"""Owns the causal multi-head self-attention layer (Vaswani et al. 2017, section 3.2)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Cache, Layer, normal
from rustgpt.layers.memory import Array, Indices
from rustgpt.layers.team import Member, SharedBuffers


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
        # Replicas of this layer that work in a team share the arrays of all rows.
        self._of_team = SharedBuffers()
        std = dim**-0.5
        self.parameter("qkv_weight", normal(rng, std, (dim, 3 * dim), dtype))
        if bias:
            self.parameter("qkv_bias", np.zeros(3 * dim))
        if projection:
            self.parameter("projection_weight", normal(rng, std, (dim, dim), dtype))
            if bias:
                self.parameter("projection_bias", np.zeros(dim))

    def forward(self, x: Array, offsets: Indices) -> Array:
        C, D, member = self.dim, self.dim // self.n_heads, self.member
        self.x, self.offsets = x, offsets
        # N rows are all there are; x has those of this thread.
        N, rows = _rows(x, member)
        kept = self._of_team if member else self._buffers
        self.qkv = kept.get("qkv", (N, 3 * C), self.dtype)
        self.heads = kept.get("heads", (N, C), self.dtype)
        self.lse = kept.get("lse", (N, self.n_heads), self.dtype)
        # No text has more rows than all together; memory that is not written costs nothing.
        self.scores = self.scratch("scores", ops.attention_scratch_size(N, D))
        self._multiply(x, self.qkv_weight, self.qkv_bias, self.qkv[rows])  # (N, 3 C)
        self._all_heads(
            lambda *which: ops.attention_forward(
                self.qkv, offsets, self.n_heads, self.heads, self.lse, self.scores, *which
            )
        )  # (N, C)
        return self._project(self.heads[rows])

    def _all_heads(self, attend: Callable[..., None]) -> None:
        """Let `attend` do every head, or this thread's when all rows are there."""
        if self.member is None:
            attend()
            return
        self.member.team.meet()
        attend(*self.member.heads(self.n_heads))
        self.member.team.meet()

    def _multiply(self, x: Array, weight: Array, bias: Array | None, out: Array) -> None:
        ops.linear_forward(x, weight, bias, out, bfloat16=self.bfloat16)

    def _project(self, heads: Array) -> Array:  # (N, C) -> (N, C)
        if not self.projection:
            return heads
        out = self.buffer("out", *heads.shape)
        self._multiply(heads, self.projection_weight, self.projection_bias, out)
        return out

    def backward(self, dout: Array) -> Array:
        C, member = self.dim, self.member
        N, rows = _rows(dout, member)
        scratch = member.team.scratch if member else self._scratch
        dheads = scratch.get(self._role + "dheads", (N, C), self.dtype)
        dqkv = scratch.get(self._role + "dqkv", (N, 3 * C), self.dtype)
        # forward: out = heads @ projection_weight + projection_bias
        if self.projection:
            ops.linear_backward(
                dout, self.heads[rows], self.projection_weight, dheads[rows],
                self.dprojection_weight, self.dprojection_bias, bfloat16=self.bfloat16,
            )  # (N, C)  # fmt: skip
        elif member:
            dheads[rows] = dout
        else:
            dheads = dout
        # forward: heads = softmax(mask(q @ k.T / sqrt(D))) @ v
        self._all_heads(
            lambda *which: ops.attention_backward(
                dheads, self.qkv, self.lse, self.offsets, self.n_heads, dqkv, self.scores, *which
            )
        )  # (N, 3 C)
        # forward: qkv = x @ qkv_weight + qkv_bias
        dx = self.scratch("dx", *dout.shape)
        ops.linear_backward(
            dqkv[rows], self.x, self.qkv_weight, dx, self.dqkv_weight, self.dqkv_bias,
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


def _rows(x: Array, member: Member | None) -> tuple[int, slice]:
    """Return how many rows the batch has, and which of them x has."""
    return (len(x), slice(None)) if member is None else (member.total, member.rows)
