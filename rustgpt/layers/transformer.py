"""Owns the transformer block: attention and feed-forward, each with a residual sum and a norm."""

from typing import Any, Self

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import ModelConfig
from rustgpt.layers.feed_forward import FeedForward
from rustgpt.layers.layer import Cache, Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Array, Buffers, Indices, aligned
from rustgpt.layers.self_attention import SelfAttention
from rustgpt.layers.team import Member


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

    Attributes
    ----------
    by_parts : bool
        Whether each part runs by itself even where one kernel could run the whole block, so that
        the parts can be measured.
    """

    by_parts = False
    _overwrite = False  # what the gradients hold, when `backward` is next called

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

        self._bind_alone()

    def _bind_alone(self) -> None:
        """Have one flat array each, as in a model: the kernels of a whole block ask for them."""
        P = self.n_parameters
        self.bind(aligned(P, self.dtype), aligned(P, self.dtype), self._scratch)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: state[name] for name in state if name not in ("_parameters", "_bound")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind_alone()

    def reader(self, memory: dict[object, Buffers]) -> Self:
        if self._is_standard():
            return self._shallow_reader(memory)  # its parts only say what the kernel is to do
        return super().reader(memory)

    def bind(
        self, parameters: Array | None, gradients: Array, scratch: Buffers, role: str = ""
    ) -> int:
        taken = super().bind(parameters, gradients, scratch, role)
        if parameters is not None:
            self._parameters = parameters[:taken]
        kinds = [SelfAttention, LayerNorm, FeedForward, LayerNorm]
        self._known = type(self) is TransformerBlock and kinds == [
            type(part) for _, part in self.children()
        ]
        self._bound = self._parts()
        return taken

    def _parts(self) -> dict[str, Layer]:
        return {
            "attention": self.attention, "norm1": self.norm1,
            "feed_forward": self.feed_forward, "norm2": self.norm2,
        }  # fmt: skip

    def _is_standard(self) -> bool:
        """Whether the kernels of a whole block know this one; another runs step by step."""
        return self._known and not self.by_parts and self._parts() == self._bound

    def works_in_team(self) -> bool:
        return self._is_standard()

    def join(self, member: Member | None) -> None:
        self.member = member  # the kernels do what the parts would

    def _shape(self) -> tuple[Any, ...]:
        """Return what the kernels ask of a block's shape, in their order."""
        attention, feed_forward = self.attention, self.feed_forward
        return (
            attention.n_heads, len(feed_forward.bias1), self.pre_norm,
            feed_forward.activation == "gelu", attention.projection,
            attention.qkv_bias is not None, self.norm1.epsilon, self.norm2.epsilon,
        )  # fmt: skip

    def forward(self, x: Array, offsets: Indices) -> Array:  # (N, C) -> (N, C)
        self._at_once = self._is_standard()
        if self._at_once:
            return self._forward_at_once(x, offsets)
        return self._run(
            x,
            lambda h: self.attention.forward(h, offsets),
            lambda h: self.feed_forward.forward(h, offsets),
            offsets,
        )

    def _forward_at_once(self, x: Array, offsets: Indices) -> Array:  # (N, C) -> (N, C)
        (N, C), shape = x.shape, self._shape()
        n_heads, F, pre_norm, _, projection, *_ = shape
        self.x, self.offsets = x, offsets
        size = ops.block_kept_size(N, C, F, n_heads, pre_norm, projection, self._threads() > 1)
        self.kept = self.buffer("kept", size)
        out = self.buffer("out", N, C)
        # In a team too, forward shows the others nothing but what is kept.
        scratch = self._scratch.get("block", (self._scratch_size(N, C, F),), self.dtype)
        ops.block_forward(
            x, offsets, self._parameters, *shape, out, self.kept, scratch, self.bfloat16,
            self._share,
        )  # fmt: skip
        return out

    def _threads(self) -> int:
        return self.member.team.n if self.member else 1

    def _scratch_size(self, N: int, C: int, F: int) -> int:
        # No text has more rows than all together; memory that is not written costs nothing.
        return int(ops.block_scratch_size(N, N, C, F, self._threads()))

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

    def _decode_at_once(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, C)
        (n, C), shape = x.shape, self._shape()
        # For a full cache, so that the size is the same at every token.
        size = ops.block_scratch_size(n, cache.capacity, C, shape[1])
        out = self.buffer("decoded", n, C)
        out[...] = x
        ops.block_decode(
            out, self._parameters, *shape, cache.length,
            cache.rows(self.attention, "keys", C), cache.rows(self.attention, "values", C),
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

    def begin_gradients(self) -> None:
        self._overwrite = type(self) is TransformerBlock
        if not self._overwrite:
            super().begin_gradients()

    def backward(self, dout: Array) -> Array:  # (N, C) -> (N, C)
        if self._at_once:
            return self._backward_at_once(dout)
        if self._overwrite:
            self.zero_grad()
            self._overwrite = False
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

    def _backward_at_once(self, dout: Array) -> Array:  # (N, C) -> (N, C)
        (N, C), shape = dout.shape, self._shape()
        # In a team, a thread writes its rows over those that it alone has read.
        dx = dout if self.member else self.scratch("dx", N, C)
        scratch = self.scratch("block", self._scratch_size(N, C, shape[1]))
        ops.block_backward(
            dout, self.x, self.offsets, self._parameters, *shape, self.kept, dx, self._gradients,
            scratch, self.bfloat16, self._share, self._overwrite,
        )  # fmt: skip
        self._overwrite = False
        return dx

    def describe(self) -> str:
        return f"TransformerBlock({'pre' if self.pre_norm else 'post'}-norm)"
