"""Owns a list of layers whose parameters lie in one flat buffer, and its copies."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Self, TypeVar

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError
from rustgpt.layers.gpt import describe, named_parameters
from rustgpt.layers.layer import Layer, copy_into
from rustgpt.layers.memory import Array, Workspace, aligned
from rustgpt.weights_lock import WeightsLock

Result = TypeVar("Result")
IDLE: Final = 8  # workspaces that are kept for the next calls


class Network:
    """Layers that any number of threads may use at once; `LLM` is one, and says what they do.

    Parameters
    ----------
    config
        Has the type of the parameters.
    layers
        In order. From now on their parameters are views into the network's buffer.

    Attributes
    ----------
    parameters
        (P,) flat buffer; see `LLM`.

    Raises
    ------
    ConfigError
        If a layer is another network's.
    """

    # What a copy has anew.
    _memory: ClassVar[tuple[str, ...]] = ("_parameters", "weights_lock", "_idle")

    def __init__(self, config: ModelConfig, layers: Sequence[Layer]) -> None:
        self.config = config
        self.layers = list(layers)
        for i, layer in enumerate(self.layers):
            if layer._owner is not None and layer._owner() is not None:
                raise ConfigError(
                    f"layer {i} is part of another model, which would lose its parameters: pass a "
                    "copy of it (copy.deepcopy)"
                )
        self._take_over()

    def _take_over(self) -> None:
        """Move the layers' parameters into one flat buffer of this network."""
        sizes = {id(v): v.size for layer in self.layers for v in layer.parameters().values()}
        self._parameters = aligned(sum(sizes.values()), np.dtype(self.config.dtype))
        self.weights_lock = WeightsLock()
        self._idle: list[Workspace] = []  # of calls that have ended
        taken, seen = 0, set[int]()
        for i, layer in enumerate(self.layers):
            taken += layer.bind(self._parameters[taken:], f"layers.{i}", seen)
            vars(layer)["_owner"] = weakref.ref(self)

    @property
    def parameters(self) -> Array:
        self.weights_lock.give()
        return self._parameters

    @parameters.setter
    def parameters(self, values: Array) -> None:
        with self.weights_lock.writing():
            copy_into(self._parameters, values, "parameters")

    @property
    def n_parameters(self) -> int:
        """P, how many numbers the model learns."""
        return self._parameters.size

    def named_parameters(self) -> dict[str, Array]:
        """Return the parameters by name: "layers.1.attention.qkv_weight"; see `parameters`."""
        self.weights_lock.give()
        return named_parameters(self.layers)

    def check_parameters(self) -> None:
        """Raise ConfigError if a layer has parameters that are not among the model's."""
        for name, value in named_parameters(self.layers).items():
            if value.size and not np.may_share_memory(value, self._parameters):
                raise ConfigError(
                    f"{name} is not among the model's parameters: make a model of these layers"
                )

    def describe(self) -> str:
        """Return the layers with their sizes, for people."""
        return describe(self.layers)

    def _read(self, work: Callable[[Workspace], Result]) -> Result:
        """Return work(memory) of weights between two steps; it may be called more than once."""
        try:
            workspace = self._idle.pop()
        except IndexError:
            workspace = Workspace(self.config.dtype)
        try:
            return self.weights_lock.read(lambda: work(workspace))
        finally:
            if len(self._idle) < IDLE:
                self._idle.append(workspace)

    # Copies

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        with self.weights_lock.alone:
            twin.__setstate__(copy.deepcopy(self._state(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        with self.weights_lock.alone:
            # Copied here and now. A layer may know its model, which is written but once.
            return {**self._state(), "layers": copy.deepcopy(self.layers, {id(self): self})}

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take_over()
