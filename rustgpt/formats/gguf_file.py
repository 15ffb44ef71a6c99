"""Owns the container of a GGUF file: its metadata and tensors, every size checked before use.

The format is that of llama.cpp (its docs/gguf.md), version 2 and 3, in the byte order of x86. What
the blocks of quantised numbers mean, knows the package `gguf`; it is an extra.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import CheckpointError
from rustgpt.extras import extra
from rustgpt.file_set import explained, reason
from rustgpt.formats.foreign import ROWS_OF, Array

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT: Final = 32  # of the tensors, unless the metadata say otherwise
MOST: Final = 1 << 16  # tensors, and entries of the metadata
LARGEST: Final = 1 << 28  # bytes of one text, and entries of one list
# The types of metadata, by number: what `struct` calls them; 8 is a text, 9 a list.
NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
TEXT: Final = 8
LIST: Final = 9
# Types of tensors that are read: by number, the name, numbers in a block, and bytes of one.
TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip


class Stored(NamedTuple):
    """Where a tensor lies: its type by number, its shape, and its first byte."""

    kind: int
    shape: tuple[int, ...]
    begin: int


class GgufFile:
    """A GGUF file; its tensors are read when asked for.

    Parameters
    ----------
    path
        Of the file.

    Attributes
    ----------
    metadata
        By name; a list of numbers is an array.
    tensors
        Where each lies, by name. A shape has the longest distance first, as NumPy has it.

    Raises
    ------
    CheckpointError
        If the file contradicts its own length, or is of a form that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(f"cannot load a model from {path}"):
            self._bytes: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        self._read_header()

    def close(self) -> None:
        """Let the file go."""
        self._bytes = np.empty(0, np.uint8)

    def rows(self, name: str) -> Iterator[Array]:
        """Yield a tensor, some of its rows at a time, as float32.

        Raises
        ------
        CheckpointError
            If its type is not one that is read, or the package that knows it is missing.
        """
        kind, shape, begin = self.tensors[name]
        if kind not in TYPES:
            self.refuse(
                f"the tensor {name!r:.80} is of type {kind}, which is not read; these are: "
                + ", ".join(known for known, _, _ in TYPES.values())
            )
        of_block, size = TYPES[kind][1:]
        width = shape[-1] if shape else 1
        stride = width // of_block * size
        rows = math.prod(shape[:-1])
        step = max(1, ROWS_OF // max(1, width))
        for first in range(0, rows, step):
            some = min(step, rows - first)
            start = begin + first * stride
            part = self._bytes[start : start + some * stride].reshape(some, stride)
            yield from self._numbers(part, kind, len(shape))

    def _numbers(self, part: NDArray[np.uint8], kind: int, dimensions: int) -> Iterator[Array]:
        """Yield the numbers of some rows; of a vector, which is one row, its numbers."""
        name = TYPES[kind][0]
        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(name)
        if plain is not None:
            found: Array = np.ascontiguousarray(part).view(plain)
        elif name == "BF16":  # the upper half of a float32
            found = (np.ascontiguousarray(part).view("<u2").astype("<u4") << 16).view("<f4")
        else:
            gguf = package()
            with np.errstate(all="ignore"):  # a damaged scale gives NaN, which is told
                found = gguf.quants.dequantize(
                    np.ascontiguousarray(part), gguf.GGMLQuantizationType(kind)
                )
        yield found[0] if dimensions == 1 else found

    def refuse(self, why: str) -> Any:
        """Raise CheckpointError for the file."""
        raise CheckpointError(f"{self.path}: {why}")

    # The header

    def _read_header(self) -> None:
        if bytes(self._take(4)) != MAGIC:
            self.refuse("this is no GGUF file: it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            self.refuse(f"it is of version {version}; these are read: 2 and 3, little-endian")
        n_tensors, n_entries = self._count("tensors"), self._count("entries of metadata")
        for _ in range(n_entries):
            name = self._text("a name")
            if name in self.metadata:
                self.refuse(f"the metadata name {name!r:.80} twice")
            self.metadata[name] = self._value(self._number("I"))
        infos = [self._info() for _ in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment % 8:
            self.refuse(f"general.alignment must be a multiple of 8, not {alignment!r:.40}")
        data = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in infos:
            if name in self.tensors:
                self.refuse(f"it names the tensor {name!r:.80} twice")
            self.tensors[name] = self._stored(name, shape, kind, data + offset)

    def _take(self, n: int) -> NDArray[np.uint8]:
        """Return the next n bytes."""
        if n > len(self._bytes) - self._at:
            self.refuse("it ends within its header: it is not whole")
        self._at += n
        return self._bytes[self._at - n : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack("<" + form, bytes(self._take(struct.calcsize("<" + form))))[0]

    def _count(self, what: str) -> int:
        found = self._number("Q")
        if found > MOST:
            self.refuse(f"it claims to have {found:,} {what}; {MOST:,} are the most that are read")
        return int(found)

    def _text(self, what: str) -> str:
        n = self._number("Q")
        if n > LARGEST:
            self.refuse(f"it claims that {what} has {n:,} bytes")
        try:
            return bytes(self._take(n)).decode()
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not in UTF-8: {reason(error)}")
            raise

    def _value(self, kind: int) -> Any:
        """Return an entry of the metadata."""
        if kind == TEXT:
            return self._text("a text")
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind != LIST:
            self.refuse(f"the metadata hold a value of type {kind}, which is not known")
        of, n = self._number("I"), self._number("Q")
        if n > LARGEST or (of not in NUMBERS and of != TEXT):
            self.refuse(f"the metadata hold a list of {n:,} values of type {of}")
        if of == TEXT:
            if n > len(self._bytes) - self._at:  # each takes some bytes
                self.refuse("it ends within its header: it is not whole")
            return [self._text("a text") for _ in range(n)]
        form = np.dtype("<" + NUMBERS[of])
        return self._take(n * form.itemsize).view(form)

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return what the header says of a tensor: name, shape, type, and first byte."""
        name, dimensions = self._text("a tensor's name"), self._number("I")
        if dimensions > 4:
            self.refuse(f"the tensor {name!r:.80} claims to have {dimensions} dimensions")
        shape = tuple(int(self._number("Q")) for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), int(self._number("Q"))

    def _stored(self, name: str, shape: tuple[int, ...], kind: int, begin: int) -> Stored:
        """Return where a tensor lies, after a check that it does lie within the file."""
        if kind in TYPES:
            _, of_block, size = TYPES[kind]
            width = shape[-1] if shape else 1
            if width % of_block:
                self.refuse(f"the tensor {name!r:.80} has rows of {width} numbers, no whole blocks")
            n = math.prod(shape) // of_block * size
            if begin + n > len(self._bytes):
                self.refuse(
                    f"the tensor {name!r:.80} of {n:,} bytes would end behind the file, of "
                    f"{len(self._bytes):,}: it is not whole"
                )
        return Stored(kind, shape, begin)


def package() -> Any:
    """Return the package `gguf`, which knows its quantised numbers; it is an extra."""
    return extra("gguf", "quants", "gguf", "this GGUF file", CheckpointError)
