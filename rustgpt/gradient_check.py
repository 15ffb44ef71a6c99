"""Owns the gradient checker: a layer's backward against finite differences of its forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError
from rustgpt.layers.layer import Layer

# Looser tolerances let real mistakes through: 0.04472 for 0.044715 in GELU, say.
STEP = 1e-5
ABSOLUTE = 1e-8
RELATIVE = 1e-6


@dataclass(frozen=True)
class GradientReport:
    """What `gradcheck` found.

    Parameters
    ----------
    errors
        For "x", the input, and for each parameter by name: the largest of |found - expected|
        divided by what is allowed there; at most 1 is right.
    """

    errors: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every gradient is within the tolerance."""
        return all(error <= 1 for error in self.errors.values())

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return "\n".join(
            f"{name:<32} {'ok' if error <= 1 else 'WRONG':<6} {error:10.3g} of the tolerance"
            for name, error in self.errors.items()
        )


def numerical_gradient(function: Callable[[], float], x: NDArray[Any]) -> NDArray[Any]:
    """Return d function() / dx by central differences, changing x in place and back."""
    gradient = np.zeros_like(x)
    flat, out = x.reshape(-1), gradient.reshape(-1)
    for i in range(flat.size):
        kept = flat[i]
        flat[i] = kept + STEP
        above = function()
        flat[i] = kept - STEP
        out[i] = (above - function()) / (2 * STEP)
        flat[i] = kept
    return gradient


def excess(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest error as a multiple of what is allowed; infinite if not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    allowed = ABSOLUTE + RELATIVE * np.abs(expected)
    return float((np.abs(found - expected) / allowed).max(initial=0.0))


def gradcheck(
    layer: Layer,
    x: NDArray[Any] | None = None,
    lengths: tuple[int, ...] = (3, 1, 4),
    seed: int = 0,
) -> GradientReport:
    """Hold a layer's `backward` against central differences of its `forward`, in float64.

    Parameters
    ----------
    layer
        Built with dtype float64. Its parameters are used as they are, its gradients overwritten.
    x
        (N, C) input. By default random; the number of columns is then the layer's `dim`.
    lengths
        Rows of each text, whose sum is N.
    seed
        Of the input and of the weights of the sum that is differentiated.

    Returns
    -------
    GradientReport
        True if every gradient is right; print it to see each.

    Raises
    ------
    ConfigError
        If the layer is not in float64, `x` does not fit `lengths`, or `seed` is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from rustgpt import LayerNorm, gradcheck
    >>> bool(gradcheck(LayerNorm(5, dtype=np.float64)))
    True
    """
    if layer.dtype != np.float64:
        raise ConfigError(
            f"gradcheck needs a layer in float64, got {layer.dtype}: build it with dtype=np.float64"
        )
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be a whole number from 0 on, got {seed!r:.60}")
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if x is None:
        if not hasattr(layer, "dim"):
            raise ConfigError("gradcheck needs x, since the layer has no attribute 'dim'")
        x = rng.standard_normal((int(offsets[-1]), layer.dim))
    if len(x) != offsets[-1]:
        raise ConfigError(f"x must have sum(lengths) = {offsets[-1]} rows, got {len(x)}")
    weights = rng.standard_normal(layer.forward(x.copy(), offsets).shape)

    def objective() -> float:
        return float((layer.forward(x.copy(), offsets) * weights).sum())

    layer.zero_grad()
    for _ in range(2):  # twice, since gradients of parameters must be added to what is there
        layer.forward(x.copy(), offsets)
        dx = layer.backward(weights.copy()).copy()
    found = {name: gradient / 2 for name, gradient in layer.gradients().items()}
    errors = {}
    if np.issubdtype(x.dtype, np.floating):
        errors["x"] = excess(dx, numerical_gradient(objective, x))
    for name, value in layer.parameters().items():
        errors[name] = excess(found[name], numerical_gradient(objective, value))
    return GradientReport(errors)
