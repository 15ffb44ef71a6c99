"""Owns who may write into a folder: one process at a time, by the system's own file lock."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
import weakref
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

from rustgpt.errors import CheckpointError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE: Final = ".lock"
PATIENCE: Final = 10.0  # seconds that a save waits for another one
LOOK_EVERY: Final = 0.005  # seconds
LONGEST_NOTE: Final = 200  # bytes
# What is written to the file goes into no other that a link may name.
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)


class FolderLock(os.PathLike[str]):
    """Keeps other processes and threads from saving into a folder, while it is entered.

    It stands for the folder wherever a path is taken: `model.save(lock)`. The system releases the
    lock when its owner ends, however it ends. The file `.lock`, which says who the owner is, is
    not the lock: one that a killed process has left behind keeps nobody out.

    Parameters
    ----------
    folder
        Is made where there is none, and removed at the end if nothing has come into it.
    patience
        Seconds to wait for another owner.

    Raises
    ------
    CheckpointError
        On entering, if another owner keeps the folder for longer than that.
    OSError
        On entering, if the folder or the file in it cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], patience: float = PATIENCE) -> None:
        self.folder = Path(folder)
        self._path = self.folder / LOCK_FILE
        self.patience = patience
        self._file = -1  # descriptor
        self._held = False
        self._made: list[Path] = []  # the deepest first

    def __fspath__(self) -> str:
        return str(self.folder)

    def __enter__(self) -> FolderLock:
        _entered.add(self)
        try:
            self._acquire()
            self._sign()
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_held(self) -> bool:
        """Tell whether the folder is this owner's now: it may have been removed meanwhile."""
        return self._held and self._is_at_its_path()

    def _acquire(self) -> None:
        until = time.monotonic() + self.patience
        while True:
            gone: FileNotFoundError | None = None
            try:
                self._make_folder()
                self._file = self._open()
                self._held = _lock(self._file) and self._is_at_its_path()
                if self._held:
                    return
            except FileNotFoundError as error:  # another owner may just have removed the folder
                gone = error
            if time.monotonic() >= until:
                raise gone or CheckpointError(
                    f"{self.folder} is in use by {_read_note(self._file)}: wait until it ends, or "
                    "choose another folder"
                )
            self._close()
            time.sleep(LOOK_EVERY)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        except PermissionError:
            if not self._path.exists():
                raise
            return os.open(self._path, os.O_RDONLY | NO_LINK)  # another user's: it can be locked

    def _make_folder(self) -> None:
        folders = (self.folder, *self.folder.parents)
        missing = [*takewhile(lambda place: not place.exists(), folders)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing or self._made

    def _is_at_its_path(self) -> bool:
        """Whether the file that is locked is still the one that others find."""
        opened = os.fstat(self._file)
        with suppress(FileNotFoundError):
            found = os.lstat(self._path)
            return stat.S_ISREG(found.st_mode) and os.path.samestat(opened, found)
        return False

    def _sign(self) -> None:
        """Say who the owner is; that the lock holds does not depend on it."""
        text = (
            f"process {os.getpid()} on {socket.gethostname()}, since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        with suppress(OSError):
            os.ftruncate(self._file, 0)
            os.write(self._file, text.encode("utf-8", "replace")[:LONGEST_NOTE])

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):  # Windows removes no open file
                if self.is_held():
                    self._path.unlink()
            with suppress(OSError):  # one that is not empty stays
                for place in self._made:
                    place.rmdir()
            self._made = []
        finally:
            self._close()

    def _close(self) -> None:
        file, self._file, self._held = self._file, -1, False
        if file >= 0:
            os.close(file)  # which also gives up the lock


def _lock(file: int) -> bool:
    """Lock a file, unless another owner has."""
    try:
        if sys.platform == "win32":
            os.lseek(file, 2**30, os.SEEK_SET)  # past the note, which others read
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _read_note(file: int) -> str:
    """Return who has the lock, as far as is known."""
    note = ""
    with suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        note = os.read(file, LONGEST_NOTE).decode("utf-8", "replace")
    if f"process {os.getpid()} on {socket.gethostname()}," in note:
        return "this process"
    return note if note and note.isprintable() else "another process"


_entered: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Close the parent's files: otherwise its locks would hold as long as the child lives."""
    for lock in list(_entered):
        lock._close()
        lock._made = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
