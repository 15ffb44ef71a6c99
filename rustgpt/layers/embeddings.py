"""Owns the embedding layer: a token's vector plus its position's vector."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Cache, Layer, normal
from rustgpt.layers.memory import Array, Indices


class Embeddings(Layer):
    """out = tokens[ids] + places[positions], both tables learned.

    Parameters
    ----------
    vocab_size
        V, rows of the token table.
    max_seq_len
        Rows of the position table.
    dim
        C, numbers that represent one token.
    rng
        Source of the initial values, normal with standard deviation 0.02.
    """

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        dim: int,
        rng: np.random.Generator | None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(dtype)
        self.tokens: Array
        self.dtokens: Array
        self.places: Array
        self.dplaces: Array
        self.parameter("tokens", normal(rng, 0.02, (vocab_size, dim), dtype))
        self.parameter("places", normal(rng, 0.02, (max_seq_len, dim), dtype))

    def forward(self, x: Indices, offsets: Indices) -> Array:  # (N,) -> (N, C)
        self.ids = x
        # Each text begins at position 0.
        starts = np.repeat(offsets[:-1], np.diff(offsets))  # (N,)
        self.positions = np.arange(len(starts), dtype=np.int32) - starts  # (N,)
        if self.member:
            self.positions = self.positions[self.member.rows]
        return self._look_up()

    def _look_up(self) -> Array:
        out = self.buffer("out", len(self.ids), self.tokens.shape[1])
        ops.embedding_forward(self.ids, self.positions, self.tokens, self.places, out)  # (N, C)
        return out

    def backward(self, dout: Array) -> Array:
        # forward: out = tokens[ids] + places[positions]; ids have no gradient
        ops.embedding_backward(dout, self.ids, self.positions, self.dtokens, self.dplaces)
        return dout

    def decode(self, x: Indices, cache: Cache) -> Array:  # (n,) -> (n, C)
        self.ids = x
        self.positions = np.arange(cache.length, cache.length + len(x), dtype=np.int32)
        return self._look_up()

    def divides_rows(self) -> bool:
        return True

    def describe(self) -> str:
        (V, C), S = self.tokens.shape, len(self.places)
        return f"Embeddings({V} tokens + {S} positions -> {C})"
