"""Owns the output projection: from a token's vector to a score for every token that may follow."""

import math
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.layers.layer import Cache, Layer, normal
from rustgpt.layers.memory import Array, Indices

# The loss is computed over as many rows as give this many logits, so that the logits of a whole
# batch are never in memory at once.
LOGITS_AT_ONCE = 2**20
ROWS_AT_LEAST = 128


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
        self.vocab_size = vocab_size
        self.tied = tied
        self._overwrite = False  # what the gradients hold, when `loss` is next called
        self.weight: Array
        self.dweight: Array
        self.bias: Array | None = None
        self.dbias: Array | None = None
        if not tied:
            self.parameter("weight", normal(rng, dim**-0.5, (dim, vocab_size), dtype))
        if bias:
            self.parameter("bias", np.zeros(vocab_size))

    def tie(self, table: Array, dtable: Array) -> None:
        """Use the embedding table (V, C) as the weight, and add to its gradient."""
        vars(self).update(weight=table, dweight=dtable)
        self._in_place = {*self._in_place, "weight", "dweight"}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self.tied:  # the copy's model gives it its table
            state = {name: state[name] for name in state if name not in ("weight", "dweight")}
        return state

    def begin_gradients(self) -> None:
        self._overwrite = self.overwrites()
        if not self._overwrite:
            super().begin_gradients()

    def overwrites(self) -> bool:
        """Whether the first `loss` after `begin_gradients` writes over the weight's gradient."""
        return type(self) is OutputProjection

    def forward(self, x: Array, offsets: Indices) -> Array:  # (N, C) -> (N, V)
        self.x = x
        return self._logits(x)

    def decode(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, V)
        return self._logits(x)

    def _logits(self, x: Array) -> Array:
        logits = self.buffer("logits", len(x), self.vocab_size)
        ops.linear_forward(x, self.weight, self.bias, logits, self.tied, self.bfloat16)
        return logits

    def backward(self, dout: Array) -> Array:  # (N, V) -> (N, C)
        # forward: logits = x @ weight + bias
        dx = self.scratch("dx", *self.x.shape)
        ops.linear_backward(
            dout, self.x, self.weight, dx, self.dweight, self.dbias, self.tied, self.bfloat16
        )
        return dx

    def loss(
        self, x: Array, targets: Indices, scale: float, max_norm: float = np.inf
    ) -> tuple[float, Array]:
        """Return the sum of the rows' cross-entropies, and the gradient (N, C) of scale times it.

        Forward, cross-entropy and backward are done together, over a block of rows at a time. A
        member of a team returns the sum of its own rows.

        Parameters
        ----------
        x
            (N, C)
        targets
            (N,) the token that follows each row, or -1 for a row that does not count.
        scale
            What each row's loss is worth, such as 1 / N.
        max_norm
            L2 norm to which the gradient of a block's logits is clipped.
        """
        dx = self.scratch("dx", *x.shape)
        return self._loss(x, targets, scale, max_norm, dx), dx

    def losses(self, x: Array, targets: Indices) -> Array:  # (N, C), (N,) -> (N,)
        """Return each row's cross-entropy, without a gradient."""
        self._loss(x, targets, 1.0, np.inf, None)
        return self.buffer("losses", len(x))

    def _loss(
        self, x: Array, targets: Indices, scale: float, max_norm: float, dx: Array | None
    ) -> float:  # (N, C), (N,) -> scalar
        losses = self.buffer("losses", len(x))
        n, share = 1, None
        if self.member and dx is not None:
            n, share = self.member.team.n, self.member.share
        most = math.ceil(len(x) / n)  # rows of a thread
        at_once = max(ROWS_AT_LEAST, LOGITS_AT_ONCE // self.vocab_size)
        at_once = math.ceil(most / max(1, math.ceil(most / at_once)))  # blocks of one size
        logits = self.scratch("logits", n * max(1, at_once), self.vocab_size)  # (rows, V)
        # Without dx there is no gradient at all.
        dweight, dbias = (None, None) if dx is None else (self.dweight, self.dbias)
        loss: float = ops.linear_cross_entropy(
            x, self.weight, self.bias, targets, scale, max_norm, losses, dx, dweight, dbias,
            logits, self.tied, self.bfloat16, share, self._overwrite and dx is not None,
        )  # fmt: skip
        if dx is not None:
            self._overwrite = False
        return loss

    def works_in_team(self) -> bool:
        return type(self) is OutputProjection

    def describe(self) -> str:
        C = self.weight.shape[1 if self.tied else 0]
        return f"OutputProjection({C} -> {self.vocab_size}{', tied' if self.tied else ''})"
