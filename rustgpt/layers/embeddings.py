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
        self.written_over = False  # whether another layer does so to dtokens, before `backward`
        self.tokens: Array
        self.dtokens: Array
        self.places: Array
        self.dplaces: Array
        self.parameter("tokens", normal(rng, 0.02, (vocab_size, dim), dtype))
        self.parameter("places", normal(rng, 0.02, (max_seq_len, dim), dtype))

    def begin_gradients(self) -> None:
        if not self.written_over or type(self) is not Embeddings:
            super().begin_gradients()
        elif self.member is None or self.member.share.index == 0:
            self.dplaces.fill(0)

    def forward(self, x: Indices, offsets: Indices) -> Array:  # (N,) -> (N, C)
        self.ids = x
        # Each text begins at position 0.
        starts = np.repeat(offsets[:-1], np.diff(offsets))  # (N,)
        self.positions = np.arange(len(starts), dtype=np.int32) - starts  # (N,)
        return self._look_up(self.member.rows if self.member else slice(None))

    def _look_up(self, r: slice) -> Array:
        out = self.buffer("out", len(self.ids), self.tokens.shape[1])
        ops.embedding_forward(
            self.ids[r], self.positions[r], self.tokens, self.places, out[r]
        )  # (N, C)
        return out

    def backward(self, dout: Array) -> Array:
        # forward: out = tokens[ids] + places[positions]; ids have no gradient
        share = None
        if self.member:
            share = self.member.share
            share.meet()  # the output projection may still write over a tied table's gradient
        ops.embedding_backward(dout, self.ids, self.positions, self.dtokens, self.dplaces, share)
        return dout

    def decode(self, x: Indices, cache: Cache) -> Array:  # (n,) -> (n, C)
        self.ids = x
        self.positions = np.arange(cache.length, cache.length + len(x), dtype=np.int32)
        return self._look_up(slice(None))

    def works_in_team(self) -> bool:
        return type(self) is Embeddings

    def describe(self) -> str:
        (V, C), S = self.tokens.shape, len(self.places)
        return f"Embeddings({V} tokens + {S} positions -> {C})"
