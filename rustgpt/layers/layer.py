"""Owns what every layer is: a forward, a backward and named parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from rustgpt.errors import ConfigError
from rustgpt.layers.context import Context
from rustgpt.layers.memory import Array

# Attributes of a layer that a copy of it has anew.
_IN_A_MODEL = ("flat", "path", "_owner")


class _Built(type):
    """Marks a layer as built when its constructor has ended, whatever class it is of."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__call__(*args, **kwargs)
        vars(layer)["_built"] = True
        return layer


class Layer(metaclass=_Built):
    """One step of the network: parameters, and nothing else that changes.

    A layer of your own needs three things: parameters made with `parameter` in its constructor,
    `forward` and `backward`. What a pass needs beside its input is in `ctx`, a `Context`, and what
    `backward` needs of `forward` is kept there with `ctx.save`. Once built, a layer takes no new
    attributes: any number of passes may go through it at once.

    Rows of several texts lie one after another in `x` (N, C), so that nothing is padding;
    `ctx.offsets[b]:ctx.offsets[b + 1]` are the rows of text b. A layer that treats each row by
    itself need not look at them. One whose rows see others gets those before from `ctx.history`.

    Attributes
    ----------
    path : str
        Where in its model the layer is, such as "layers.1.attention"; "" outside of one.
    flat : (P,) array or None
        Its parameters one after the other, where they are a stretch of a model's.
    divides_rows : bool
        Whether several threads may take shards of the rows through it together, as `ctx.shard`
        says; see `rustgpt.parallel`. A subclass with a forward or backward of its own says so anew.
    """

    path: str
    flat: Array | None
    _owner: Callable[[], object] | None  # a weak reference to its model
    divides_rows = False
    _built = False
    _changed = False  # whether it has other settings, or inner layers, than when it was built

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self._names: list[str] = []  # its own, without those of inner layers
        self._outside()

    def _outside(self) -> None:
        vars(self).update(path="", flat=None, _owner=None)

    def forward(self, x: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        """Return the layer's output."""
        raise NotImplementedError

    def backward(self, dout: Array, ctx: Context) -> Array:  # (N, C) -> (N, C)
        """Return the gradient of the input; give those of the parameters to `ctx.gradients`."""
        raise NotImplementedError

    # Parameters

    def parameter(self, name: str, value: Array) -> None:
        """Make `value` a parameter: the attribute `name`.

        Raises
        ------
        ConfigError
            If there is one of that name.
        """
        if name in self._names:
            raise ConfigError(f"{type(self).__name__} has a parameter {name!r} already")
        self._names.append(name)
        vars(self)[name] = np.ascontiguousarray(value, self.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what is given for a parameter is copied into it."""
        own = vars(self)
        if name in own.get("_names", ()):
            copy_into(own[name], value, f"{type(self).__name__}.{name}")
        elif self._built and name not in own and not hasattr(type(self), name):
            raise ConfigError(
                f"{type(self).__name__}.{name} cannot be set: a layer holds parameters, which its "
                "constructor makes, and many passes go through it at once; keep what belongs to a "
                "pass with ctx: ctx.save(self, ...) in forward, ctx.saved(self) in backward"
            )
        else:
            object.__setattr__(self, name, value)
            if self._built:
                own["_changed"] = True

    def _children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the attributes that are layers, in the order in which they were set."""
        for name, value in tuple(vars(self).items()):
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple)) and any(isinstance(v, Layer) for v in value):
                raise ConfigError(
                    f"{type(self).__name__}.{name} holds layers in a list, where their parameters "
                    "would not be found: make each an attribute of its own"
                )

    def walk(self, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Layer]]:
        """Yield the layer and all inner ones, each once, with their paths from `path` on.

        Layers whose `id` is in `seen` are left out; those that are yielded are put there.
        """
        seen = set() if seen is None else seen
        if id(self) not in seen:
            seen.add(id(self))
            yield path, self
            for name, child in self._children():
                yield from child.walk(f"{path}.{name}".removeprefix("."), seen)

    def parameters(self, path: str = "", seen: set[int] | None = None) -> dict[str, Array]:
        """Return the parameters by name, those of inner layers as "attention.qkv_weight".

        The names begin with `path`; `seen` is as in `walk`.
        """
        return {
            f"{place}.{name}".removeprefix("."): vars(layer)[name]
            for place, layer in self.walk(path, seen)
            for name in layer._names
        }

    @property
    def n_parameters(self) -> int:
        """How many numbers the layer learns."""
        return sum(value.size for value in self.parameters().values())

    def bind(self, flat: Array, path: str, seen: set[int] | None = None) -> int:
        """Move the parameters into a flat array of zeros; return how many they are.

        Layers whose `id` is in `seen` stay where they are; those that are moved are put there.
        """
        seen = set() if seen is None else seen
        if id(self) in seen:
            return 0
        seen.add(id(self))
        taken, n_parameters = 0, self.n_parameters
        for name in self._names:
            value = vars(self)[name]
            here = flat[taken : taken + value.size]
            if value.any():  # zeros, to be read from a file, take no memory until then
                here[...] = value.ravel()
            vars(self)[name] = here.reshape(value.shape)
            taken += value.size
        for name, child in self._children():
            taken += child.bind(flat[taken:], f"{path}.{name}".removeprefix("."), seen)
        vars(self).update(path=path, flat=flat[:taken] if taken == n_parameters else None)
        return taken

    def describe(self) -> str:
        """Return one line for people: what the layer is, and its sizes."""
        return type(self).__name__

    # Copies

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # whoever shared parameters would not know of it

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: not where it is in a model."""
        return {name: value for name, value in vars(self).items() if name not in _IN_A_MODEL}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._outside()


def divides_rows(layer: Layer) -> bool:
    """Whether several threads may take shards of the rows through a layer together.

    A class that overrides how the rows go through must say so itself.
    """
    for kind in type(layer).__mro__:
        if "divides_rows" in vars(kind):
            return bool(layer.divides_rows)
        if not vars(kind).keys().isdisjoint(("forward", "backward", "loss")):
            return False
    return False


def copy_into(array: Array, values: Any, name: str) -> None:
    """Copy values into the array called `name`, whose place in memory others rely on.

    Raises
    ------
    ConfigError
        If they are not numbers of this shape.
    """
    if values is array:
        return
    given = np.asarray(values)
    if given.shape != array.shape or given.dtype.kind not in "fiu":
        raise ConfigError(
            f"{name} must be {array.dtype} of shape {array.shape}, got {given.dtype} of shape "
            f"{given.shape}"
        )
    array[...] = given


def normal(
    rng: np.random.Generator | None, std: float, shape: tuple[int, ...], dtype: Any
) -> Array:
    """Return normally distributed numbers with mean 0, the same for every floating type.

    Without an `rng` they are zero, and take no memory until they are written.
    """
    if rng is None:
        return np.zeros(shape, dtype)
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(std)
    return values.astype(dtype, copy=False)
