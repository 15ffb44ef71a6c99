"""Owns rotary positions (Su et al. 2021): queries and keys that are turned by their position."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import ModelConfig
from rustgpt.layers.context import Context
from rustgpt.layers.memory import Array


@dataclass(frozen=True)
class Rotary:
    """How far each pair of a head's numbers is turned at each position.

    Pair i, of the numbers i and i + D / 2, has the frequency theta^(-2 i / D); at position t it is
    turned by the angle t times that.

    Parameters
    ----------
    head_dim
        D, numbers of a head.
    max_seq_len
        S, positions that there are.
    theta
        The base of the frequencies.
    scaling, factor
        "linear": all frequencies are divided by the factor (Chen et al. 2023). "llama3": the low
        ones are, and the high ones stay as they are (Llama 3.1). "none" for neither.
    low_freq_factor, high_freq_factor, original
        Of "llama3": a wave longer than `original / low_freq_factor` positions is divided, one
        shorter than `original / high_freq_factor` is not, and between them in part.
    """

    head_dim: int
    max_seq_len: int
    theta: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> Rotary | None:
        """Return the positions of a model; None if they are learned."""
        if config.positions != "rotary":
            return None
        return cls(
            config.embedding_dim // config.n_heads, config.max_seq_len, config.rope_theta,
            config.rope_scaling, config.rope_factor, config.rope_low_freq_factor,
            config.rope_high_freq_factor, config.rope_original_max_seq_len or config.max_seq_len,
        )  # fmt: skip

    def frequencies(self) -> Array:  # -> (D / 2,)
        """Return the angle from one position to the next, of each pair."""
        D = self.head_dim
        plain: Array = self.theta ** (-np.arange(0, D, 2) / D)
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            low, high = self.low_freq_factor, self.high_freq_factor
            waves = self.original * plain / (2 * math.pi)  # in the original context
            kept = np.clip((waves - low) / (high - low), 0, 1)
            return (1 - kept) * plain / self.factor + kept * plain
        return plain

    def table(self, dtype: Any) -> Array:  # -> (S, D)
        """Return D / 2 cosines and as many sines of each position, to be read only."""
        return _table(self, np.dtype(dtype).char)

    def turn(self, x: Array, n_heads: int, ctx: Context) -> None:
        """Turn the first n_heads * D columns of rows x (N, columns), where they lie."""
        starts = None if ctx.cache is None else ctx.starts
        ops.rotary(x, ctx.offsets, self.table(x.dtype), n_heads, False, starts)

    def turn_back(self, dx: Array, n_heads: int, ctx: Context) -> None:
        """Turn gradients of turned rows by the opposite angles, where they lie."""
        ops.rotary(dx, ctx.offsets, self.table(dx.dtype), n_heads, True)


@functools.lru_cache(16)
def _table(positions: Rotary, dtype: str) -> Array:
    angles = np.arange(positions.max_seq_len)[:, None] * positions.frequencies()  # (S, D / 2)
    table = np.hstack([np.cos(angles), np.sin(angles)]).astype(dtype)
    table.flags.writeable = False
    return table
