"""Owns what travels with one pass through the layers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, Protocol

import numpy as np

from rustgpt.backend import ops
from rustgpt.errors import ConfigError
from rustgpt.layers.cache import Cache
from rustgpt.layers.dropout import Dropout
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.memory import Array, Indices, Workspace
from rustgpt.reference.arrays import Shard

Layer = Any  # a rustgpt.layers.layer.Layer; that file imports this one

FIRST: Final = np.zeros(1, np.int32)  # the slot of a single text
FIRST.flags.writeable = False


@functools.lru_cache(1024)
def offsets_of(*lengths: int) -> Indices:
    """Return where texts of these lengths begin and end, (B + 1,), to be read only."""
    offsets = np.array([0, *accumulate(lengths)], np.int32)
    offsets.flags.writeable = False
    return offsets


class Observer(Protocol):
    """Who is told of every layer's output in a pass, and of the gradient that comes back."""

    def forward(self, layer: Layer, out: Array) -> None: ...
    def backward(self, layer: Layer, dx: Array) -> None: ...


class Context:
    """All that a pass through the layers needs beside its input, and what it leaves behind.

    A layer holds parameters and nothing else that changes. What it is told of a pass, and what it
    saves for the way back, is here (as in PyTorch's `autograd.Function`). So a model may be in
    any number of passes at once, each with a context of its own.

    Parameters
    ----------
    offsets
        (B + 1,) where each text begins and ends in the rows.
    dtype
        Of the rows; that of the workspace, if there is one.
    gradients
        Where the gradients of the parameters go; without them there is no way back, and nothing
        is saved.
    cache, slots
        Texts that go on, and (B,) the slot of each; by default the first B slots.
    bfloat16
        Whether the linear layers' products round their factors to bfloat16.
    shard
        This thread's part of the rows, if several take them through the layers together.
    dropout
        What this step of a training leaves out; nothing by default.
    row_numbers
        (N,) of each row in the batch of the whole step, for dropout; by default it is this one.
    workspace
        Memory of an earlier pass that has ended, to be used again.
    observer
        Told of every layer's output and gradient.

    Attributes
    ----------
    training : bool
        Whether a backward pass follows.
    starts : (B,) array of int32
        How many rows of each text came before.
    """

    _positions: Indices | None = None
    _taken = _temporaries = _layers = _depth = _sites = 0
    _same = False  # whether the last layer has returned its input, or a view of it

    def __init__(
        self,
        offsets: Indices,
        dtype: Any = np.float32,
        *,
        gradients: Gradients | None = None,
        cache: Cache | None = None,
        slots: Indices | None = None,
        bfloat16: bool = False,
        shard: Shard | None = None,
        dropout: Dropout | None = None,
        row_numbers: Indices | None = None,
        workspace: Workspace | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.offsets = offsets
        self._workspace = workspace or Workspace(dtype)
        self.dtype = self._workspace.dtype
        self.training = gradients is not None
        self.cache = cache
        self.bfloat16 = bfloat16
        self.shard = shard
        self.dropout = dropout if dropout is not None and dropout.rate else None
        self._row_numbers = row_numbers
        self.observer = observer
        self._gradients = gradients
        self._saved: list[tuple[Layer, tuple[Any, ...]]] = []
        self._memory = self._workspace.activations
        self._uses: dict[object, int] = {}  # how often a layer has asked for what is cached
        if cache is not None:
            if gradients is not None:
                raise ConfigError("a pass with a cache has no way back: leave out its `gradients`")
            if self.dropout is not None:
                raise ConfigError("a pass with a cache has no dropout: leave out its `dropout`")
            n = len(offsets) - 1
            if slots is None:
                slots = FIRST if n == 1 else np.arange(n, dtype=np.int32)
            self.slots = slots
            alone = slots is FIRST and len(cache.lengths) == 1
            self.starts: Indices = cache.lengths.copy() if alone else cache.lengths[slots]

    @property
    def n_texts(self) -> int:
        """B, how many texts the rows are of."""
        return len(self.offsets) - 1

    @property
    def positions(self) -> Indices:
        """The position of each row in its text, (N,)."""
        if self._positions is None:
            edges = self.offsets.tolist()
            if self.cache is not None and edges[-1] == len(edges) - 1 == 1:
                return self.starts  # of a single row
            starts = [0] * self.n_texts if self.cache is None else self.starts.tolist()
            if len(starts) == 1:
                self._positions = np.arange(starts[0], starts[0] + edges[1], dtype=np.int32)
            else:
                before = np.subtract(edges[:-1], starts)  # (B,)
                rows = np.arange(edges[-1]) - np.repeat(before, np.diff(edges))
                self._positions = rows.astype(np.int32)
        return self._positions

    @property
    def rows(self) -> slice:
        """The rows that this thread computes: all of them, unless there is a shard."""
        return slice(None) if self.shard is None else self.shard.rows

    @property
    def gradients(self) -> Gradients:
        """Where the gradients of the parameters go.

        Raises
        ------
        ConfigError
            If the pass was begun without.
        """
        if self._gradients is None:
            raise ConfigError("this pass has no way back: give its Context `gradients`")
        return self._gradients

    # What is saved for the way back

    def save(self, layer: Layer, *values: Any) -> None:
        """Keep what `layer` needs to go back; nothing, if there is no way back."""
        if self.training:
            self._saved.append((layer, values))

    def saved(self, layer: Layer) -> Any:
        """Return what `layer` saved last, and forget it: the last is the first on the way back.

        Raises
        ------
        ConfigError
            If another layer, or nobody, saved last.
        """
        if not self._saved or self._saved[-1][0] is not layer:
            last = type(self._saved[-1][0]).__name__ if self._saved else "nobody"
            raise ConfigError(
                f"{type(layer).__name__}.backward wants what it saved, but {last} saved last: each "
                "forward saves once, with ctx.save, and layers go back in the opposite order"
            )
        return self._saved.pop()[1]

    # Dropout

    def masks(self, n: int) -> dict[str, Any]:
        """Return what a kernel is told of dropout in the next n places of the model, if any.

        Places are counted in the order in which a pass comes to them, so that each has masks of its
        own. The same arguments give the same masks on the way back.
        """
        if self.dropout is None:
            return {}
        key, self._sites = self.dropout.key(self._sites), self._sites + n
        if self._row_numbers is None:
            self._row_numbers = np.arange(self.offsets[-1], dtype=np.int32)
        return {"row_numbers": self._row_numbers, "key": key, "rate": self.dropout.rate}

    def dropped(self, layer: Layer, x: Array) -> Array:  # (N, C) -> (N, C)
        """Return x after dropout, and save what the way back needs; x itself without dropout.

        There `layer` calls `dropped_back`, in its place among what else it saved.
        """
        if self.dropout is None:
            return x
        mask = self.masks(1)
        self.save(layer, mask)
        return self._masked(x, mask)

    def dropped_back(self, layer: Layer, dout: Array) -> Array:  # (N, C) -> (N, C)
        """Return the gradient of what `layer` gave to `dropped`, from that of what it got."""
        if self.dropout is None:
            return dout
        (mask,) = self.saved(layer)
        return self._masked(dout, mask)

    def _masked(self, x: Array, mask: dict[str, Any]) -> Array:
        out = self.empty(*x.shape)
        ops.dropout(x, out=out, shard=self.shard, **mask)
        return out

    # Memory

    def empty(self, *shape: int) -> Array:
        """Return an array to be filled in, from memory that the next pass uses again.

        What forward takes holds until the layer's backward has returned, or, if there is no way
        back, until the layer above has returned; what backward takes, until the layer below has.
        All threads of a batch get the same.
        """
        self._taken += 1
        return self._memory.get(self._taken, shape)

    def temporary(self, *shape: int) -> Array:
        """Return an array that holds until the layer returns, for this thread alone."""
        self._temporaries += 1
        return self._workspace.temporary.get(self._temporaries, shape)

    # The cache

    def cached(self, layer: Layer, name: str, columns: int) -> Array:
        """Return what the cache has of `layer` under a name, (slots, S, columns).

        Text b has the slot `slots[b]`; its rows below `starts[b]` are those before, and the layer
        writes the new ones behind them.

        Raises
        ------
        ConfigError
            If the pass has no cache, or that of another model.
        """
        if self.cache is None:
            raise ConfigError("this pass has no cache: give its Context a `cache`")
        place: object = layer.path or id(layer)
        use = self._uses.get(place, 0)
        self._uses[place] = use + 1
        if use:  # the layer comes more than once
            place = (place, use)
        return self.cache.rows(place, name, columns, self.dtype)

    def history(self, layer: Layer, name: str, x: Array) -> Iterator[tuple[slice, Array]]:
        """Yield each text's rows in `x`, and all rows of the text so far, which end with these.

        For a layer whose rows see those before, with a cache or without: what it sees of them is
        kept under a name.
        """
        if self.cache is None:
            for first, stop in pairwise(self.offsets):
                yield slice(first, stop), x[first:stop]
            return
        kept = self.cached(layer, name, x.shape[1])  # (slots, S, columns)
        for (first, stop), slot, start in zip(
            pairwise(self.offsets), self.slots, self.starts, strict=True
        ):
            end = start + stop - first
            kept[slot, start:end] = x[first:stop]
            yield slice(first, stop), kept[slot, :end]

    # Through the layers

    def forward(self, layers: Sequence[Layer], x: Array) -> Array:
        """Return the output of the last of some layers, one after the other."""
        self._depth += 1
        for layer in layers:
            self._begin(keep=self.training)
            out = layer.forward(x, self)
            self._same = out is x or out.base is x.base is not None
            x = out
            if self.observer is not None:
                self.observer.forward(layer, x)
        self._depth -= 1
        return x

    def backward(self, layers: Sequence[Layer], dout: Array) -> Array:
        """Return the gradient of the first layer's input, from that of the last one's output."""
        self._depth += 1
        for layer in reversed(layers):
            self._begin(keep=False)
            dx = layer.backward(dout, self)
            self._same = dx is dout or dx.base is dout.base is not None
            dout = dx
            if self.observer is not None:
                self.observer.backward(layer, dout)
        self._depth -= 1
        return dout

    def _begin(self, keep: bool) -> None:
        """Begin a layer: what was taken for the last but one is free, unless it is kept.

        Layers inside of another use what that one has not taken.
        """
        if self._depth > 1:
            return
        self._temporaries = 0
        if not keep:
            if not self._same:  # or else the input lies where that of the layer before does
                self._layers += 1
            self._memory = self._workspace.alternating[self._layers % 2]
            self._taken = 0
