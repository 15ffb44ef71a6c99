"""Owns the token cache's files: texts as token ids, written once and mapped into memory."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import DataError
from rustgpt.text.rows import Edges, FlatPart, Rows

ARRAYS: Final = {"ids": "", "edges": "int64", "counted": "bool"}  # of a cache, by their types


def write_tokens(path: Path, parts: Iterable[FlatPart], vocab_size: int, masked: bool) -> None:
    """Write texts as token ids into files that begin with `path`.

    The last of them, which says that the others are whole, comes into its place in one step.

    Parameters
    ----------
    vocab_size
        Ids are below it.
    masked
        Whether not all predictions may count.
    """
    dtype = "uint16" if vocab_size <= 2**16 else "int32"
    try:
        sizes = _write_arrays(path, parts, dtype, masked)
        with replacing(_manifest(path)) as file:
            file.write(json.dumps({"dtype": dtype, "sizes": sizes}).encode())
    except BaseException:
        for kind in ARRAYS:
            with suppress(OSError):
                _array(path, kind).unlink()
        raise


def _write_arrays(
    path: Path, parts: Iterable[FlatPart], dtype: str, masked: bool
) -> dict[str, int]:
    """Write the arrays; return how many numbers each has."""
    kinds = [kind for kind in ARRAYS if masked or kind != "counted"]
    sizes = dict.fromkeys(kinds, 0)
    with ExitStack() as stack:
        files = {kind: stack.enter_context(_array(path, kind).open("wb")) for kind in kinds}
        for part in parts:
            arrays = {"ids": part.ids.astype(dtype), "edges": part.edges}
            if masked:
                arrays["counted"] = part.mask()
            for kind, array in arrays.items():
                files[kind].write(array.tobytes())
                sizes[kind] += array.size
        for file in files.values():
            to_disk(file)
    return sizes


def read_tokens(path: Path) -> Rows | None:
    """Return what was written, mapped into memory; None if it is not there or not whole."""
    try:
        content = json.loads(_manifest(path).read_bytes())
        types = {**ARRAYS, "ids": content["dtype"]}
        arrays = {
            kind: _mapped(_array(path, kind), types[kind], size)
            for kind, size in content["sizes"].items()
        }
        edges = arrays["edges"].reshape(-1, 2)
        return Rows(arrays["ids"], edges, arrays.get("counted"), _Keeper(path.parent))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sweep(folder: Path) -> None:
    """Remove what killed processes have left behind; nobody may be writing."""
    for kind in (*ARRAYS, "new"):
        for file in folder.glob(f"*.{kind}"):
            if kind == "new" or not _manifest(file.with_suffix("")).is_file():
                with suppress(OSError):
                    file.unlink()


def _mapped(file: Path, dtype: str, size: int) -> NDArray[Any]:
    if file.stat().st_size != size * np.dtype(dtype).itemsize:
        raise ValueError(f"{file} is not as long as it was")
    return np.memmap(file, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)


class _Keeper:
    """Keeps edges of rows in a file that is gone with whoever uses it.

    Parameters
    ----------
    folder
        On the disk of the cache: the system's folder for temporary files may be in memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, parts: Iterator[Edges]) -> Edges:
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                size = sum(file.write(part.tobytes()) for part in parts)
                if not size:
                    return np.empty((0, 2), np.int64)
                file.flush()
                edges: Edges = np.memmap(file, np.int64, "r", shape=(size // 16, 2))
                return edges
        except OSError as error:
            raise cannot_write(self._folder, error) from None


def _array(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is whole and on disk."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        yield file
        to_disk(file)
    os.replace(new, path)


def cannot_write(folder: Path, error: Exception) -> DataError:
    """Return the error that a folder of the cache cannot be written."""
    why = error.strerror if isinstance(error, OSError) else None
    return DataError(
        f"cannot write the token cache in {str(folder)!r}: {why or error}; choose another folder "
        "with --cache (in Python, Dataset.load(cache=...))"
    )


def to_disk(file: BinaryIO) -> None:
    """Have all that was written on disk."""
    file.flush()
    os.fsync(file.fileno())
