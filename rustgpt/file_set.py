"""Owns a set of files in a folder that are replaced all at once, or not at all.

config.json names the other files by their SHA-256. They are written beside the old ones, as
NAME.new; then config.json is replaced in one step, and from that moment on the folder holds the new
set. Renaming NAME.new to NAME is what is left: a reader takes whichever of the two config.json
means, and the next save finishes what a killed one left undone.

Who saves locks the folder. Who reads need not: a file is never written to once it has its name, so
what was opened stays whole, and only the moment from config.json to the opening of the others must
be looked at again if a save has come between.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, Self

from rustgpt.errors import CheckpointError
from rustgpt.folder_lock import FolderLock

FORMAT: Final = "rustgpt"
VERSION: Final = 1
CONFIG: Final = "config.json"
NEW: Final = ".new"
LARGEST_JSON: Final = 2**26  # bytes
MOST_FILES: Final = 16
NAME: Final = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+")


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[FolderLock]:
    """Have a folder for oneself, or raise CheckpointError: make it, lock it unless that is done."""
    path = named(folder)
    with ExitStack() as held:
        with explained(f"cannot save a model in {path}"):
            if path.exists() and not path.is_dir():
                raise CheckpointError(f"cannot save a model in {path}: it is a file, no folder")
            if not isinstance(folder, FolderLock) or not folder.is_held():
                folder = held.enter_context(FolderLock(path))
        yield folder


def save(
    folder: str | os.PathLike[str],
    fields: Mapping[str, Any],
    files: Mapping[str, Iterable[bytes | memoryview]],
) -> None:
    """Write a set of files, as `checkpoint.save` does.

    `fields` are what else config.json says, `files` the contents of each in parts, by name.
    """
    for name in files:
        _check_name(name, named(folder))
    with locked(folder) as held:
        where = held.folder
        before = ", which still holds the one before" if (where / CONFIG).exists() else ""
        try:
            with explained(f"cannot save a model in {where}{before}"):
                where.mkdir(parents=True, exist_ok=True)
                old = _settle(where, files)
                digests = {name: _write(where / (name + NEW), files[name]) for name in files}
                content = {"format": FORMAT, "version": VERSION, **fields, "files": digests}
                content["sha256"] = _content_digest(content)
                _write(where / (CONFIG + NEW), [json.dumps(content, indent=2).encode() + b"\n"])
                sync(where)
                os.replace(where / (CONFIG + NEW), where / CONFIG)
            with explained(
                f"the new model is in {where} and can be loaded, but the system does not confirm "
                "that it would outlast a power cut; check the disk and save again"
            ):
                sync(where)
        except CheckpointError:
            with suppress(OSError, ValueError, MemoryError):
                _settle(where, files)
            raise
        with suppress(OSError):  # the model is safe, and loads as it is; the next save tries again
            _rename(where, files)
            for name in old - set(files):  # of which config.json speaks no more
                (where / name).unlink(missing_ok=True)


def _check_name(name: object, where: Path) -> None:
    """Raise CheckpointError unless a file may have this name: it stays within its folder."""
    right = isinstance(name, str) and NAME.fullmatch(name) and not name.endswith(NEW)
    if not right or name == CONFIG:
        raise CheckpointError(f"{where}: {name!r:.60} cannot be the name of a file in a model")


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write a file through to the disk; return its SHA-256."""
    sha256 = hashlib.sha256()
    with open(path, "xb") as file:
        for part in parts:
            file.write(part)
            sha256.update(part)
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def _settle(folder: Path, names: Iterable[str]) -> set[str]:
    """Rename the new files that config.json means and sweep the others; return what it names.

    `names` are those of files that are about to be written.
    """
    try:
        files = _read_config(folder)["files"]
    except CheckpointError:  # but not where it merely cannot be read just now
        files = {}
    due = [name for name in files if files[name] == _file_digest(folder / (name + NEW))]
    for name in {*files, *names, CONFIG} - set(due):
        (folder / (name + NEW)).unlink(missing_ok=True)
    if due:
        sync(folder)  # config.json must be on the disk before the old files go
        _rename(folder, due)
    return set(files)


