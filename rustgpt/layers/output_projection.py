"""Owns the output projection: from a token's vector to a score for every token that may follow."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.context import Context
from rustgpt.layers.layer import Layer, copy_into, normal
from rustgpt.layers.memory import Array, Indices
from rustgpt.reference.arrays import Shard

# The loss is computed over as many rows as give this many logits, so that the logits of a whole
# batch are never in memory at once.
LOGITS_AT_ONCE = 2**20
ROWS_AT_LEAST = 128
# If at most this share of the rows has a target, these are gathered before they are projected.
SHARE_TO_GATHER = 0.8


class OutputProjection(Layer):
    """logits = x @ weight + bias.

    Parameters
    ----------
    dim
        C, numbers that represent one token.
    vocab_size
        V, scores for each row.
    rng
        Source of the initial weights, normal with variance 1 / C.
    bias
        Whether there is a bias.
    tied
        Whether the weight is the embedding table (V, C), given by `tie`, and not of its own.
    """

    divides_rows = True

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        rng: np.random.Generator | None,
        bias: bool = True,
        tied: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(dtype)
        self.dim = dim
        self.vocab_size = vocab_size
        self.tied = tied
        self.weight: Array
        self.bias: Array | None = None
        if not tied:
            self.parameter("weight", normal(rng, dim**-0.5, (dim, vocab_size), dtype))
        if bias:
            self.parameter("bias", np.zeros(vocab_size))

    def tie(self, table: Array) -> None:
        """Use the embedding table (V, C) as the weight."""
        vars(self)["weight"] = table

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what is given for the weight is copied into it, tied or not."""
        own = vars(self)
        if name == "weight" and name in own:
            copy_into(own[name], value, f"{type(self).__name__}.{name}")
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.tied:  # the copy's model gives it its table
            state.pop("weight", None)
        return state

    def forward(self, x: Array, ctx: Context) -> Array:  # (N, C) -> (N, V)
        logits = ctx.empty(len(x), self.vocab_size)
        ops.linear_forward(x, self.weight, self.bias, logits, self.tied, ctx.bfloat16)
        ctx.save(self, x)
        return logits

    def backward(self, dout: Array, ctx: Context) -> Array:  # (N, V) -> (N, C)
        # forward: logits = x @ weight + bias
        (x,) = ctx.saved(self)
        dx = ctx.empty(*x.shape)
        dweight = ctx.gradients.of(self.weight)
        dbias = None if self.bias is None else ctx.gradients.of(self.bias)
        ops.linear_backward(dout, x, self.weight, dx, dweight, dbias, self.tied, ctx.bfloat16)
        return dx

    def loss(
        self, x: Array, targets: Indices, scale: float, ctx: Context, max_norm: float = np.inf
    ) -> tuple[float, Array]:
        """Return the sum of the rows' cross-entropies, and the gradient (N, C) of scale times it.

        Forward, cross-entropy and backward are done together, over a block of rows at a time. With
        a shard, the sum is that of its rows.

        Parameters
        ----------
        x
            (N, C)
        targets
            (N,) the token that follows each row, or -1 for a row that does not count.
        scale
            What each row's loss is worth, such as 1 / N.
        ctx
            With `gradients`.
        max_norm
            L2 norm to which the gradient of a block's logits is clipped.
        """
        counted = np.flatnonzero(targets >= 0).astype(np.int32)
        if 0 < len(counted) <= SHARE_TO_GATHER * len(x):
            return self._loss_of_some(x, targets, counted, scale, ctx, max_norm)
        dx = ctx.empty(*x.shape)  # (N, C)
        return self._loss(x, targets, scale, ctx, max_norm, dx, ctx.shard), dx

    def _loss_of_some(
        self, x: Array, targets: Indices, counted: Indices, scale: float, ctx: Context,
        max_norm: float,
    ) -> tuple[float, Array]:  # fmt: skip
        """`loss` where only the rows counted (n,) have a target: the others cost no products."""
        dx = ctx.empty(*x.shape)  # (N, C)
        some, dsome = ctx.empty(len(counted), self.dim), ctx.empty(len(counted), self.dim)  # (n, C)
        own, shard = slice(0, len(x)), ctx.shard
        part = slice(0, len(counted))  # of this thread's, those with a target
        if shard:
            edges = np.searchsorted(counted, shard.edges).astype(np.int32)
            own = slice(*shard.edges[shard.index : shard.index + 2])
            part = slice(*edges[shard.index : shard.index + 2])
            shard = replace(shard, edges=edges)
        some[part] = x[counted[part]]
        loss = self._loss(some, targets[counted], scale, ctx, max_norm, dsome, shard)
        dx[own] = 0
        dx[counted[part]] = dsome[part]
        if shard:  # the others read these rows next
            shard.barrier.wait()
        return loss, dx

    def _loss(
        self, x: Array, targets: Indices, scale: float, ctx: Context, max_norm: float, dx: Array,
        shard: Shard | None,
    ) -> float:  # fmt: skip
        """Fill in dx and the gradients; return the sum of the losses."""
        dweight, accumulate = ctx.gradients.claim(self.weight)
        dbias = None
        if self.bias is not None:
            dbias, written = ctx.gradients.claim(self.bias)
            if written != accumulate:  # the kernel does the same to both
                (dweight if written else dbias).fill(0)
                accumulate = True
        losses, logits = self._working_memory(len(x), ctx)
        loss: float = ops.linear_cross_entropy(
            x, self.weight, self.bias, targets, scale, max_norm, losses, dx, dweight, dbias,
            logits, self.tied, accumulate, ctx.bfloat16, shard,
        )  # fmt: skip
        return loss

    def losses(self, x: Array, targets: Indices, ctx: Context) -> Array:  # (N, C), (N,) -> (N,)
        """Return each row's cross-entropy, without a gradient."""
        losses, logits = self._working_memory(len(x), ctx)
        ops.linear_cross_entropy(
            x, self.weight, self.bias, targets, 1.0, np.inf, losses, None, None, None, logits,
            self.tied, bfloat16=ctx.bfloat16,
        )  # fmt: skip
        return losses

    def _working_memory(self, N: int, ctx: Context) -> tuple[Array, Array]:
        """Return where the losses (N,) go, and the logits (R, V) of a block of rows."""
        n = ctx.shard.n if ctx.shard else 1
        most = math.ceil(N / n)  # rows of a thread
        at_once = max(ROWS_AT_LEAST, LOGITS_AT_ONCE // self.vocab_size)
        at_once = math.ceil(most / max(1, math.ceil(most / at_once)))  # blocks of one size
        return ctx.empty(N), ctx.empty(n * max(1, at_once), self.vocab_size)

    def describe(self) -> str:
        return f"OutputProjection({self.dim} -> {self.vocab_size}{', tied' if self.tied else ''})"
