"""Owns what is found out before any work: whether a model can be saved, and fits into memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.folder_lock import FolderLock

if TYPE_CHECKING:
    from rustgpt.config import ModelConfig

LEFT_BY_A_KILL: Final = ".new"  # how the names of files end that a first save left behind
SHORT_WAIT: Final = 1.0  # seconds for which a training waits for its folder
OF_THE_SYSTEM: Final = ("Thumbs.db", "desktop.ini")  # what Windows puts into a folder unasked


@contextmanager
def explained_folder(name: str) -> Iterator[None]:
    """Turn what the system says against a folder into ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot save a model in {name!r}: {error.strerror or error}; choose another folder "
            "with --out"
        ) from None


@contextmanager
def own_folder(name: str, overwrite: bool | None) -> Iterator[FolderLock]:
    """Lock the folder for a model; ConfigError if it cannot be made, or as `check_folder`.

    What is in it is not looked at where `overwrite` is None.
    """
    folder = Path(name)
    lock = FolderLock(folder, SHORT_WAIT)
    with ExitStack() as held:
        with explained_folder(name):
            if folder.is_symlink() and not folder.exists():
                raise ConfigError(
                    f"{name!r} is a link to {os.readlink(folder)!r}, which is not there: mend the "
                    "link or choose another folder with --out"
                )
            held.enter_context(lock)
        if overwrite is not None:
            check_folder(name, overwrite)
        yield lock


def check_folder(name: str, overwrite: bool) -> None:
    """Raise ConfigError unless a model may be saved in a folder, or may `overwrite` its model."""
    from rustgpt import checkpoint

    with explained_folder(name):
        files = [file.name for file in Path(name).iterdir() if file.name not in OF_THE_SYSTEM]
        if all(file.startswith(".") or file.endswith(LEFT_BY_A_KILL) for file in files):
            return
        with tempfile.TemporaryFile(dir=name):
            pass
    try:
        checkpoint.load(name).close()
    except CheckpointError as error:
        raise ConfigError(
            f"{name!r} exists and is no sound model: choose another folder with --out ({error})"
        ) from None
    if not overwrite:
        raise ConfigError(
            f"{name!r} holds a model already: train into another folder with --out, or give "
            "--overwrite to replace it"
        )


def check_space(name: str, needed: int) -> None:
    """Raise ConfigError if a folder's disk has no room for so many bytes."""
    try:
        free = shutil.disk_usage(name).free
    except OSError:  # a system that does not tell
        return
    if free < needed:
        raise ConfigError(
            f"the model takes {needed / 2**20:,.1f} MiB, and where {name!r} is, "
            f"{free / 2**20:,.1f} MiB are free: make room or choose another folder with --out"
        )


def check_memory(config: ModelConfig, vocab_size: int) -> None:
    """Raise ConfigError if the parameters and what belongs to each exceed the machine's memory."""
    from rustgpt.layers.transformer import block_spec

    rows = config.max_seq_len + vocab_size * (2 - config.tie_embeddings)  # of all tables
    size = config.n_layers * block_spec(config).size + config.embedding_dim * rows
    if not hasattr(os, "sysconf"):  # Windows
        return
    # Parameters, gradients, and two moments.
    needed = size * 4 * (8 if config.dtype == "float64" else 4)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"a model of {size:,} parameters needs {needed / 2**30:,.1f} GiB to be trained, and "
            f"this machine has {there / 2**30:,.1f} GiB: choose smaller sizes"
        )
