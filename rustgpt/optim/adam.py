"""Owns the Adam optimizer over a model's flat buffers."""

import numpy as np

from rustgpt.backend import ops
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
        self.m = aligned(len(parameters), parameters.dtype)
        self.v = aligned(len(parameters), parameters.dtype)
        self.steps = 0
        self._edges = _edges(decayed if weight_decay else ())
        self._edges_of: dict[tuple[int, int], Indices] = {}  # by part, counted from its start

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
        ops.adam_step(
            self.parameters[here], gradients[here], self.m[here], self.v[here],
            self._edges_in(here.start, here.stop), gradient_scale,
            rate / (1 - self.beta1**self.steps), self.beta1, self.beta2,
            (1 - self.beta2**self.steps) ** -0.5, self.epsilon, rate * self.weight_decay,
        )  # fmt: skip

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
