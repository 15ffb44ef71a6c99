"""Owns the transformer block: attention and feed-forward, each with a residual sum and a norm."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import ModelConfig
from rustgpt.layers.feed_forward import FeedForward
from rustgpt.layers.layer import Array, Cache, Indices, Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.self_attention import SelfAttention


class TransformerBlock(Layer):
    """Two sub-layers f, each with a residual sum.

    "post" norm: x = norm(x + f(x)), as in Vaswani et al. 2017 and RustGPT;
    "pre" norm: x = x + f(norm(x)), as in GPT-2.

    Parameters
    ----------
    config
        The sizes and options; see `ModelConfig`.
    rng
        Source of the initial weights.
    """

    def __init__(self, config: ModelConfig, rng: np.random.Generator | None) -> None:
        super().__init__(config.dtype)
        self.dim = C = config.embedding_dim
        dtype = config.dtype
        self.pre_norm = config.norm == "pre"
        self.attention = SelfAttention(
            C, config.n_heads, rng, config.attention_projection, config.attention_bias, dtype
        )
        self.norm1 = LayerNorm(C, dtype=dtype)
        self.feed_forward = FeedForward(C, config.hidden_dim, rng, config.activation, dtype)
        self.norm2 = LayerNorm(C, dtype=dtype)

    def forward(self, x: Array, offsets: Indices) -> Array:  # (N, C) -> (N, C)
        return self._run(
            x,
            lambda h: self.attention.forward(h, offsets),
            lambda h: self.feed_forward.forward(h, offsets),
            offsets,
        )

    def decode(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, C)
        if self._is_standard():
            return self._decode_at_once(x, cache)
        offsets = np.array([0, len(x)], np.int32)
        return self._run(
            x,
            lambda h: self.attention.decode(h, cache),
            lambda h: self.feed_forward.decode(h, cache),
            offsets,
        )

    def _is_standard(self) -> bool:
        """Whether `block_decode` knows this block; one with other parts decodes step by step."""
        return (
            type(self) is TransformerBlock
            and type(self.attention) is SelfAttention
            and type(self.feed_forward) is FeedForward
            and type(self.norm1) is type(self.norm2) is LayerNorm
        )

    def _decode_at_once(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, C)
        """Decode in one kernel: for one row, calls cost more than the arithmetic."""
        (n, C), start = x.shape, cache.length
        attention, feed_forward = self.attention, self.feed_forward
        # For a full cache, so that the size is the same at every token.
        size = ops.block_decode_scratch_size(n, cache.capacity, C, len(feed_forward.bias1))
        out = self.buffer("decoded", n, C)
        out[...] = x
        ops.block_decode(
            out, self.pre_norm, feed_forward.activation == "gelu", attention.n_heads, start,
            cache.rows(attention, "keys", C), cache.rows(attention, "values", C),
            attention.qkv_weight, attention.qkv_bias,
            attention.projection_weight if attention.projection else None,
            attention.projection_bias, self.norm1.weight, self.norm1.bias,
            feed_forward.weight1, feed_forward.bias1, feed_forward.weight2, feed_forward.bias2,
            self.norm2.weight, self.norm2.bias, self.norm1.epsilon, self.norm2.epsilon,
            self.scratch("decode", size),
        )  # fmt: skip
        return out

    def _run(self, x: Array, attention: Any, feed_forward: Any, offsets: Indices) -> Array:
        # The sums go into the sub-layers' outputs, which nobody else reads.
        if self.pre_norm:
            h = attention(self.norm1.forward(x, offsets))
            h += x
            out = feed_forward(self.norm2.forward(h, offsets))
            out += h
        else:
            h = attention(x)
            h += x
            h = self.norm1.forward(h, offsets)
            out = feed_forward(h)
            out += h
            out = self.norm2.forward(out, offsets)
        return out  # type: ignore[no-any-return]

    def backward(self, dout: Array) -> Array:  # (N, C) -> (N, C)
        # A residual sum hands its gradient to both of its terms.
        if self.pre_norm:
            dh = self.norm2.backward(self.feed_forward.backward(dout))
            dh += dout
            dx = self.norm1.backward(self.attention.backward(dh))
            dx += dh
        else:
            dsum = self.norm2.backward(dout)
            dh = self.feed_forward.backward(dsum)
            dh += dsum
            dsum = self.norm1.backward(dh)
            dx = self.attention.backward(dsum)
            dx += dsum
        return dx

    def describe(self) -> str:
        return f"TransformerBlock({'pre' if self.pre_norm else 'post'}-norm)"
