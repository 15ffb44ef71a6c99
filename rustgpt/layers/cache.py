"""Owns what decoding remembers of texts that go on: the KV cache."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from rustgpt.errors import ConfigError, DataError, check_integer
from rustgpt.layers.memory import Array, Indices


class Cache:
    """What layers keep of the tokens that they have seen, in a slot for each text.

    Each layer has one array (slots, length, columns) a name, such as "kv" of keys and values.

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

    Raises
    ------
    ConfigError
        If either is not a whole number from 1 on.
    """

    def __init__(self, capacity: int, slots: int = 1) -> None:
        check_integer("capacity", capacity, 1, 2**31 - 1)
        check_integer("slots", slots, 1, 2**31 - 1)
        self.capacity = capacity
        self.lengths: Indices = np.zeros(slots, np.int32)
        self._rows: dict[tuple[object, ...], Array] = {}
        self._stacks: dict[tuple[object, ...], Array] = {}  # several places' rows

    @property
    def slots(self) -> int:
        """How many texts there is room for."""
        return len(self.lengths)

    def copy(self, source: int, target: int) -> None:
        """Let the text of one slot be that of another slot too."""
        length = self.lengths[source]
        for rows in self._rows.values():
            rows[target, :length] = rows[source, :length]
        self.lengths[target] = length

    def check_room(self, lengths: list[int], slots: list[int], longest: int) -> None:
        """Raise DataError unless each text has a slot of its own, with room for what it goes on by.

        Parameters
        ----------
        lengths
            How many tokens come to each text.
        longest
            The most tokens of a text that the model sees.
        """
        if not len(slots) == len(set(slots)) == len(lengths) > 0:
            raise DataError(f"each of {len(lengths)} texts needs a slot of its own, got {slots}")
        for length, slot in zip(lengths, slots, strict=True):
            whole = isinstance(slot, (int, np.integer)) and not isinstance(slot, bool)
            if not whole or not 0 <= slot < self.slots:
                raise DataError(f"the cache has slots 0 to {self.slots - 1}, got {slot}")
            room = min(self.capacity, longest) - int(self.lengths[slot])
            if not length:
                raise DataError("each text must go on by one token or more, got none")
            if length > room:
                raise DataError(f"slot {slot} has room for {room} more tokens, got {length}")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stacks": {}}  # a copy makes its own again of what the places have

    def __copy__(self) -> Cache:
        return copy.deepcopy(self)  # two caches with the same rows would write over each other's

    def rows(self, place: object, name: str, columns: int, dtype: np.dtype[Any]) -> Array:
        """Return the array (slots, S, columns) of a name; see `Context.cached`.

        Raises
        ------
        ConfigError
            If the texts were seen by a model that has nothing there.
        """
        key = (place, name, columns, dtype.char)
        rows = self._rows.get(key)
        if rows is None:
            if self.lengths.any():
                raise ConfigError(
                    f"this cache has {self.lengths.max()} tokens of a text, but no {name} of "
                    f"{place}: it belongs to another model"
                )
            rows = self._rows[key] = np.empty((self.slots, self.capacity, columns), dtype)
        return rows

    def stacked(
        self, places: tuple[object, ...], name: str, columns: int, dtype: np.dtype[Any]
    ) -> Array:
        """Return as one array (places, slots, S, columns) what `rows` does of each place.

        Raises
        ------
        ConfigError
            As `rows`.
        """
        key = (places, name, columns, dtype.char)
        stack = self._stacks.get(key)
        if stack is None:
            parts = [self.rows(place, name, columns, dtype) for place in places]
            stack = np.empty((len(places), self.slots, self.capacity, columns), dtype)
            for place, part, rows in zip(places, stack, parts, strict=True):
                for slot, n in enumerate(self.lengths):
                    part[slot, :n] = rows[slot, :n]
                self._rows[place, name, columns, dtype.char] = part
            self._stacks[key] = stack
        return stack
