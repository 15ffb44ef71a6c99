"""Owns what an optimizer is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rustgpt.layers.memory import Array


class Optimizer(Protocol):
    """What turns gradients into new parameters; it is made with a model's flat `parameters`.

    Where several processes train together, each updates one part of the parameters. An optimizer
    with a method `keep(part)` is told which, and its arrays may then be of that part alone.
    """

    def begin_step(self) -> None:
        """Count one step more; each part of the buffers is then updated once."""

    def update(
        self, gradients: Array, rate: float, gradient_scale: float, part: slice
    ) -> None:  # (P,)
        """Update the parameters in `part` with `gradient_scale` times their gradients.

        Several threads call it at once, each with another part.
        """

    def state(self) -> dict[str, Any]:
        """Return what it must know to go on: numbers, and (P,) arrays, which are not copied."""

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, of the same model."""
