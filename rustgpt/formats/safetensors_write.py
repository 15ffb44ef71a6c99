"""Owns writing safetensors for others: tensors in parts, in any of four types of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from rustgpt.errors import CheckpointError
from rustgpt.formats.foreign import ROWS_OF, Array

# The types that can be written: the name in the file, and that of the numbers on disk.
WRITTEN: Final = {
    "float64": ("F64", "<f8"),
    "float32": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("BF16", "<u2"),
}


class Tensor(NamedTuple):
    """A tensor that is to be written.

    Parameters
    ----------
    name, shape
        In the file.
    rows
        Returns its rows, some at a time.
    """

    name: str
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[Array]]


def rows_of(values: Array) -> Iterator[Array]:
    """Yield an array, some of its rows at a time."""
    step = max(1, ROWS_OF // max(1, math.prod(values.shape[1:])))
    for first in range(0, len(values), step):
        yield values[first : first + step]


def safetensors(tensors: Sequence[Tensor], dtype: str) -> Iterator[bytes]:
    """Yield a safetensors file in parts, as PyTorch reads it.

    Raises
    ------
    CheckpointError
        If a number is NaN or infinite, or becomes so as it is rounded.
    """
    code, kind = WRITTEN[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * np.dtype(kind).itemsize
        header[tensor.name] = {
            "dtype": code, "shape": tensor.shape, "data_offsets": (begin, end),
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of their size
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors:
        for rows in tensor.rows():
            yield rounded(rows, dtype, tensor.name).astype(kind, copy=False).tobytes()


def rounded(values: Array, dtype: str, name: str) -> Array:
    """Return numbers in another type, each the nearest; those of bfloat16 by their bits."""
    if not np.isfinite(values).all():
        raise CheckpointError(f"the model was not written: {name!r} holds NaN or infinity")
    with np.errstate(over="ignore"):
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            found = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
            finite = (found & 0x7F80 != 0x7F80).all()
        else:
            found = values.astype(dtype)
            finite = np.isfinite(found).all()
    if not finite:
        raise CheckpointError(
            f"the model was not written: {name!r} holds a number too large for {dtype}; choose "
            "float32"
        )
    return found
