"""Owns how a model is opened, whichever program wrote it: by what lies at a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from rustgpt import checkpoint
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.file_set import CONFIG, explained, named
from rustgpt.formats.foreign import OpenModel
from rustgpt.formats.json_file import read_object
from rustgpt.generation.text_generator import TextGenerator
from rustgpt.layers.gpt import check_standard
from rustgpt.text.tokenizer import BaseTokenizer, load_tokenizer

__all__ = [
    "DTYPES",
    "GGUF",
    "HUGGING_FACE",
    "RUSTGPT",
    "WRITERS",
    "OpenModel",
    "export",
    "kind_of",
    "open_model",
    "open_tokenizer",
]

RUSTGPT: Final = "rustgpt"
HUGGING_FACE: Final = "hf"
GGUF: Final = "gguf"
WRITERS: Final = (HUGGING_FACE, GGUF)  # the formats that can be written beside our own
DTYPES: Final = ("float32", "float16", "bfloat16", "float64")
# Files that run code when they are read.
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return which format a model is in, by a first look; CheckpointError if in none known."""
    where = named(path)
    with explained(f"cannot load a model from {where}"):
        if where.is_file():
            if where.suffix.lower() == ".gguf":
                return GGUF
            raise CheckpointError(_about_file(where))
        return _kind_of_folder(where)


def open_model(path: str | os.PathLike[str]) -> OpenModel:
    """Open a model; close it, or use it in a `with`.

    Parameters
    ----------
    path
        A folder that rustgpt wrote, or one of Hugging Face, or a GGUF file.

    Raises
    ------
    CheckpointError
        If there is no model, or it is damaged, or one that cannot be expressed here.
    """
    kind = kind_of(path)
    if kind == HUGGING_FACE:
        from rustgpt.formats.huggingface import HuggingFaceModel

        return HuggingFaceModel(named(path))
    if kind == GGUF:
        from rustgpt.formats.gguf_model import GgufModel

        return GgufModel(named(path))
    return checkpoint.load(path)


def open_tokenizer(path: str | os.PathLike[str]) -> BaseTokenizer:
    """Return the tokenizer of a model in any format, or that of a `tokenizer.json`.

    Raises
    ------
    TokenizerError
        If there is none, or it cannot be read.
    """
    where = Path(path)
    if where.is_file() and where.suffix.lower() == ".gguf":
        from rustgpt.formats.gguf_file import GgufFile
        from rustgpt.formats.gguf_tokenizer import read_tokenizer

        return read_tokenizer(GgufFile(where)).tokenizer
    if (where / CONFIG).is_file() and kind_of(where) == HUGGING_FACE:
        from rustgpt.formats.hf_config import read_fields
        from rustgpt.formats.hf_tokenizer import read_folder

        fields = read_fields(where)
        size = fields.get(int, "vocab_size", None)
        return read_folder(where, size, fields.values).tokenizer
    return load_tokenizer(where)


def export(
    model: TextGenerator,
    path: str | os.PathLike[str],
    format: str = HUGGING_FACE,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model with its tokenizer for other programs.

    Parameters
    ----------
    model
        A model whose layers are as rustgpt builds them.
    path
        The folder, or the file of a GGUF.
    format
        "hf", which the package transformers opens as it is, or "gguf", which llama.cpp does.
    dtype
        Of the numbers on disk: "float32", "float16", "bfloat16", or in a GGUF also "q8_0", bytes
        with a scale for each 32 of them; by default the model's own.
    overwrite
        Whether a model of this format that is there is replaced.

    Raises
    ------
    ConfigError
        If there is no such format or dtype.
    CheckpointError
        If the model cannot be expressed in this format; the message says which of its settings
        is in the way. Or if it cannot be written there, or something else is there.
    TokenizerError
        If the tokenizer cannot be expressed.
    """
    if format not in WRITERS:
        raise ConfigError(f"the format must be one of {', '.join(WRITERS)}, got {format!r:.60}")
    dtype = model.config.dtype if dtype is None else dtype
    if format == GGUF:
        from rustgpt.formats.gguf_export import export as write
    else:
        from rustgpt.formats.hf_export import export as write

        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r:.60}")
        where = named(path)
        if (where / CONFIG).is_file() and _kind_of_folder(where) != format:
            raise CheckpointError(f"{where} holds a model of another format: choose another folder")
    check_standard(model.layers, model.config, model.tokenizer.vocab_size)
    with model.weights_lock.alone:  # a training changes them between two steps only
        write(path, model, dtype, overwrite)


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
    return f"cannot load a model from {file}: it is neither a model's folder nor a GGUF file"
