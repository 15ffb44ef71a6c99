"""Owns the gradients of some layers' parameters, and which of them a step has written already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rustgpt.errors import ConfigError
from rustgpt.layers.memory import Array, aligned

Layer = Any  # a rustgpt.layers.layer.Layer; that file imports this one, through its context


class Gradients:
    """The gradients of all parameters of some layers, in one flat array.

    Between `begin` and `finish`, what is written first to a gradient overwrites it, and what
    comes later is added: so nothing need be zeroed before. A parameter that two layers share, such
    as a tied embedding table, has one gradient.

    Parameters
    ----------
    layers
        Whose parameters; in a model, all of them.
    flat
        (P,) where they lie, if another thread's `Gradients` lie there too.
    index
        Which of these threads this is; number 0 writes the zeros.

    Attributes
    ----------
    flat : (P,) array
        In the order of the parameters, each once.
    """

    def __init__(self, layers: Sequence[Layer], flat: Array | None = None, index: int = 0) -> None:
        self._parameters = _unique([v for layer in layers for v in layer.parameters().values()])
        size = sum(value.size for value in self._parameters)
        self.flat = aligned(size, layers[0].dtype) if flat is None else flat
        self._zeroes = index == 0
        self._written: set[int] = set()
        # By the parameter's identity. The arrays are held, so that no other gets their number.
        self._views: dict[int, Array] = {}
        taken = 0
        for value in self._parameters:
            here = self.flat[taken : taken + value.size]
            self._views[id(value)] = here.reshape(value.shape)
            taken += value.size
        self._all = frozenset(self._views)
        self._stretches: list[Array] = []
        self._inside: dict[int, frozenset[int]] = {}  # of a stretch
        for layer in layers:
            for _, inner in layer.walk():
                self._add_stretch(inner)

    def _add_stretch(self, layer: Layer) -> None:
        """Let a layer whose parameters lie in one stretch claim all of their gradients at once."""
        inside = [id(value) for value in layer.parameters().values()]
        if layer.flat is None or not inside or id(layer.flat) in self._inside:
            return
        begins = [self._views[key].ctypes.data - self.flat.ctypes.data for key in inside]
        sizes = [self._views[key].nbytes for key in inside]
        if any(a + size != b for a, size, b in zip(begins, sizes, begins[1:], strict=False)):
            return  # a part of it is also part of an earlier layer
        first = begins[0] // self.flat.itemsize
        self._stretches.append(layer.flat)
        self._views[id(layer.flat)] = self.flat[first : first + layer.flat.size]
        self._inside[id(layer.flat)] = frozenset(inside)

    def begin(self) -> None:
        """Begin a step: what was there is forgotten."""
        self._written.clear()

    def finish(self) -> None:
        """End a step: the gradient of what nobody has used is zero."""
        for key in self._all - self._written:
            self._written.add(key)
            if self._zeroes:
                self._views[key].fill(0)

    def claim(self, parameter: Array) -> tuple[Array, bool]:
        """Return a parameter's gradient, and whether to add to it.

        If not, the caller must overwrite all of it.

        Raises
        ------
        ConfigError
            If it is not a parameter of these layers.
        """
        key = id(parameter)
        try:
            view = self._views[key]
        except KeyError:
            raise ConfigError(
                f"an array of shape {parameter.shape} is not a parameter of this model: make it "
                "with self.parameter(...), and give `gradients` the attribute itself"
            ) from None
        if key in self._inside:
            return view, self._claim_stretch(key)
        if key in self._written:
            return view, True
        self._written.add(key)
        return view, False

    def _claim_stretch(self, key: int) -> bool:
        inside = self._inside[key]
        known = self._written & inside
        if known and len(known) < len(inside):
            for key in inside - known:
                if self._zeroes:
                    self._views[key].fill(0)
        self._written |= inside
        return bool(known)

    def of(self, parameter: Array) -> Array:
        """Return a parameter's gradient, to be added to: zero, unless this step has written it."""
        view, accumulate = self.claim(parameter)
        if not accumulate and self._zeroes:
            view.fill(0)
        return view

    def add(self, parameter: Array, value: Array) -> None:
        """Add to the gradient of a parameter."""
        view, accumulate = self.claim(parameter)
        if accumulate:
            view += value
        else:
            view[...] = value


def _unique(arrays: list[Array]) -> list[Array]:
    """Return each array once, in the order of their first place."""
    return list({id(array): array for array in arrays}.values())
