"""Owns the embedding layer: a token's vector, plus its position's where these are learned."""

from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer, normal
from rustgpt.layers.memory import Array, Indices


class Embeddings(Layer):
    """out = tokens[ids] + places[positions], both tables learned; or the tokens' alone.

    Parameters
    ----------
    vocab_size
        V, rows of the token table.
    max_seq_len
        Rows of the position table; 0 for none, where attention knows the positions.
    dim
        C, numbers that represent one token.
    rng
        Source of the initial values, normal with standard deviation 0.02.
    """

    divides_rows = True

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
        self.places: Array | None = None
        self.parameter("tokens", normal(rng, 0.02, (vocab_size, dim), dtype))
        if max_seq_len:
            self.parameter("places", normal(rng, 0.02, (max_seq_len, dim), dtype))

    def forward(self, x: Indices, ctx: Context) -> Array:  # (N,) -> (N, C)
        out = ctx.empty(len(x), self.tokens.shape[1])
        ops.embedding_forward(x, ctx.positions, self.tokens, self.places, out, ctx.shard)
        ctx.save(self, x)
        return ctx.dropped(self, out)

    def backward(self, dout: Array, ctx: Context) -> Array:
        dout = ctx.dropped_back(self, dout)
        # forward: out = tokens[ids] + places[positions]; ids have no gradient
        (ids,) = ctx.saved(self)
        dtokens = ctx.gradients.of(self.tokens)
        dplaces = None if self.places is None else ctx.gradients.of(self.places)
        if ctx.shard:  # the zeros, and a tied table's gradient, are one other thread's to write
            ctx.shard.barrier.wait()
        ops.embedding_backward(dout, ids, ctx.positions, dtokens, dplaces, ctx.shard)
        return dout

    def describe(self) -> str:
        V, C = self.tokens.shape
        positions = "" if self.places is None else f" + {len(self.places)} positions"
        return f"Embeddings({V} tokens{positions} -> {C})"
