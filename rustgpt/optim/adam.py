"""Owns the Adam optimizer over a model's flat buffers."""

from rustgpt.backend import ops
from rustgpt.layers.layer import Array, aligned


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
        self._segments = _segments(len(parameters), decayed if weight_decay else ())

    def begin_step(self) -> None:
        """Count one step more; each part of the buffers is then updated once."""
        self.steps += 1

    def update(
        self, gradients: Array, rate: float, gradient_scale: float = 1.0, part: slice | None = None
    ) -> None:
        """Update the parameters in `part` (all of them without it) from (P,) gradients.

        Parameters
        ----------
        rate
            Learning rate.
        gradient_scale
            Factor on the gradients, as clipping asks for.
        """
        first, end, _ = (part or slice(None)).indices(len(self.parameters))
        for start, stop, decays in self._segments:
            here = slice(max(start, first), min(stop, end))
            if here.start >= here.stop:
                continue
            ops.adam_step(
                self.parameters[here], gradients[here], self.m[here], self.v[here],
                gradient_scale, rate / (1 - self.beta1**self.steps), self.beta1, self.beta2,
                (1 - self.beta2**self.steps) ** -0.5, self.epsilon,
                rate * self.weight_decay if decays else 0.0,
            )  # fmt: skip


def _segments(size: int, decayed: tuple[slice, ...]) -> list[tuple[int, int, bool]]:
    """Cut 0..size where weight decay begins or ends: (start, stop, decays), neighbours merged."""
    segments: list[tuple[int, int, bool]] = []
    end = 0
    for part in sorted(decayed, key=lambda part: int(part.start)):
        if part.start > end:
            segments.append((end, part.start, False))
        if segments and segments[-1][2] and segments[-1][1] == part.start:
            segments[-1] = (segments[-1][0], part.stop, True)
        else:
            segments.append((part.start, part.stop, True))
        end = part.stop
    if end < size:
        segments.append((end, size, False))
    return segments