def _rename(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        os.replace(folder / (name + NEW), folder / name)
    sync(folder)


def sync(folder: Path) -> None:
    """Write the names in a folder through to the disk."""
    if os.name == "nt":  # there is no way to
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives cannot
            raise
    finally:
        os.close(descriptor)


class OpenFiles(ExitStack):
    """A set of files as `load` found it: close it, or use it in a `with`.

    The files stay open, so that no save can take them away before they are read.

    Attributes
    ----------
    folder, content
        Where they are, and what config.json says.
    """

    def __init__(self, folder: Path, needed: Iterable[str], optional: Iterable[str] = ()) -> None:
        super().__init__()
        self.folder = folder
        self._found: dict[str, BufferedReader] = {}
        with explained(f"cannot load a model from {folder}"), ExitStack() as opened:
            self.content = _read_config(folder)
            # By name, NAME.new and NAME, as far as they are there. The new ones are opened first:
            # a file that is not there has just been given its old name.
            self._candidates = {
                name: [
                    opened.enter_context(file)
                    for path in (folder / (name + NEW), folder / name)
                    if (file := _opened(path)) is not None
                ]
                for name in self.content["files"]
            }
            for name in [*needed, *(name for name in optional if name in self)]:
                self.file(name)
            self.enter_context(opened.pop_all())

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        needed: Iterable[str] = (),
        optional: Iterable[str] = (),
    ) -> Self:
        """Open a set of files, or raise CheckpointError.

        Those that are `needed` must be there, undamaged, those that are `optional` undamaged if
        they are there; the others are checked when they are asked for.
        """
        path = named(folder)
        while True:
            version = _version(path)
            try:
                return cls(path, needed, optional)
            except CheckpointError:
                if _version(path) == version:  # otherwise a save has come between
                    raise

    def __contains__(self, name: str) -> bool:
        return name in self.content["files"]

    def file(self, name: str) -> BufferedReader:
        """Return an open file at its beginning; CheckpointError if it is missing or damaged."""
        if name not in self._found:
            with explained(f"cannot load a model from {self.folder}"):
                self._found[name] = self._choose(name)
        self._found[name].seek(0)
        return self._found[name]

    def _choose(self, name: str) -> BufferedReader:
        """Return whichever of NAME.new and NAME config.json means."""
        path = self.folder / name
        if name not in self:
            raise CheckpointError(f'{self.folder / CONFIG}: "files" must name {name}')
        for file in reversed(self._candidates[name]):
            if _digest(file) == self.content["files"][name]:
                return file
        if not path.exists():
            raise CheckpointError(f"{path} is missing")
        raise CheckpointError(f"{path} is damaged or from another save than {CONFIG}")


def named(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder, or raise CheckpointError if it has no name."""
    name = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    if not isinstance(name, str):
        raise CheckpointError(f"a folder must be named by text, not by {type(folder).__name__}")
    if not name.strip():
        raise CheckpointError("a folder must have a name; the one you are in is called '.'")
    return Path(name)


def _version(folder: Path) -> object:
    """Return what changes with every save; None where it cannot be told."""
    with suppress(OSError, ValueError):
        found = (folder / CONFIG).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    """Check config.json, and return what it says, without its own digest."""
    path = folder / CONFIG
    file = _opened(path)
    if file is None:
        raise CheckpointError(
            f"there is no model in {folder} (no {CONFIG}): train one with rustgpt train"
        )
    with file:
        text = read_json(file, path)
    try:
        content = json.loads(text.decode())
        stated = content.pop("sha256", None) if isinstance(content, dict) else None
        actual = _content_digest(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f'{path} is not of rustgpt: it lacks "format": "{FORMAT}"')
    version, files = content.get("version"), content.get("files")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{path} is of a newer rustgpt, format {version!s:.9}: upgrade rustgpt"
        )
    if version != VERSION or stated != actual:
        raise CheckpointError(f"{path} is damaged or was edited: its SHA-256 is another")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise CheckpointError(f'{path} must have an object "files" of at most {MOST_FILES}')
    for name in files:
        _check_name(name, path)
    return content


def _opened(path: Path) -> BufferedReader | None:
    """Open a file; None if there is none.

    Path.is_file would from Python 3.14 on say "no" where it was not allowed to look.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # also one that goes just now
        return open(path, "rb") if stat.S_ISREG(path.stat().st_mode) else None
    return None


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if there is none."""
    with _opened(path) or nullcontext() as file:
        return _digest(file) if file else ""


def _digest(file: BufferedReader) -> str:
    """Return the SHA-256 of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_json(file: BufferedReader, path: Path) -> bytes:
    if os.fstat(file.fileno()).st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} has more than {LARGEST_JSON:,} bytes: it is no model's")
    file.seek(0)
    return file.read()


@contextmanager
def explained(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong with files into a CheckpointError."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, MemoryError, *more)
    try:
        yield
    except kinds as error:
        raise CheckpointError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    said = str(error) or type(error).__name__
    return said if said.isprintable() else ascii(said)  # it may quote what a file says
