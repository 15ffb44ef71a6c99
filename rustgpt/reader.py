"""Owns one caller's forward passes through a model that others use and train at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rustgpt.layers.layer import Cache, Layer
from rustgpt.layers.memory import Array, Buffers, Indices
from rustgpt.weights_lock import WeightsLock


class Reader:
    """A model's parameters, with working memory that is one caller's alone.

    What is returned holds until the next call. Each call sees the parameters as they are between
    two steps of a training.

    Parameters
    ----------
    layers, lock
        Of the model.
    memory
        Of a caller that has ended, or an empty one.
    """

    def __init__(
        self, layers: Sequence[Layer], lock: WeightsLock, memory: dict[object, Buffers]
    ) -> None:
        *self._layers, self._output = [layer.reader(memory) for layer in layers]
        self._lock = lock

    def _hidden(self, ids: Indices, offsets: Indices) -> Array:  # (N,) -> (N, C)
        x: Array = ids
        for layer in self._layers:
            x = layer.forward(x, offsets)
        return x

    def logits(self, ids: Indices) -> Array:  # (T,) -> (T, V)
        """Return the scores of every token to follow each of a text's tokens."""
        offsets = np.array([0, len(ids)], np.int32)
        return self._lock.read(
            lambda: self._output.forward(self._hidden(ids, offsets), offsets),
        )

    def losses(self, ids: Indices, targets: Indices, offsets: Indices) -> Array:  # -> (N,)
        """Return each row's cross-entropy."""
        output: Any = self._output
        return self._lock.read(lambda: output.losses(self._hidden(ids, offsets), targets))

    def decode(self, ids: Sequence[int] | Indices, cache: Cache) -> Array:  # (n,) -> (V,)
        """Continue the text in `cache` by `ids`; return the scores of what may follow."""
        tokens: Array = np.array(ids, np.int32)

        def work() -> Array:
            x = tokens
            for layer in self._layers:
                x = layer.decode(x, cache)
            last: Array = self._output.decode(x[-1:], cache)[0]
            return last

        last = self._lock.read(work)
        cache.length += len(tokens)  # not before: it may have been read twice
        return last
