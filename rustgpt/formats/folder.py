"""Owns writing a folder of files all at once: it is there whole, or as it was before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rustgpt.errors import CheckpointError
from rustgpt.file_set import explained, named, sync

Parts = Iterable[bytes | memoryview]


def write_folder(
    path: str | os.PathLike[str],
    files: Mapping[str, Parts],
    known: Collection[str],
    overwrite: bool = False,
) -> None:
    """Write files into a folder that takes its name when all are on the disk.

    Parameters
    ----------
    path
        Of the folder.
    files
        The contents of each, in parts, by name.
    known
        Names of files that may be replaced, in a folder in which there is nothing else.
    overwrite
        Whether they may.

    Raises
    ------
    CheckpointError
        If it cannot be written, or something else lies there; the folder is as it was.
    """
    folder = named(path)
    with explained(f"cannot write {folder}"):
        _check_free(folder, known, overwrite)
        folder = folder.resolve()  # of a link, what it names
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        try:
            for name, parts in files.items():
                with open(unfinished / name, "xb") as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
            sync(unfinished)
            _exchange(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            sync(folder.parent)


def _check_free(folder: Path, known: Collection[str], overwrite: bool) -> None:
    """Raise CheckpointError if a folder holds what may not be replaced."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name a folder")
    there = sorted(file.name for file in folder.iterdir()) if folder.exists() else []
    others = [name for name in there if name not in known or not (folder / name).is_file()]
    if others:
        raise CheckpointError(
            f"{folder} holds something else, such as {others[0]!r}: choose another folder"
        )
    if there and not overwrite:
        raise CheckpointError(
            f"{folder} holds a model already: choose another folder, or give --overwrite to "
            "replace it"
        )


def _exchange(new: Path, folder: Path) -> None:
    """Give a folder the name of another one, which goes."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = new.with_suffix(".old")
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
