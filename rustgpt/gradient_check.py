"""Owns the gradient checker: a layer's backward against finite differences of its forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError, check_integer
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.dropout import Dropout
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Indices, Workspace

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
        divided by what is allowed there; at most 1 is right. "two passes at once" and "with a
        cache" likewise.
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
    dropout: Dropout | None = None,
) -> GradientReport:
    """Hold a layer's `backward` against central differences of its `forward`, in float64.

    Two passes are under way at once, as when several threads use a model: so a layer that keeps
    something of a pass on itself is found out. And `forward` is called row by row with a cache, as
    when text is generated, and must then return what it returns for all rows at once.

    Parameters
    ----------
    layer
        Built with dtype float64. Its parameters are used as they are.
    x
        (N, C) input. By default random; the number of columns is then the layer's `dim`.
    lengths
        Rows of each text, whose sum is N.
    seed
        Of the input and of the weights of the sum that is differentiated.
    dropout
        Of a step of a training, in all passes but those with a cache.

    Returns
    -------
    GradientReport
        True if all is right; print it to see each.

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
    rng, offsets, x = _checked(layer, x, lengths, seed)
    check = _Check(layer, x, offsets, dropout)
    weights = rng.standard_normal(check.forward().shape)
    gradients, dx = check.differentiate(weights)

    def objective() -> float:
        return float((check.forward() * weights).sum())

    errors = {}
    if np.issubdtype(x.dtype, np.floating):
        errors["x"] = excess(dx, numerical_gradient(objective, x))
    for name, value in layer.parameters().items():
        errors[name] = excess(gradients[name], numerical_gradient(objective, value))
    errors["two passes at once"] = check.two_passes(weights, gradients, dx, rng)
    errors["with a cache"] = check.with_cache()
    return GradientReport(errors)


def _checked(
    layer: Layer, x: NDArray[Any] | None, lengths: tuple[int, ...], seed: int
) -> tuple[np.random.Generator, Indices, NDArray[Any]]:
    """Return the source of random numbers, the texts' edges and the rows, after a check."""
    if layer.dtype != np.float64:
        raise ConfigError(
            f"gradcheck needs a layer in float64, got {layer.dtype}: build it with dtype=np.float64"
        )
    check_integer("seed", seed)
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if x is None:
        if not hasattr(layer, "dim"):
            raise ConfigError("gradcheck needs x, since the layer has no attribute 'dim'")
        x = rng.standard_normal((int(offsets[-1]), layer.dim))
    if len(x) != offsets[-1]:
        raise ConfigError(f"x must have sum(lengths) = {offsets[-1]} rows, got {len(x)}")
    return rng, offsets, x


class _Check:
    """The passes that `gradcheck` makes."""

    def __init__(
        self, layer: Layer, x: NDArray[Any], offsets: Indices, dropout: Dropout | None
    ) -> None:
        self.layer, self.x, self.offsets, self.dropout = layer, x, offsets, dropout
        self.workspace = Workspace(np.float64)

    def context(self, **rest: Any) -> Context:
        return Context(self.offsets, np.float64, **{"dropout": self.dropout} | rest)

    def forward(self, **rest: Any) -> NDArray[Any]:
        ctx = self.context(workspace=self.workspace, **rest)
        return self.layer.forward(self.x.copy(), ctx).copy()

    def differentiate(self, dout: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """Return the gradients of the parameters by name, and that of the input."""
        gradients = Gradients([self.layer])
        # What the first pass leaves in memory, and in the gradients, must not matter to the next
        # two: twice, since what comes second is added.
        for number in range(3):
            if number < 2:
                gradients.flat.fill(np.nan)
                self.workspace.fill(np.nan)
                gradients.begin()
            ctx = self.context(gradients=gradients, workspace=self.workspace)
            self.layer.forward(self.x.copy(), ctx)
            dx = self.layer.backward(dout.copy(), ctx).copy()
        gradients.finish()
        named = self.layer.parameters().items()
        return {name: gradients.of(value) / 2 for name, value in named}, dx

    def two_passes(
        self, dout: NDArray[Any], expected: dict[str, NDArray[Any]], expected_dx: NDArray[Any],
        rng: np.random.Generator,
    ) -> float:  # fmt: skip
        """Return the error of a pass while another, with the rows in another order, is made."""
        passes = []
        for x in (self.x, rng.permutation(self.x)):
            gradients = Gradients([self.layer])
            gradients.begin()
            passes.append((x, gradients, self.context(gradients=gradients)))
        for x, _, ctx in passes:
            self.layer.forward(x.copy(), ctx)
        found = [self.layer.backward(dout.copy(), ctx).copy() for _, _, ctx in passes]
        gradients = passes[0][1]
        gradients.finish()
        errors = [excess(found[0], expected_dx)]
        for name, value in self.layer.parameters().items():
            errors.append(excess(gradients.of(value), expected[name]))
        return max(errors)

    def with_cache(self) -> float:
        """Return the error of the outputs when each text goes on by one row at a time."""
        whole, lengths = self.forward(dropout=None), np.diff(self.offsets)
        cache = Cache(int(lengths.max(initial=0)), len(lengths))
        found = np.full_like(whole, np.nan)
        for t in range(cache.capacity):
            slots = np.flatnonzero(lengths > t).astype(np.int32)
            rows = self.offsets[:-1][slots] + t
            ctx = Context(
                np.arange(len(slots) + 1, dtype=np.int32), np.float64, cache=cache, slots=slots
            )
            found[rows] = self.layer.forward(self.x[rows], ctx)
            cache.lengths[slots] += 1
        return excess(found, whole)
