"""Owns what is found out before any work: whether a model can be saved, and fits into memory."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rustgpt.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from rustgpt.config import ModelConfig

LEFT_BY_A_KILL: Final = ".new"  # how the names of files end that a first save left behind


def check_folder(name: str) -> None:
    """Raise ConfigError unless a model can be saved under this name, as far as can be told now."""
    from rustgpt import checkpoint

    folder = Path(name)
    try:
        # From Python 3.14 on, the questions below take every error of the system for a "no".
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()
        if folder.is_dir() and any(file.suffix != LEFT_BY_A_KILL for file in folder.iterdir()):
            checkpoint.load(folder)
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except CheckpointError as error:
        raise ConfigError(
            f"{name!r} exists and is no sound model: choose another folder with --out ({error})"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot save a model in {name!r}: {error.strerror or error}; choose another folder "
            "with --out"
        ) from None


def check_memory(config: ModelConfig, vocab_size: int) -> None:
    """Raise ConfigError if the parameters and what belongs to each exceed the machine's memory."""
    C, F, V = config.embedding_dim, config.hidden_dim, vocab_size
    block = C * ((4 if config.attention_projection else 3) * C + 2 * F)
    size = config.n_layers * block + C * (config.max_seq_len + V * (2 - config.tie_embeddings))
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
