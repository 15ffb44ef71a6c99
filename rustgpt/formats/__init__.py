"""Owns how a model is opened, whichever program wrote it: by what lies at a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rustgpt import checkpoint
from rustgpt.errors import CheckpointError
from rustgpt.file_set import CONFIG, explained, named
from rustgpt.formats.foreign import OpenModel
from rustgpt.formats.json_file import read_object
from rustgpt.text.tokenizer import BaseTokenizer, load_tokenizer

__all__ = ["HUGGING_FACE", "RUSTGPT", "OpenModel", "kind_of", "open_model", "open_tokenizer"]

RUSTGPT: Final = "rustgpt"
HUGGING_FACE: Final = "hf"
# Files that run code when they are read.
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return which format a model is in, by a first look; CheckpointError if in none known."""
    where = named(path)
    with explained(f"cannot load a model from {where}"):
        if where.is_file():
            raise CheckpointError(_about_file(where))
        return _kind_of_folder(where)


def open_model(path: str | os.PathLike[str]) -> OpenModel:
    """Open a model; close it, or use it in a `with`.

    Parameters
    ----------
    path
        A folder that rustgpt wrote, or one of Hugging Face.

    Raises
    ------
    CheckpointError
        If there is no model, or it is damaged, or one that cannot be expressed here.
    """
    if kind_of(path) == HUGGING_FACE:
        from rustgpt.formats.huggingface import HuggingFaceModel

        return HuggingFaceModel(named(path))
    return checkpoint.load(path)


def open_tokenizer(path: str | os.PathLike[str]) -> BaseTokenizer:
    """Return the tokenizer of a model in any format, or that of a `tokenizer.json`.

    Raises
    ------
    TokenizerError
        If there is none, or it cannot be read.
    """
    where = Path(path)
    if (where / CONFIG).is_file() and kind_of(where) == HUGGING_FACE:
        from rustgpt.formats.hf_config import read_fields
        from rustgpt.formats.hf_tokenizer import read_folder

        fields = read_fields(where)
        return read_folder(where, fields.get(int, "vocab_size", None), fields.values).tokenizer
    return load_tokenizer(where)


def _kind_of_folder(folder: Path) -> str:
    """Tell ours from others' by config.json; where it says nothing, it is for ours to explain."""
    try:
        content = read_object(folder / CONFIG, CheckpointError)
    except CheckpointError:
        return RUSTGPT
    return HUGGING_FACE if "format" not in content and "model_type" in content else RUSTGPT


def _about_file(file: Path) -> str:
    """Say why a file is no model."""
    if file.suffix in PICKLES:
        return (
            f"{file} is a pickle of PyTorch, which can run any code and is not read: convert it to "
            "safetensors where PyTorch is, with model.save_pretrained(FOLDER) of transformers"
        )
    return f"cannot load a model from {file}: it is a file, no folder of a model"
