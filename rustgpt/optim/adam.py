"""Owns the Adam optimizer over a model's flat buffers."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rustgpt.backend import ops
from rustgpt.errors import ConfigError
from rustgpt.layers.memory import Array, Indices, aligned


class Adam:
    """Adam (Kingma and Ba 2015), with AdamW's decay (Loshchilov and Hutter 2019).

    Parameters
    ----------
    parameters
        (P,) changed in place.
    beta1, beta2, epsilon
        As in the paper.
    weight_decay
        Share of a parameter, times the rate, that a step takes away.
    decayed
        The parts of `parameters` to which weight decay applies.
    """

    def __init__(
        self,
        parameters: Array,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decayed: tuple[slice, ...] = (),
    ) -> None:
        self.parameters = parameters
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay = weight_decay
        self.steps = 0
        self.keep(slice(0, len(parameters)))
        self._edges = _edges(decayed if weight_decay else ())
        self._edges_of: dict[tuple[int, int], Indices] = {}  # by part, counted from its start

    def keep(self, part: slice) -> None:
        """Have moments of these parameters alone, which are all that `update` is called for."""
        self._first = part.start
        self.m = aligned(part.stop - part.start, self.parameters.dtype)
        self.v = aligned(part.stop - part.start, self.parameters.dtype)

    def begin_step(self) -> None:
        """Count one step more; each part of the buffers is then updated once."""
        self.steps += 1

    def update(
        self, gradients: Array, rate: float, gradient_scale: float = 1.0,
        part: slice | None = None,
    ) -> None:  # fmt: skip
        """Update the parameters in `part` (all of them without it) from (P,) gradients.

        Parameters
        ----------
        rate
            Learning rate.
        gradient_scale
            Factor on the gradients, as clipping asks for.
        """
        here = part or slice(0, len(self.parameters))
        own = slice(here.start - self._first, here.stop - self._first)
        ops.adam_step(
            self.parameters[here], gradients[here], self.m[own], self.v[own],
            self._edges_in(here.start, here.stop), gradient_scale,
            rate / (1 - self.beta1**self.steps), self.beta1, self.beta2,
            (1 - self.beta2**self.steps) ** -0.5, self.epsilon, rate * self.weight_decay,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return the number of steps, and the two moments: (P,) each, or of what is kept."""
        return {"steps": self.steps, "m": self.m, "v": self.v}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises
        ------
        ConfigError
            If it is not the state of an Adam for as many parameters.
        """
        m, v, steps = (np.asarray(state.get(name)) for name in ("m", "v", "steps"))
        fits = bool(steps.dtype.kind in "iu" and steps.ndim == 0 and steps >= 0)
        for moment in (m, v):
            fits = fits and moment.shape == self.m.shape and moment.dtype.kind == "f"
            fits = fits and bool(np.isfinite(moment).all())
        if not fits or (v < 0).any():
            raise ConfigError(
                f"this is not the state of an Adam for {len(self.m):,} parameters: it has "
                f"{', '.join(f'{name} {np.shape(value)}' for name, value in state.items())}"
            )
        self.steps = int(steps)
        self.m[...], self.v[...] = m, v

    def _edges_in(self, start: int, stop: int) -> Indices:
        if (start, stop) not in self._edges_of:
            inside = np.clip(self._edges, start, stop) - np.int32(start)
            self._edges_of[start, stop] = inside
        return self._edges_of[start, stop]


def _edges(decayed: tuple[slice, ...]) -> Indices:
    """Return where decay begins, ends, begins again ..., neighbouring parts merged."""
    edges: list[int] = []
    for part in sorted(decayed, key=lambda part: int(part.start)):
        if edges and edges[-1] == part.start:
            edges[-1] = part.stop
        else:
            edges += [part.start, part.stop]
    return np.array(edges, np.int32)


def matrices(named: Mapping[str, Array]) -> list[str]:
    """Return the names of the parameters that are matrices: what weight decay applies to."""
    return [name for name, value in named.items() if value.ndim >= 2]


def stretches(named: Mapping[str, Array], names: Collection[str]) -> tuple[slice, ...]:
    """Return where in the flat buffer some parameters are.

    Parameters
    ----------
    named
        All parameters by name, in the order of the buffer.
    names
        Of those that are asked for.
    """
    found, taken = [], 0
    for name, value in named.items():
        if name in names:
            found.append(slice(taken, taken + value.size))
        taken += value.size
    return tuple(found)
