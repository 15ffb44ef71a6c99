"""Owns what an answer is held to: which tokens may follow, and when it may end."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Constraint(Protocol):
    """Where an answer is in what it is held to; going on makes another one."""

    def masked(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return scores with -inf for the tokens that may not follow."""

    def after(self, token_id: int) -> Constraint:
        """Return where the answer is after one more token."""
