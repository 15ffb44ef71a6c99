"""Owns what a transformer block is made of: its kinds and sizes, and where its parameters lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.reference.arrays import Array

# The kinds of each part. The compiled kernels know a kind by its place in its row.
NORMS: Final = ("layer_norm", "rms_norm")
POSITIONS: Final = ("learned", "rotary")
FEED_FORWARDS: Final = ("relu", "gelu", "swiglu")

# The parameters by their names in `TransformerBlock.parameters()`, in the order in which the
# compiled kernels are told where they lie. A block need not have them all.
PARAMETERS: Final = (
    "attention.qkv_weight", "attention.qkv_bias",
    "attention.projection_weight", "attention.projection_bias",
    "norm1.weight", "norm1.bias",
    "feed_forward.weight1", "feed_forward.bias1", "feed_forward.weight2", "feed_forward.bias2",
    "norm2.weight", "norm2.bias",
)  # fmt: skip


@dataclass(frozen=True, eq=False)  # so that it can be the key of what follows from it
class BlockSpec:
    """The kinds and sizes of a block, for the kernels that run all of it.

    Parameters
    ----------
    dim
        C, numbers that represent one token.
    n_heads, n_kv_heads
        H heads of queries, over K heads of keys and values.
    hidden_dim
        F, width of the feed-forward layer.
    norm, positions, feed_forward
        The kinds of these parts: one of `NORMS`, `POSITIONS`, `FEED_FORWARDS`.
    pre_norm
        Whether each norm comes before its sub-layer, or after the residual sum.
    epsilon1, epsilon2
        Of the two norms.
    shapes
        The parameters by name, in the order in which they lie in the block's flat array.
    """

    dim: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    norm: str
    positions: str
    feed_forward: str
    pre_norm: bool
    epsilon1: float
    epsilon2: float
    shapes: Mapping[str, tuple[int, ...]]
    checked: ClassVar[object] = None  # what the compiled kernels keep of one that they have checked

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def qkv_dim(self) -> int:
        """W, columns of queries, keys and values."""
        return self.dim + 2 * self.kv_dim

    @property
    def kv_dim(self) -> int:
        """K D, columns of keys, and as many of values."""
        return self.dim // self.n_heads * self.n_kv_heads

    @property
    def inner_dim(self) -> int:
        """Columns of what the feed-forward layer's first product gives: F, or 2 F with SwiGLU."""
        return self.hidden_dim * (2 if self.feed_forward == "swiglu" else 1)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each parameter begins in the flat array."""
        found, taken = {}, 0
        for name, shape in self.shapes.items():
            found[name] = taken
            taken += prod(shape)
        return found

    @cached_property
    def size(self) -> int:
        """P, numbers of all parameters."""
        return sum(prod(shape) for shape in self.shapes.values())

    @cached_property
    def multiplied(self) -> int:
        """Numbers of the matrices, with each of which a row of the input is multiplied."""
        return sum(prod(shape) for shape in self.shapes.values() if len(shape) == 2)

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The same for the compiled kernels; see `spec_of` in `_ext/spec.pxd`."""
        kinds = (
            NORMS.index(self.norm), POSITIONS.index(self.positions),
            FEED_FORWARDS.index(self.feed_forward),
        )  # fmt: skip
        sizes = (self.dim, self.n_heads, self.n_kv_heads, self.hidden_dim)
        where = [self.offsets.get(name, -1) for name in PARAMETERS]
        rest = (self.pre_norm, self.epsilon1, self.epsilon2, self.size)
        return np.array([*sizes, *kinds, *rest, *where], np.float64)

    def unpacked(self, flat: Array) -> dict[str, Array]:  # (P,) -> each in its shape
        """Return the parameters by name, as views into the flat array."""
        return {
            name: flat[first : first + prod(shape)].reshape(shape)
            for (name, shape), first in zip(self.shapes.items(), self.offsets.values(), strict=True)
        }


@dataclass(frozen=True, eq=False)
class DecoderSpec:
    """What a whole model is made of, for the kernel that decodes a few rows.

    Parameters
    ----------
    vocab_size, max_seq_len, dim
        V tokens, S positions, and C numbers that represent one token.
    blocks, firsts
        The blocks, and where the parameters of each begin in the model's flat array.
    offsets
        Where the other parameters begin there, by the names in `OTHERS`. A model need not have
        "places", "norm.weight" and "norm.bias" (an RMS norm has no bias), nor "output.bias".
    epsilon
        Of the last norm.
    tied
        Whether the output projection's weight is the embedding table (V, C), and not (C, V).
    size
        P, numbers of all parameters.
    """

    vocab_size: int
    max_seq_len: int
    dim: int
    blocks: tuple[BlockSpec, ...]
    firsts: tuple[int, ...]
    offsets: Mapping[str, int]
    epsilon: float
    tied: bool
    size: int
    checked: ClassVar[object] = None

    @property
    def n_kv_heads(self) -> int:
        """K, heads of keys and values of every block."""
        return self.blocks[0].n_kv_heads if self.blocks else 1

    @property
    def kv_dim(self) -> int:
        """K D, columns of keys, and as many of values, of every block."""
        return self.blocks[0].kv_dim if self.blocks else self.dim

    OTHERS: ClassVar = (
        "tokens", "places", "norm.weight", "norm.bias", "output.weight", "output.bias",
    )  # fmt: skip

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The same, but for the blocks, for the compiled kernel."""
        sizes = (self.vocab_size, self.max_seq_len, self.dim, self.size, self.tied, self.epsilon)
        where = [self.offsets.get(name, -1) for name in self.OTHERS]
        return np.array([*sizes, *where], np.float64)

    def unpacked(self, flat: Array) -> dict[str, Array]:  # (P,) -> each in its shape
        """Return the parameters that are no block's by name, as views into the flat array."""
        V, S, C = self.vocab_size, self.max_seq_len, self.dim
        shapes: tuple[tuple[int, ...], ...] = (
            (V, C), (S, C), (C,), (C,), (V, C) if self.tied else (C, V), (V,),
        )  # fmt: skip
        return {
            name: flat[self.offsets[name] : self.offsets[name] + prod(shape)].reshape(shape)
            for name, shape in zip(self.OTHERS, shapes, strict=True)
            if name in self.offsets
        }
