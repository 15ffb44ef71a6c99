"""Owns writing a folder of files all at once: it is there whole, or as it was before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from rustgpt.errors import CheckpointError
from rustgpt.file_set import explained, named, sync
from rustgpt.folder_lock import FolderLock

BESIDE: Final = ".export"  # how the folder ends, beside the new one, in which it is written
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
    given = named(path)
    with explained(f"cannot write {given}"):
        folder = given.resolve()  # of a link, what it names
        with FolderLock(folder.with_name(f".{folder.name}{BESIDE}")) as lock:
            new, old = lock.folder / "new", lock.folder / "old"
            if old.exists() and not folder.exists():  # a process was killed in between
                os.rename(old, folder)
            try:
                _check_free(given, known, overwrite)
                _write(new, files)
                _exchange(new, folder, old)
            finally:
                for rest in (new, old):
                    shutil.rmtree(rest, ignore_errors=True)
        with suppress(OSError):  # one that a killed process has made
            lock.folder.rmdir()


def _write(folder: Path, files: Mapping[str, Parts]) -> None:
    """Write files through to the disk, into a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    for name, parts in files.items():
        with open(folder / name, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    sync(folder)


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


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Give a folder the name of another one, which goes."""
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    with suppress(OSError):
        sync(folder.parent)
