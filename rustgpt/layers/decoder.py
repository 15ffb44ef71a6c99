"""Owns how texts go on in a cache: by few rows in one kernel call, by more layer after layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from rustgpt.backend import ops, single_threaded_blas
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context, offsets_of
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Layer
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Array, Indices, Workspace
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.rms_norm import RMSNorm
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.reference.arrays import Shard
from rustgpt.reference.spec import DecoderSpec

# A row's logits have the same bits whether one row is decoded or up to so many together.
ROWS_AT_MOST: Final = 16
LONGEST: Final = 2**31 - 1  # tokens of a text


class Threads(Protocol):
    """Who lets several threads decode together; see `rustgpt.parallel.decoding`."""

    def run(self, n_heads: int, work: Callable[[Shard | None], None], kind: Hashable) -> None:
        """Call `work` in each thread, with its part of the heads; None is for a single one.

        Calls of a kind take equally long.
        """

    def most(self) -> int:
        """Return how many threads may be run."""


@functools.lru_cache(4096)
def scratch_size(spec: DecoderSpec, N: int, longest: int, threads: int, backend: str) -> int:
    """Return what `decoder_scratch_size` of a backend returns."""
    return int(ops.decoder_scratch_size(spec, N, longest, threads))


class Decoder:
    """Lets texts go on through some layers.

    One kernel runs few rows through all of them, if they are those that `build_layers` makes, and
    have not been changed since.

    Parameters
    ----------
    layers
        Of a model, in order.
    flat
        (P,) the model's parameters, of which the layers' are views.
    """

    def __init__(self, layers: Sequence[Layer], flat: Array) -> None:
        self._layers = list(layers)
        self._flat = flat
        self._parts = [part for layer in layers for _, part in layer.walk()]
        self._blocks = [layer for layer in layers if type(layer) is TransformerBlock]
        self._places = tuple(block.attention.path for block in self._blocks)
        self.spec = decoder_spec(layers, flat)
        self._rotary = self._blocks[0].rotary if self._blocks else None

    @property
    def fused(self) -> bool:
        """Whether one kernel runs few rows; if not, the layers run one after the other."""
        changed = [part._changed for part in self._parts]
        by_parts = [block.by_parts for block in self._blocks]
        return self.spec is not None and True not in changed and True not in by_parts

    def of(self, layers: Sequence[Layer]) -> bool:
        """Whether these layers are those of which it was made."""
        return layers == self._layers

    def logits(
        self,
        rows: list[Indices],
        cache: Cache,
        slots: list[int],
        workspace: Workspace,
        threads: Threads,
    ) -> Array:  # -> (B, V)
        """Let texts in slots of a cache go on by some ids; return the scores of what may follow.

        The cache's lengths stay as they are. The scores are the caller's own memory.
        """
        ids = rows[0] if len(rows) == 1 else np.concatenate(rows)  # (N,)
        offsets, where = offsets_of(*map(len, rows)), np.array(slots, np.int32)  # (B + 1,), (B,)
        if self.spec is not None and self.fused:
            # At once, also where the layers run: they then write to the same array.
            kv = cache.stacked(self._places, "kv", 2 * self.spec.kv_dim, workspace.dtype)
            if len(ids) <= ROWS_AT_MOST:
                return self._logits_of_few(
                    self.spec, ids, offsets, kv, cache, where, workspace, threads
                )
        ctx = Context(offsets, workspace=workspace, cache=cache, slots=where)
        with single_threaded_blas():
            x = ctx.forward(self._layers[:-1], ids)  # (N, C)
            last = x[offsets[1:] - 1]  # (B, C)
            return ctx.forward(self._layers[-1:], last).copy()  # (B, V)

    def _logits_of_few(
        self,
        spec: DecoderSpec,
        ids: Indices,
        offsets: Indices,
        kv: Array,  # (L, slots, S, 2 K D)
        cache: Cache,
        slots: Indices,
        workspace: Workspace,
        threads: Threads,
    ) -> Array:
        logits = np.empty((len(slots), spec.vocab_size), workspace.dtype)
        # The size for a full cache, so that it is the same at every token.
        size = scratch_size(spec, len(ids), cache.capacity, threads.most(), ops.backend)
        scratch = workspace.temporary.get(1, (size,))
        starts = cache.lengths[slots]
        table = None if self._rotary is None else self._rotary.table(workspace.dtype)

        def work(shard: Shard | None) -> None:
            ops.decoder_forward(
                self._flat, spec, ids, offsets, kv, slots, starts, logits, scratch, shard, table
            )

        threads.run(spec.n_kv_heads, work, (spec, len(ids)))
        return logits


def decoder_spec(layers: Sequence[Layer], flat: Array) -> DecoderSpec | None:
    """Return what a model of some layers is made of; None unless it is one of `build_layers`.

    Its blocks may differ in all but their heads and positions.
    """
    first, *blocks, last = layers
    norm = blocks.pop() if blocks and type(blocks[-1]) in (LayerNorm, RMSNorm) else None
    known = type(first) is Embeddings and type(last) is OutputProjection
    same = len(set(map(id, layers))) == len(layers)
    if not known or not same or any(type(block) is not TransformerBlock for block in blocks):
        return None
    assert isinstance(first, Embeddings)
    assert isinstance(last, OutputProjection)
    found: dict[str, Array | None] = {"tokens": first.tokens, "places": first.places}
    if isinstance(norm, (LayerNorm, RMSNorm)):
        found |= {"norm.weight": norm.weight, "norm.bias": getattr(norm, "bias", None)}
    found |= {"output.weight": last.weight, "output.bias": last.bias}
    offsets = {name: _place(value, flat) for name, value in found.items() if value is not None}
    firsts = [_place(block.flat, flat) for block in blocks]
    forms = {
        (block.spec.n_heads, block.spec.n_kv_heads, block.rotary)
        for block in blocks
        if isinstance(block, TransformerBlock)
    }
    if None in (*offsets.values(), *firsts) or len(forms) > 1:
        return None
    V, C = first.tokens.shape
    rotary = next(iter(forms))[2] if forms else None
    if first.places is None and rotary is None:  # nobody knows the positions
        return None
    return DecoderSpec(
        vocab_size=V,
        max_seq_len=min(
            LONGEST if first.places is None else len(first.places),
            LONGEST if rotary is None else rotary.max_seq_len,
        ),
        dim=C,
        blocks=tuple(block.spec for block in blocks if isinstance(block, TransformerBlock)),
        firsts=tuple(place for place in firsts if place is not None),
        offsets={name: place for name, place in offsets.items() if place is not None},
        epsilon=norm.epsilon if isinstance(norm, (LayerNorm, RMSNorm)) else 0.0,
        tied=last.tied,
        size=flat.size,
    )


def _place(part: Any, flat: Array) -> int | None:
    """Return where a part of a flat array begins; None if it is not all there, in order."""
    if part is None or not part.flags.c_contiguous or part.dtype != flat.dtype:
        return None
    start, rest = divmod(int(part.ctypes.data - flat.ctypes.data), flat.itemsize)
    return start if not rest and 0 <= start <= flat.size - part.size else None
