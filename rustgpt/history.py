"""Owns the earlier checkpoints of a folder: each in a folder within it, named by its step."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from rustgpt import file_set
from rustgpt.errors import CheckpointError
from rustgpt.file_set import CONFIG, NEW, OpenFiles, explained

STEP: Final = re.compile(r"step-(\d{8,})")


def keep(folder: Path, step: int) -> None:
    """Keep the checkpoint that is in a folder, whole as it is, in `folder`/step-NNNNNNNN.

    Its files get a second name, which costs no space until the folder's next save replaces the
    first; where a system has no such names they are copied. The caller holds the folder's lock.

    Raises
    ------
    CheckpointError
        If it cannot be kept, or is damaged.
    """
    target = folder / f"step-{step:08d}"
    new = folder / (target.name + NEW)
    with explained(f"the checkpoint of step {step:,} cannot be kept in {target}"):
        for stale in folder.glob(f"step-*{NEW}"):
            shutil.rmtree(stale)
        new.mkdir()
        with OpenFiles.load(folder) as files:
            for name in files.content["files"]:
                _link(Path(files.file(name).name), new / name)
        _link(folder / CONFIG, new / CONFIG)
        file_set.sync(new)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)
        file_set.sync(folder)


def prune(folder: Path, most: int, before: int) -> None:
    """Remove all but the newest earlier checkpoints, and those that are not earlier.

    Parameters
    ----------
    most
        How many to leave.
    before
        The step of the checkpoint in `folder` itself.
    """
    kept = 0
    for step, path in list(earlier(folder)):
        kept += step < before
        if step >= before or kept > most:
            shutil.rmtree(path, ignore_errors=True)


def earlier(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the steps and the folders of the earlier checkpoints, the newest first."""
    found: list[tuple[int, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            match = STEP.fullmatch(path.name)
            if match and (path / CONFIG).exists() and not path.is_symlink():
                found.append((int(match[1]), path))
    yield from sorted(found, reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest earlier checkpoint of which every file is undamaged; None if there is none.

    Parameters
    ----------
    folder
        That of the checkpoints, or one of these.
    """
    for _, path in earlier(folder.parent if STEP.fullmatch(folder.name) else folder):
        with suppress(CheckpointError), OpenFiles.load(path) as files:
            for name in files.content["files"]:
                files.file(name)
            return path
    return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not on this kind of disk
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())
