"""Owns reading safetensors of others: one file or several with an index, every size checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from rustgpt.errors import CheckpointError
from rustgpt.file_set import explained
from rustgpt.formats.foreign import ROWS_OF, Array
from rustgpt.formats.json_file import read_object

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
LARGEST_HEADER: Final = 100_000_000  # bytes, as the library has it
MOST_FILES: Final = 1000
# Numbers that are read: the type on disk. (bfloat16 is the upper half of a float32.)
TYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# What else a file may hold, by its bits; it is told by name, and read by nobody.
OTHERS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "I32": 32, "U32": 32, "I64": 64, "U64": 64, "F4": 4, "C64": 64,
}  # fmt: skip


class Stored(NamedTuple):
    """Where a tensor lies: its file, type, shape, and first byte."""

    file: BufferedReader
    dtype: str
    shape: tuple[int, ...]
    begin: int


class Weights(ExitStack):
    """The tensors of a folder, by name; they are read when asked for.

    Raises
    ------
    CheckpointError
        If a file is missing, or its header contradicts its length or itself.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        with ExitStack() as opened, explained(f"cannot load a model from {folder}"):
            if (folder / INDEX).is_file():
                for file, names in _indexed(folder / INDEX).items():
                    found = _header(opened.enter_context(_opened(folder / file)), folder / file)
                    for name in names:
                        if name not in found:
                            raise CheckpointError(
                                f"{folder / file} lacks the tensor {name!r:.80}, which {INDEX} "
                                "says is there"
                            )
                        self.tensors[name] = found[name]
            else:
                path = folder / SINGLE
                self.tensors = _header(opened.enter_context(_opened(path)), path)
            self.enter_context(opened.pop_all())

    def rows(self, name: str) -> Iterator[Array]:
        """Yield a tensor, some of its rows at a time, widened without loss to float32 or float64.

        Raises
        ------
        CheckpointError
            If it is of a type that is no floating number, or the file ends too early.
        """
        file, dtype, shape, begin = self.tensors[name]
        if dtype not in TYPES:
            raise CheckpointError(
                f"{file.name}: the tensor {name!r:.80} is of type {dtype}; {', '.join(TYPES)} can "
                "be read: save the model in one of these"
            )
        kind = np.dtype(TYPES[dtype])
        rows, each = shape[0] if shape else 1, math.prod(shape[1:])
        step = max(1, ROWS_OF // max(1, each))
        for first in range(0, rows, step):
            n = min(step, rows - first)
            with explained(f"{file.name} cannot be read"):
                file.seek(begin + first * each * kind.itemsize)
                raw = file.read(n * each * kind.itemsize)
            if len(raw) != n * each * kind.itemsize:
                raise CheckpointError(f"{file.name} was cut off while it was read")
            yield _widened(np.frombuffer(raw, kind), dtype).reshape(n, *shape[1:])


def _widened(values: Array, dtype: str) -> Array:
    """Return numbers as float32 or float64."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64 if dtype == "F64" else np.float32, copy=False)


def _opened(path: Path) -> BufferedReader:
    if not path.exists():
        raise CheckpointError(_missing(path))
    if not path.is_file():
        raise CheckpointError(f"{path} is no file")
    return open(path, "rb")


def _missing(path: Path) -> str:
    pickled = sorted(path.parent.glob("pytorch_model*.bin"))
    if pickled:
        return (
            f"{pickled[0]} is a pickle of PyTorch, which can run any code and is not read: where "
            "PyTorch is, load it with transformers and save it with "
            "model.save_pretrained(FOLDER), which writes model.safetensors"
        )
    return f"{path} is missing"


def _indexed(path: Path) -> dict[str, list[str]]:
    """Return the names of the tensors of each file that an index names."""
    content = read_object(path, CheckpointError)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f'{path} must have an object "weight_map"')
    files: dict[str, list[str]] = {}
    for tensor, file in places.items():
        # A file stays within the folder: one word, no path.
        inside = isinstance(file, str) and file.endswith(".safetensors") and file.isprintable()
        if not inside or {"/", "\\", ":"} & {*file} or file.startswith("."):
            raise CheckpointError(
                f"{path}: {file!r:.80} cannot be a file of this folder; a name such as "
                "model-00001-of-00002.safetensors is needed"
            )
        files.setdefault(file, []).append(tensor)
    if len(files) > MOST_FILES:
        raise CheckpointError(f"{path} names {len(files):,} files: more than {MOST_FILES:,}")
    return files


def _header(file: BufferedReader, path: Path) -> dict[str, Stored]:
    """Return what a file says of its tensors, checked against its length."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise CheckpointError(
            f"{path} is no safetensors file: a header of {length:,} bytes in {size:,}"
        )
    try:
        content = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the header must be an object")
    content.pop("__metadata__", None)
    found, ends = {}, [(0, 0)]
    for name, claim in content.items():
        dtype, shape, begin, end = _checked(path, name, claim)
        ends.append((begin, end))
        found[name] = Stored(file, dtype, shape, 8 + length + begin)
    ends.sort()
    if any(end != begin for (_, end), (begin, _) in pairwise(ends)) or (
        ends[-1][1] != size - 8 - length
    ):
        raise CheckpointError(
            f"{path} is damaged: its tensors overlap, or are not as long as the file says"
        )
    return found


def _checked(path: Path, name: str, claim: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return the type, shape, begin and end of a tensor."""
    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{path}: of the tensor {name!r:.80}, type, shape or place is missing"
        )
    dtype, shape, place = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in TYPES and dtype not in OTHERS):
        raise CheckpointError(
            f"{path}: the tensor {name!r:.80} is of an unknown type, {dtype!r:.40}"
        )
    whole = isinstance(shape, list) and isinstance(place, list) and len(place) == 2
    if not whole or any(type(n) is not int or not 0 <= n < 2**48 for n in [*shape, *place]):
        raise CheckpointError(f"{path}: the shape or place of the tensor {name!r:.80} is no such")
    bits = 8 * np.dtype(TYPES[dtype]).itemsize if dtype in TYPES else OTHERS[dtype]
    begin, end = place
    if len(shape) > 32 or 8 * (end - begin) != bits * math.prod(shape):
        raise CheckpointError(
            f"{path}: the tensor {name!r:.80} of type {dtype} and shape {tuple(shape)!s:.80} "
            f"cannot be in {end - begin:,} bytes"
        )
    return dtype, tuple(shape), begin, end


def _unique(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands twice")
    return content
