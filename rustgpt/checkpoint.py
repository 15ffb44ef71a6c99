"""Owns what is on disk: a model as config.json, model.safetensors and tokenizer.json in a folder.

Other files, such as a training's state, may lie beside them. All are exchanged at once, as
`rustgpt/file_set.py` tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt import file_set
from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.file_set import CONFIG, LARGEST_JSON, explained, locked, read_json, reason
from rustgpt.text.tokenizer import Tokenizer, read_tokenizer

__all__ = ["Saved", "is_model", "load", "locked", "save"]

WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
PAYLOADS: Final = (WEIGHTS, TOKENIZER)
CODES: Final = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}  # safetensors'
CHECKED_AT_ONCE: Final = 1 << 20  # numbers


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    tokenizer: str,
    more: Mapping[str, Iterable[bytes | memoryview]] | None = None,
) -> None:
    """Write a model; whatever happens meanwhile, the folder holds the old one or the new one.

    Parameters
    ----------
    folder
        Is made where there is none. It is locked meanwhile, unless it is a `FolderLock` that the
        caller has entered.
    config, tensors, tokenizer
        The fields of a `ModelConfig`; the parameters by name, float32 or float64; JSON.
    more
        The contents of other files, in parts, by name; without, none lies beside the model.

    Raises
    ------
    CheckpointError
        If it cannot be written, another process keeps the folder, or a parameter is NaN or
        infinite: `load` would refuse the model. The message says which model is on disk.
    """
    if len(tokenizer.encode()) > LARGEST_JSON:
        raise CheckpointError(
            f"cannot save a model in {os.fspath(folder)}: its tokenizer has more than "
            f"{LARGEST_JSON:,} bytes"
        )
    files: dict[str, Iterable[bytes | memoryview]] = {WEIGHTS: safetensors(tensors)}
    files |= {TOKENIZER: [tokenizer.encode()], **(more or {})}
    file_set.save(folder, {"model": dict(config)}, files)


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Tell whether there is a model in a folder, sound or not."""
    return (Path(folder) / CONFIG).exists()


def load(folder: str | os.PathLike[str], beside: Iterable[str] = ()) -> Saved:
    """Open a model, and check that its files are undamaged and belong together.

    Parameters
    ----------
    beside
        Names of other files, to be checked too if they lie beside the model.

    Raises
    ------
    CheckpointError
        If there is no model, or a file is missing, damaged or from another save.
    """
    return Saved.load(folder, PAYLOADS, beside)


class Saved(file_set.OpenFiles):
    """An undamaged model on disk, as `load` found it: close it, or use it in a `with`."""

    def model_config(self) -> ModelConfig:
        """Return the configuration, or raise CheckpointError."""
        fields = self.content.get("model")
        if not isinstance(fields, dict):
            raise CheckpointError(f'{self.folder / CONFIG} must have an object "model"')
        try:
            # Of a model that was saved before there was this setting, texts begin with a word.
            return ModelConfig.from_dict({"add_bos_token": False, **fields})
        except ConfigError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: {error}") from error

    def tokenizer(self, kind: type[Any] | None = None) -> Tokenizer:
        """Return the tokenizer, as `kind.from_json` reads it, or raise CheckpointError."""
        path = self.folder / TOKENIZER
        with explained(f"cannot load a model from {self.folder}"):
            text = read_json(self.file(TOKENIZER), path)
        if kind is None:
            try:
                return read_tokenizer(text.decode())
            except (TokenizerError, UnicodeError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from error
        try:
            found: Tokenizer = kind.from_json(text.decode())
        except Exception as error:  # whatever somebody else's code raises
            name = getattr(kind, "__name__", type(kind).__name__)
            raise CheckpointError(
                f"{path} cannot be read by {name}.from_json: {reason(error)}"
            ) from error
        return found

    def check_shapes(self, expected: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """Raise CheckpointError if a tensor is missing, unknown or of another shape or type.

        No parameter is read; `expected` has the (shape, dtype) of each by name.
        """
        path = self.folder / WEIGHTS
        with self._tensors(WEIGHTS) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: f"{s.get_dtype()} {tuple(s.get_shape())}" for n, s in slices.items()}
        for name, (shape, dtype) in expected.items():
            needed = f"{CODES[np.dtype(dtype).name]} {tuple(shape)}"
            if name not in found:
                raise CheckpointError(f"{path} lacks the tensor {name!r}, {needed}")
            if found[name] != needed:
                raise CheckpointError(
                    f"{path}: the tensor {name!r} must be {needed}, but is {found[name]:.80}"
                )
        for name in sorted(found.keys() - expected.keys()):
            raise CheckpointError(
                f"{path}: the model has no tensor {name!r:.80}, which is {found[name]:.80}"
            )

    def read_into(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Copy the parameters into the model's arrays, by name, one at a time.

        CheckpointError as `check_shapes`, or if one is NaN or infinite: the arrays may then be
        filled in part.
        """
        self.check_shapes({name: (value.shape, value.dtype) for name, value in tensors.items()})
        with self._tensors(WEIGHTS) as file:
            for name, value in tensors.items():
                value[...] = file.get_tensor(name)
                _check_finite(f"{self.folder / WEIGHTS} is damaged", name, value)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a safetensors file beside the model, or raise CheckpointError."""
        with self._tensors(name) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    @contextmanager
    def _tensors(self, name: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open  # here: importing rustgpt stays fast

        path = self.folder / name
        # Whatever has become of the name, this means the file that is open.
        file = self.file(name)
        opened = f"/dev/fd/{file.fileno()}"
        found = opened if os.path.exists(opened) else file.name
        with explained(f"{path} cannot be read", SafetensorError), safe_open(found, "np") as read:
            yield read


def safetensors(tensors: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in parts: the header and its length, then each tensor.

    The library's `save` holds two more copies of the model in memory; its `save_file` writes under
    a random name first, which a kill would leave behind.
    """
    header, end = {}, 0
    for name, value in tensors.items():
        _check_finite("the model was not saved", name, value)
        begin, end = end, end + value.nbytes
        code = CODES[value.dtype.name]
        header[name] = {"dtype": code, "shape": value.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of their size
    yield len(text).to_bytes(8, "little") + text
    for value in tensors.values():
        yield np.ravel(value).astype(value.dtype.newbyteorder("<"), copy=False).data


def _check_finite(what: str, name: str, value: NDArray[Any]) -> None:
    flat = np.ravel(value)
    for first in range(0, flat.size, CHECKED_AT_ONCE):  # which takes a byte for each number
        if not np.isfinite(flat[first : first + CHECKED_AT_ONCE]).all():
            raise CheckpointError(f"{what}: the tensor {name!r} holds NaN or infinity")
