"""Owns what dropout is told of a step: how much it leaves out, and which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from rustgpt.errors import ConfigError, check_integer
from rustgpt.reference.dropout import GOLDEN, mixed

LARGEST: Final = 2**64


@dataclass(frozen=True)
class Dropout:
    """Dropout in one step of a training (Srivastava et al. 2014).

    Which numbers it sets to zero follows from seed and step, from the place in the model, and from
    the number's row in the whole step's batch and its column: it is the same however the rows are
    divided among threads, and backward as it was forward.

    Parameters
    ----------
    rate
        Share of the numbers that are set to zero, from 0 to below 1. The others are multiplied by
        1 / (1 - rate), so that the mean stays.
    seed
        Of the training.
    step
        Of the training, from 0.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    rate: float
    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rate, (int, float, np.floating)) or not 0 <= self.rate < 1:
            raise ConfigError(f"the rate of dropout must be from 0 to below 1, got {self.rate!r}")
        check_integer("seed", self.seed)
        check_integer("step", self.step)

    @cached_property
    def _key(self) -> int:
        seed, step = np.array([[self.seed], [self.step]], np.uint64)
        return int(mixed(mixed(seed + GOLDEN) + step * GOLDEN)[0])

    def key(self, site: int) -> int:
        """Return what the kernels know a place in the model by, in this step."""
        return (self._key + site) % LARGEST
