"""Owns what decoding remembers of texts that go on: the KV cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from rustgpt.errors import ConfigError
from rustgpt.layers.memory import Array, Indices


class Cache:
    """What layers keep of the tokens that they have seen, in a slot for each text.

    Each layer has one array (slots, length, columns) a name, such as "keys" and "values".

    Parameters
    ----------
    capacity
        S, the most tokens of a text.
    slots
        How many texts.

    Attributes
    ----------
    lengths : (slots,) array of int32
        How many tokens of each text were seen.
    """

    def __init__(self, capacity: int, slots: int = 1) -> None:
        self.capacity = capacity
        self.lengths: Indices = np.zeros(slots, np.int32)
        self._rows: dict[tuple[object, ...], list[Array]] = {}

    @property
    def slots(self) -> int:
        """How many texts there is room for."""
        return len(self.lengths)

    def __copy__(self) -> Cache:
        return copy.deepcopy(self)  # two caches with the same rows would write over each other's

    def rows(
        self, place: object, names: tuple[str, ...], columns: int, dtype: np.dtype[Any]
    ) -> list[Array]:
        """Return an array (slots, S, columns) for each name; see `Context.cached`.

        Raises
        ------
        ConfigError
            If the texts were seen by a model that has nothing there.
        """
        key = (place, names, columns, dtype)
        rows = self._rows.get(key)
        if rows is None:
            if self.lengths.any():
                raise ConfigError(
                    f"this cache has {self.lengths.max()} tokens of a text, but no "
                    f"{' and '.join(names)} of {place}: it belongs to another model"
                )
            rows = [np.empty((self.slots, self.capacity, columns), dtype) for _ in names]
            self._rows[key] = rows
        return rows
