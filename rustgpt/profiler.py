"""Owns the profile of a training: how often each kernel runs, how long, and how much it does."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from rustgpt.backend import backend_name, ops
from rustgpt.layers.memory import Indices
from rustgpt.reference import kernels

FLOPS: Final = "GFLOP/s"
BYTES: Final = "GB/s"
BOTH: Final = ("linear_cross_entropy", "dropout", "rotary")  # forward and backward in one kernel


def _pairs(offsets: Indices) -> int:
    """Return how many pairs of a token and one that it sees there are in all texts."""
    lengths = np.diff(offsets).astype(np.int64)
    return int((lengths * (lengths + 1)).sum()) // 2


def _block(a: SimpleNamespace) -> int:
    """Return the operations of a whole block forward; backward has twice as many."""
    N, C = a.x.shape
    return int(2 * N * a.spec.multiplied + 4 * C * _pairs(a.offsets))


@functools.cache
def _names(kernel: str) -> tuple[str, ...]:
    """Return what the arguments of a kernel are called."""
    return tuple(inspect.signature(kernels()[kernel]).parameters)


# What a call must do, from the kernel's arguments by their names. Where the arithmetic takes the
# time: the operations of the products, attention's up to its mask; what is computed again to save
# memory counts once.
OPERATIONS: Final[dict[str, Callable[[Any], int]]] = {
    "linear_forward": lambda a: 2 * len(a.x) * a.weight.size,
    "linear_backward": lambda a: (2 if a.dx is None else 4) * len(a.x) * a.weight.size,
    "linear_cross_entropy": lambda a: (2 if a.dx is None else 6) * len(a.x) * a.weight.size,
    "attention_forward": lambda a: 4 * a.out.shape[1] * _pairs(a.offsets),
    "attention_backward": lambda a: 8 * a.dout.shape[1] * _pairs(a.offsets),
    "block_forward": _block,
    "block_backward": lambda a: 2 * _block(a),
}
ROW_BY_ROW: Final = ("relu", "gelu", "layer_norm", "rms_norm")
# Where the memory does: the bytes that are read and those that are written.
TRAFFIC: Final[dict[str, Callable[[Any], int]]] = {
    **{f"{name}_forward": lambda a: 2 * a.x.nbytes for name in ROW_BY_ROW},
    **{f"{name}_backward": lambda a: 3 * a.x.nbytes for name in ROW_BY_ROW},
    "swiglu_forward": lambda a: 3 * a.out.nbytes,
    "swiglu_backward": lambda a: 5 * a.dout.nbytes,
    "rotary": lambda a: 2 * len(a.x) * a.n_heads * a.table.shape[1] * a.x.itemsize,
    "dropout": lambda a: 2 * a.x.nbytes,
    "embedding_forward": lambda a: 3 * a.out.nbytes,
    "embedding_backward": lambda a: 5 * a.dout.nbytes,
    "sum_of_squares": lambda a: int(a.x.nbytes),
    "add_into": lambda a: 3 * a.x.nbytes,
    "adam_step": lambda a: 7 * a.parameters.nbytes,
}


@dataclass(frozen=True)
class Line:
    """What one kernel came to.

    Parameters
    ----------
    kernel, part
        Its name, and "forward", "backward", "both" or "update".
    calls, milliseconds
        Of one step; of all threads together, with what they wait for each other in the kernel.
    share
        Of the threads' time.
    rate, unit
        What one thread does in a second; None if it is not known what a call does.
    share_of_limit
        The rate as a share of what a thread of this machine can do at best.
    """

    kernel: str
    part: str
    calls: float
    milliseconds: float
    share: float
    rate: float | None
    unit: str
    share_of_limit: float | None


@dataclass
class _Total:
    calls: int = 0
    seconds: float = 0.0
    amount: int = 0  # operations or bytes


class Profiler:
    """While it is entered, every call of a kernel through `rustgpt.ops` is timed.

    Outside, the kernels are what they always are, and take no longer.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[str, float, tuple[Any, ...], dict[str, Any]]] = []
        self._totals: dict[str, _Total] = {}

    def __enter__(self) -> Profiler:
        backend_name()  # loads the kernels
        self._kernels = {
            name: kernel
            for name, kernel in vars(ops).items()
            if callable(kernel) and not name.endswith("_size")
        }
        vars(ops).update({name: self._timed(name, self._kernels[name]) for name in self._kernels})
        return self

    def __exit__(self, *_: object) -> None:
        vars(ops).update(self._kernels)

    def _timed(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = kernel(*args, **kwargs)
            self._calls.append((name, time.perf_counter() - began, args, kwargs))
            return result

        return call

    def clear(self) -> None:
        """Forget the calls so far."""
        self._calls.clear()
        self._totals.clear()

    def count(self) -> None:
        """Count what the calls so far did, which takes time: best between two steps."""
        for name, seconds, args, kwargs in self._calls:
            total = self._totals.setdefault(name, _Total())
            total.calls += 1
            total.seconds += seconds
            amount_of = OPERATIONS.get(name) or TRAFFIC.get(name)
            if amount_of:
                given = dict(zip(_names(name), args, strict=False)) | kwargs
                # The arrays have the rows of all threads.
                shard = given.get("shard")
                threads = shard.n if shard else 1
                total.amount += amount_of(SimpleNamespace(**given)) // threads
        self._calls.clear()

    def lines(self, steps: int, seconds: float, limits: Mapping[str, float]) -> list[Line]:
        """Return what was counted, what takes longest first.

        All threads together had `seconds` for these steps; `limits` are the most that one can do.
        """
        self.count()
        found = []
        for name, total in sorted(self._totals.items(), key=lambda item: -item[1].seconds):
            kernel, _, part = name.rpartition("_")
            if part not in ("forward", "backward"):
                kernel, part = name, "both" if name in BOTH else "update"
            unit = FLOPS if name in OPERATIONS else BYTES
            rate = total.amount / max(total.seconds, 1e-9) / 1e9 if total.amount else None
            line = Line(
                kernel=kernel,
                part=part,
                calls=total.calls / steps,
                milliseconds=1e3 * total.seconds / steps,
                share=total.seconds / seconds,
                rate=rate,
                unit=unit,
                share_of_limit=rate and rate / limits[unit],
            )
            found.append(line)
        return found
