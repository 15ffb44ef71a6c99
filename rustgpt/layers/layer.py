"""Owns what every layer is: a forward, a backward, named parameters and reusable memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self

import numpy as np

from rustgpt.errors import ConfigError
from rustgpt.layers.memory import Array, Buffers, Indices, is_reused
from rustgpt.layers.team import Member, SharedBuffers
from rustgpt.reference.share import Share


class Cache:
    """What decoding keeps of one text: how many tokens were seen, and each layer's rows of them.

    Parameters
    ----------
    capacity
        S, the most tokens that it can hold.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._rows: dict[tuple[int, str, str], Array] = {}

    def rows(self, layer: Layer, name: str, columns: int) -> Array:
        """Return the (S, columns) array that `layer` keeps under `name`."""
        key = (*layer.place(), name)
        if key not in self._rows:
            if self.length:
                raise ConfigError(
                    f"this cache holds nothing of {type(layer).__name__}'s {name}, but "
                    f"{self.length} tokens: it belongs to another model"
                )
            self._rows[key] = np.empty((self.capacity, columns), layer.dtype)
        return self._rows[key]


class Layer:
    """One step of the network.

    A layer of your own needs three things: parameters made with `parameter` in its constructor,
    `forward` and `backward`. A parameter `weight` is the attribute `weight`, its gradient the
    attribute `dweight`; inside a model both are views into the model's two flat buffers.

    Rows of several texts lie one after another in `x` (N, C), so that nothing is padding;
    `offsets[b]:offsets[b + 1]` are the rows of text b. A layer that treats each row by itself need
    not look at them. A layer that mixes rows also overrides `decode`.

    Attributes
    ----------
    bfloat16 : bool
        Whether the layer's matrix products round their factors to bfloat16, as a training may ask.
    member : Member or None
        This thread's part of a batch, when several threads take it through the layers together;
        see `works_in_team`.
    number : int
        Which of a model's layers it is, or is part of, from 0; -1 outside of a model.
    """

    bfloat16 = False
    member: Member | None = None
    number = -1
    _in_place: Collection[str] = ()  # the names of its parameters and gradients
    owner: Callable[[], object] | None = None  # of a model's layer, a weak reference to the model

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self.parameter_names: list[str] = []
        self._role = ""
        self._forget_memory()

    def _forget_memory(self) -> None:
        self._buffers = Buffers()
        self._scratch = Buffers()
        self._of_team = SharedBuffers()  # of all replicas
        self._gradients: Array | None = None  # of a model, the stretch that holds this layer's

    def forward(self, x: Array, offsets: Indices) -> Array:  # (N, C) -> (N, C)
        """Return the layer's output, and keep what `backward` needs."""
        raise NotImplementedError

    def backward(self, dout: Array) -> Array:  # (N, C) -> (N, C)
        """Return the gradient of the input; add to the gradients of the parameters."""
        raise NotImplementedError

    def decode(self, x: Array, cache: Cache) -> Array:  # (n, C) -> (n, C)
        """Continue one text by n rows, those before being in `cache`; nothing is kept."""
        return self.forward(x, np.array([0, len(x)], np.int32))

    # Parameters

    def parameter(self, name: str, value: Array) -> None:
        """Make `value` a parameter: attribute `name`, with its gradient in attribute d + `name`."""
        self.parameter_names.append(name)
        self._in_place = {*self._in_place, name, "d" + name}
        vars(self)[name] = np.ascontiguousarray(value, self.dtype)
        vars(self)["d" + name] = np.zeros(value.shape, self.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what is given for a parameter or a gradient is copied into it."""
        if name in self._in_place:
            copy_into(vars(self)[name], value, f"{type(self).__name__}.{name}")
        else:
            object.__setattr__(self, name, value)

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the attributes that are layers, in the order in which they were set."""
        for name, value in tuple(vars(self).items()):  # a thread may add some meanwhile
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple)) and any(isinstance(v, Layer) for v in value):
                raise ConfigError(
                    f"{type(self).__name__}.{name} holds layers in a list, where their parameters "
                    "would not be found: make each an attribute of its own"
                )

    def _named(self, prefix: str, gradient: bool) -> Iterator[tuple[str, Array]]:
        for name in self.parameter_names:
            yield prefix + name, getattr(self, "d" + name if gradient else name)
        for name, child in self.children():
            yield from child._named(f"{prefix}{name}.", gradient)

    def parameters(self) -> dict[str, Array]:
        """Return the parameters by name, those of inner layers as "attention.qkv_weight"."""
        return dict(self._named("", gradient=False))

    def gradients(self) -> dict[str, Array]:
        """Return the gradients by the names of their parameters."""
        return dict(self._named("", gradient=True))

    @property
    def n_parameters(self) -> int:
        """How many numbers the layer learns."""
        return sum(value.size for value in self.parameters().values())

    def use_bfloat16(self, use: bool) -> None:
        """Let this layer's and all inner layers' products round their factors, or not."""
        self.bfloat16 = use
        for _, child in self.children():
            child.use_bfloat16(use)

    def zero_grad(self) -> None:
        """Set every gradient to zero; `backward` adds to what is there."""
        for name in self.parameter_names:
            getattr(self, "d" + name).fill(0)
        for _, child in self.children():
            child.zero_grad()

    def begin_gradients(self) -> None:
        """Prepare for a new sum of gradients: zero, or what the next `backward` writes over.

        A layer whose `backward` can write over its gradients saves the passes over memory that
        zeros cost. In a team, every thread's replica is asked.
        """
        if self.member and self.member.share.index > 0:
            return  # the first thread does it
        if self._gradients is None:
            self.zero_grad()
        else:
            self._gradients.fill(0)

    @property
    def _share(self) -> Share | None:
        """This thread's share of a batch, as the kernels take it; None if it is alone."""
        return self.member.share if self.member else None

    def place(self) -> tuple[int, str]:
        """Return where in its model the layer is, which replicas and copies have in common."""
        return (self.number, self._role) if self.number >= 0 else (-1, f"{id(self)}")

    def describe(self) -> str:
        """Return one line for people: what the layer is, and its sizes."""
        return type(self).__name__

    # Memory

    def buffer(self, name: str, *shape: int) -> Array:
        """Return reusable memory of this layer's own, for what `backward` will need.

        In a team, all of its replicas get the same.
        """
        buffers = self._of_team if self.member else self._buffers
        return buffers.get(name, shape, self.dtype)

    def scratch(self, name: str, *shape: int) -> Array:
        """Return reusable memory that a model shares among its layers.

        It holds until `backward` of the layer below has returned; what must hold from `forward` to
        `backward` belongs in a `buffer`.
        """
        if self.member:
            return self.member.scratch(self.number, self._role + name, shape, self.dtype)
        return self._scratch.get(self._role + name, shape, self.dtype)

    def bind(
        self, parameters: Array | None, gradients: Array, scratch: Buffers, role: str = ""
    ) -> int:
        """Move the layer into a model's flat buffers; return how many numbers it took.

        `parameters` None leaves the parameters where they are and moves the gradients alone.
        """
        taken = 0
        for name in self.parameter_names:
            value = getattr(self, name)
            here = slice(taken, taken + value.size)
            if parameters is not None:
                parameters[here] = value.ravel()
                vars(self)[name] = parameters[here].reshape(value.shape)
            vars(self)["d" + name] = gradients[here].reshape(value.shape)
            taken += value.size
        self._scratch, self._role = scratch, role
        for name, child in self.children():
            child.number = self.number
            rest = None if parameters is None else parameters[taken:]
            taken += child.bind(rest, gradients[taken:], scratch, f"{role}{name}.")
        self._gradients = gradients[:taken]
        return taken

    def works_in_team(self) -> bool:
        """Whether replicas in several threads may take one batch through the layer together.

        Then `x` and the output have the rows of all threads, and each replica reads and writes its
        member's alone; the replicas share the gradients too, of which each makes a part, after
        all have met once in `backward`. See `rustgpt.layers.team`. False unless a layer says so.
        """
        return False

    def join(self, member: Member | None) -> None:
        """Take part in a team, or none any more, with all inner layers."""
        self.member = member
        for _, child in self.children():
            child.join(member)

    # Copies

    def replica(self) -> Self:
        """Return a layer with the same parameters and memory of its own, for another thread."""
        twin = self._shallow()
        twin._buffers, twin._scratch = Buffers(), Buffers()
        for name in self.parameter_names:
            # Not zeros_like, which would write to memory that `bind` may soon give back.
            vars(twin)["d" + name] = np.zeros(getattr(self, name).shape, self.dtype)
        for name, child in self.children():
            setattr(twin, name, child.replica())
        return twin

    def reader(self, memory: dict[object, Buffers]) -> Self:
        """Return a layer with the same parameters for the forward passes of one caller.

        Parameters
        ----------
        memory
            The caller's, by what has it: layers, and the scratch memory that they share.
        """
        twin = self._shallow_reader(memory)
        for name, child in self.children():
            setattr(twin, name, child.reader(memory))
        return twin

    def _shallow_reader(self, memory: dict[object, Buffers]) -> Self:
        twin = self._shallow()
        own = vars(twin)
        for name, key in (("_buffers", self.place()), ("_scratch", self._scratch)):
            if key not in memory:
                memory[key] = Buffers()
            own[name] = memory[key]
        own["bfloat16"], own["member"] = False, None
        return twin

    def _shallow(self) -> Self:
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # whoever shared parameters would not know of it

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: not memory that is reused, nor gradients, nor activations."""
        left_out = {*_MEMORY, *("d" + name for name in self.parameter_names)}
        own = dict(vars(self))  # a thread may add some meanwhile
        return {k: v for k, v in own.items() if k not in left_out and not is_reused(v)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_memory()
        for name in self.parameter_names:
            vars(self)["d" + name] = np.zeros(getattr(self, name).shape, self.dtype)


# Attributes of a layer that a copy of it has anew.
_MEMORY = ("_buffers", "_scratch", "_of_team", "_gradients", "member", "owner")


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
