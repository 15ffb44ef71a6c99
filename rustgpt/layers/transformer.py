"""Owns the transformer block: attention and feed-forward, each with a residual sum and a norm."""

import functools
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import ModelConfig
from rustgpt.layers.context import Context
from rustgpt.layers.feed_forward import FeedForward
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Array, aligned
from rustgpt.layers.rms_norm import RMSNorm
from rustgpt.layers.rotary import Rotary
from rustgpt.layers.self_attention import SelfAttention
from rustgpt.reference.spec import BlockSpec


def block_spec(config: ModelConfig) -> BlockSpec:
    """Return what a block of a model is made of."""
    C, F, bias = config.embedding_dim, config.hidden_dim, config.attention_bias
    W = C + 2 * config.n_kv_heads * (C // config.n_heads)
    G = F * (2 if config.activation == "swiglu" else 1)
    projection, inner_bias = config.attention_projection, config.feed_forward_bias
    norm_bias = (C,) if config.norm_type == "layer_norm" else None
    shapes: dict[str, tuple[int, ...] | None] = {
        "attention.qkv_weight": (C, W),
        "attention.qkv_bias": (W,) if bias else None,
        "attention.projection_weight": (C, C) if projection else None,
        "attention.projection_bias": (C,) if projection and bias else None,
        "norm1.weight": (C,),
        "norm1.bias": norm_bias,
        "feed_forward.weight1": (C, G),
        "feed_forward.bias1": (G,) if inner_bias else None,
        "feed_forward.weight2": (F, C),
        "feed_forward.bias2": (C,) if inner_bias else None,
        "norm2.weight": (C,),
        "norm2.bias": norm_bias,
    }
    return BlockSpec(
        dim=C,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        hidden_dim=F,
        norm=config.norm_type,
        positions=config.positions,
        feed_forward=config.activation,
        pre_norm=config.norm == "pre",
        epsilon1=config.norm_epsilon,
        epsilon2=config.norm_epsilon,
        shapes={name: shape for name, shape in shapes.items() if shape is not None},
    )


@functools.lru_cache(4096)
def block_size(kind: str, spec: BlockSpec, *rest: Any) -> int:
    """Return what `block_saved_size` or `block_scratch_size` of a backend, named last, returns."""
    return int(getattr(ops, f"block_{kind}_size")(spec, *rest[:-1]))


def norm_of(config: ModelConfig) -> LayerNorm | RMSNorm:
    """Return a norm of the kind that a model has."""
    kind = RMSNorm if config.norm_type == "rms_norm" else LayerNorm
    return kind(config.embedding_dim, config.norm_epsilon, config.dtype)


class TransformerBlock(Layer):
    """Two sub-layers f, each with a residual sum.

    "post" norm: x = norm(x + f(x)), as in Vaswani et al. 2017 and RustGPT;
    "pre" norm: x = x + f(norm(x)), as in GPT-2 and Llama.

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

    def __init__(self, config: ModelConfig, rng: np.random.Generator | None) -> None:
        super().__init__(config.dtype)
        self.dim = C = config.embedding_dim
        dtype = config.dtype
        self.pre_norm = config.norm == "pre"
        self.rotary = Rotary.of(config)
        self.attention = SelfAttention(
            C, config.n_heads, rng, config.attention_projection, config.attention_bias, dtype,
            config.n_kv_heads, self.rotary,
        )  # fmt: skip
        self.norm1 = norm_of(config)
        self.feed_forward = FeedForward(
            C, config.hidden_dim, rng, config.activation, dtype, config.feed_forward_bias
        )
        self.norm2 = norm_of(config)
        self.spec = block_spec(config)
        self._bind_alone()

    def _bind_alone(self) -> None:
        """Have one flat array, as in a model: the kernels of a whole block ask for it."""
        self.bind(aligned(self.n_parameters, self.dtype), "")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind_alone()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "by_parts":  # a way to run it, not a setting
            vars(self)[name] = bool(value)
        else:
            super().__setattr__(name, value)

    @property
    def fused(self) -> bool:
        """Whether one kernel runs the whole block; if not, its parts run one after the other.

        A block that is changed after it was built runs by parts from then on.
        """
        return not (
            self.by_parts or self._changed or self.attention._changed or self.norm1._changed
            or self.feed_forward._changed or self.norm2._changed
            or self.flat is None or type(self) is not TransformerBlock
        )  # fmt: skip

    @property
    def divides_rows(self) -> bool:  # type: ignore[override]
        return self.fused

    def forward(self, x: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        if self.fused and ctx.observer is None:
            return self._forward_fused(x, ctx)
        if self.pre_norm:
            f = self._part(self.attention, self._part(self.norm1, x, ctx), ctx)
            h = self._sum(x, f, ctx)
            f = self._part(self.feed_forward, self._part(self.norm2, h, ctx), ctx)
            return self._sum(h, f, ctx)
        f = self._part(self.attention, x, ctx)
        h = self._part(self.norm1, self._sum(x, f, ctx), ctx)
        f = self._part(self.feed_forward, h, ctx)
        return self._part(self.norm2, self._sum(h, f, ctx), ctx)

    def _sum(self, x: Array, f: Array, ctx: Context) -> Array:  # (N, C), (N, C) -> (N, C)
        """Return a residual sum, with dropout of what the sub-layer gives."""
        return _added(x, ctx.dropped(self, f), ctx)

    def _part(self, layer: Layer, x: Array, ctx: Context) -> Array:
        out = layer.forward(x, ctx)
        if ctx.observer is not None:
            ctx.observer.forward(layer, out)
        return out

    def _forward_fused(self, x: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        N, out = len(x), ctx.empty(*x.shape)
        scratch, saved = ctx.temporary(self._scratch_size(N, ctx)), None
        masks = ctx.masks(2)  # of attention and of the feed-forward layer
        table = self._table()
        if ctx.training:
            sharded = ctx.shard is not None and ctx.shard.n > 1
            saved = ctx.empty(block_size("saved", self.spec, N, sharded, ops.backend))
            ctx.save(self, x, saved, masks)
        if ctx.cache is None:
            ops.block_forward(
                x, ctx.offsets, self.flat, self.spec, out, saved, scratch, ctx.bfloat16, ctx.shard,
                **masks, table=table,
            )  # fmt: skip
        else:
            kv = ctx.cached(self.attention, "kv", 2 * self.spec.kv_dim)
            ops.block_forward(
                x, ctx.offsets, self.flat, self.spec, out, saved, scratch, ctx.bfloat16, None,
                kv, ctx.slots, ctx.starts, table=table,
            )  # fmt: skip
        return out

    def _table(self) -> Array | None:
        return None if self.rotary is None else self.rotary.table(self.dtype)

    def _scratch_size(self, N: int, ctx: Context) -> int:
        # No text has more rows than all together; memory that is not written costs nothing. With
        # a cache it is the size for a full one, so that it is the same at every token.
        longest = N if ctx.cache is None else ctx.cache.capacity
        n = ctx.shard.n if ctx.shard else 1
        return block_size("scratch", self.spec, N, longest, n, ctx.training, ops.backend)

    def backward(self, dout: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        if self.fused and ctx.observer is None:
            return self._backward_fused(dout, ctx)
        # A residual sum hands its gradient to both of its terms.
        if self.pre_norm:
            df = self._sub_layer_back(self.feed_forward, dout, ctx)
            dh = _added(dout, self._part_back(self.norm2, df, ctx), ctx)
            df = self._sub_layer_back(self.attention, dh, ctx)
            return _added(dh, self._part_back(self.norm1, df, ctx), ctx)
        dsum = self._part_back(self.norm2, dout, ctx)
        dh = _added(dsum, self._sub_layer_back(self.feed_forward, dsum, ctx), ctx)
        dsum = self._part_back(self.norm1, dh, ctx)
        return _added(dsum, self._sub_layer_back(self.attention, dsum, ctx), ctx)

    def _sub_layer_back(self, layer: Layer, dsum: Array, ctx: Context) -> Array:
        # forward: sum = x + dropout(layer(...))
        return self._part_back(layer, ctx.dropped_back(self, dsum), ctx)

    def _part_back(self, layer: Layer, dout: Array, ctx: Context) -> Array:
        dx = layer.backward(dout, ctx)
        if ctx.observer is not None:
            ctx.observer.backward(layer, dx)
        return dx

    def _backward_fused(self, dout: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        x, saved, masks = ctx.saved(self)
        dx = ctx.empty(*x.shape)
        # What several threads show each other must hold until all have seen it.
        memory = ctx.empty if ctx.shard else ctx.temporary
        scratch = memory(self._scratch_size(len(x), ctx))
        assert self.flat is not None
        dparameters, accumulate = ctx.gradients.claim(self.flat)
        ops.block_backward(
            dout, x, ctx.offsets, self.flat, self.spec, saved, dx, dparameters, scratch,
            accumulate, ctx.bfloat16, ctx.shard, **masks, table=self._table(),
        )  # fmt: skip
        return dx

    def describe(self) -> str:
        return f"TransformerBlock({'pre' if self.pre_norm else 'post'}-norm)"


def _added(x: Array, f: Array, ctx: Context) -> Array:  # (N, C), (N, C) -> (N, C)
    """Return a sum, in memory of its own: a part may need its output again."""
    out = ctx.empty(*x.shape)
    np.add(x, f, out=out)
    return out
