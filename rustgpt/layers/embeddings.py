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
        self.ids, self.offsets = x, offsets
        return self._look_up(x, offsets, 0)

    def _look_up(self, ids: Indices, offsets: Indices, start: int) -> Array:
        out = self.buffer("out", len(ids), self.tokens.shape[1])
        ops.embedding_forward(
            ids, offsets, start, self.tokens, self.places, out, self._share
        )  # (N, C)
        return out

    def backward(self, dout: Array) -> Array:
        # forward: out = tokens[ids] + places[positions]; ids have no gradient
        if self._share:  # the output projection may still write over a tied table's gradient
            self._share.barrier.wait()
        ops.embedding_backward(
            dout, self.ids, self.offsets, self.dtokens, self.dplaces, self._share
        )
        return dout

    def decode(self, x: Indices, cache: Cache) -> Array:  # (n,) -> (n, C)
        return self._look_up(x, np.array([0, len(x)], np.int32), cache.length)

    def works_in_team(self) -> bool:
        return type(self) is Embeddings

    def describe(self) -> str:
        (V, C), S = self.tokens.shape, len(self.places)
        return f"Embeddings({V} tokens + {S} positions -> {C})"
