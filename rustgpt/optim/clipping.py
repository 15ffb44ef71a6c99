"""Owns gradient clipping by the global norm (Pascanu, Mikolov and Bengio 2013)."""

import math


def clip_factor(squares: float, max_norm: float) -> tuple[float, float]:
    """Return the gradient's L2 norm, and the factor that brings it down to `max_norm` at most.

    Parameters
    ----------
    squares
        Sum of the squares of the whole gradient.
    """
    norm = math.sqrt(squares)
    return norm, min(1.0, max_norm / norm) if norm > 0 else 1.0
