"""Owns what is on disk: a model as config.json, model.safetensors and tokenizer.json in a folder.

config.json names the other two files by their SHA-256. They are written beside the old ones, as
NAME.new; then config.json is replaced in one step, and from that moment on the folder holds the new
model. Renaming NAME.new to NAME is what is left: a reader takes whichever of the two config.json
means, and the next save finishes what a killed one left undone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.text.tokenizer import WordTokenizer

__all__ = ["Saved", "load", "save"]

FORMAT: Final = "rustgpt"
VERSION: Final = 1
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
PAYLOADS: Final = (WEIGHTS, TOKENIZER)
NEW: Final = ".new"
LARGEST_JSON: Final = 2**26  # bytes
CODES: Final = {"float32": "F32", "float64": "F64"}  # what safetensors calls them


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    tokenizer: str,
) -> None:
    """Write a model; whatever happens meanwhile, the folder holds the old one or the new one.

    Parameters
    ----------
    folder
        Is made where there is none.
    config, tensors, tokenizer
        The fields of a `ModelConfig`; the parameters by name, float32 or float64; JSON.

    Raises
    ------
    CheckpointError
        If it cannot be written, or a parameter is NaN or infinite: `load` would refuse the model.
    """
    folder = Path(folder)
    try:
        with _explained(f"cannot save a model in {folder}"):
            if folder.exists() and not folder.is_dir():
                raise CheckpointError(f"cannot save a model in {folder}: it is a file, no folder")
            folder.mkdir(parents=True, exist_ok=True)
            _settle(folder)
            _write_new(folder, config, tensors, tokenizer)
            _sync(folder)
            os.replace(folder / (CONFIG + NEW), folder / CONFIG)
            _sync(folder)
    except CheckpointError:
        with suppress(OSError, ValueError, MemoryError):
            _settle(folder)
        raise
    with suppress(OSError):  # the model is safe, and loads as it is; the next save tries again
        _rename(folder, PAYLOADS)


def load(folder: str | os.PathLike[str]) -> Saved:
    """Check that the files of a model are undamaged and belong together.

    Raises
    ------
    CheckpointError
        If there is no model, or a file is missing, damaged or from another save.
    """
    with suppress(CheckpointError):
        return _load(Path(folder))
    return _load(Path(folder))  # again: a save may have exchanged the files under the first look


class _File(NamedTuple):
    """A path, and which file it meant when its digest was computed."""

    path: Path
    identity: tuple[int, int, int]

    @classmethod
    def at(cls, path: Path) -> _File:
        found = path.stat()
        return cls(path, (found.st_ino, found.st_size, found.st_mtime_ns))

    def check_same(self) -> None:
        """Raise CheckpointError if the path now means another file than what was opened by it."""
        if _File.at(self.path) != self:
            raise CheckpointError(f"{self.path} was saved to while it was read: load it again")


@dataclass(frozen=True)
class Saved:
    """An undamaged model on disk, as `load` found it; no file is kept open."""

    folder: Path
    content: dict[str, Any]  # of config.json
    tokenizer_json: bytes
    weights: _File

    def model_config(self) -> ModelConfig:
        """Return the configuration, or raise CheckpointError."""
        try:
            return ModelConfig.from_dict(self.content["model"])
        except ConfigError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: {error}") from error

    def tokenizer(self) -> WordTokenizer:
        """Return the tokenizer, or raise CheckpointError."""
        try:
            return WordTokenizer.from_json(self.tokenizer_json.decode())
        except (TokenizerError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.folder / TOKENIZER}: {error}") from error

    def check_shapes(self, expected: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """Compare what is on disk with what a model needs; no parameter is read.

        Parameters
        ----------
        expected
            (shape, dtype) of every parameter, by name.

        Raises
        ------
        CheckpointError
            If a tensor is missing, or of another shape or type, or unknown to the model.
        """
        path = self.weights.path
        with self._open() as file:
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

        Raises
        ------
        CheckpointError
            As `check_shapes`, or if a parameter is NaN or infinite. The arrays may then be filled
            in part.
        """
        self.check_shapes({name: (value.shape, value.dtype) for name, value in tensors.items()})
        with self._open() as file:
            for name, value in tensors.items():
                value[...] = file.get_tensor(name)
                _check_finite(f"{self.weights.path} is damaged", name, value)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open  # here: importing rustgpt stays fast

        path = self.weights.path
        with _explained(f"{path} cannot be read", SafetensorError):
            file: Any = safe_open(path, "np")
            with file:
                self.weights.check_same()
                yield file


def _write_new(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], tokenizer: str
) -> None:
    """Write all three files under their new names."""
    files = {
        WEIGHTS: _write(folder / (WEIGHTS + NEW), _safetensors(tensors)),
        TOKENIZER: _write(folder / (TOKENIZER + NEW), [tokenizer.encode()]),
    }
    content = {"format": FORMAT, "version": VERSION, "model": dict(config), "files": files}
    content["sha256"] = _content_digest(content)
    _write(folder / (CONFIG + NEW), [json.dumps(content, indent=2).encode() + b"\n"])


def _safetensors(tensors: Mapping[str, NDArray[Any]]) -> Iterator[bytes | memoryview]:
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


def _settle(folder: Path) -> None:
    """Rename the new files that config.json means and sweep the others."""
    try:
        files = _read_config(folder)["files"]
    except CheckpointError:  # but not where it merely cannot be read just now
        files = {}
    due = [name for name in PAYLOADS if files.get(name) == _file_digest(folder / (name + NEW))]
    for name in {*PAYLOADS, CONFIG} - set(due):
        (folder / (name + NEW)).unlink(missing_ok=True)
    if due:
        _sync(folder)  # config.json must be on the disk before the old files go
        _rename(folder, due)


def _rename(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        os.replace(folder / (name + NEW), folder / name)
    _sync(folder)


def _sync(folder: Path) -> None:
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


def _load(folder: Path) -> Saved:
    with _explained(f"cannot load a model from {folder}"):
        content = _read_config(folder)
        weights, tokenizer = (_find(folder, name, content["files"][name]) for name in PAYLOADS)
        tokenizer_json = _read_json(tokenizer.path)
        tokenizer.check_same()
        return Saved(folder, content, tokenizer_json, weights)


def _read_config(folder: Path) -> dict[str, Any]:
    """Check config.json, and return what it says, without its own digest."""
    path = folder / CONFIG
    if not _is_file(path):
        raise CheckpointError(
            f"there is no model in {folder} (no {CONFIG}): train one with rustgpt train"
        )
    try:
        content = json.loads(_read_json(path).decode())
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
    if not isinstance(content.get("model"), dict) or not isinstance(files, dict):
        raise CheckpointError(f'{path} must have the objects "model" and "files"')
    if not all(files.get(name) for name in PAYLOADS):
        raise CheckpointError(f'{path}: "files" must name {" and ".join(PAYLOADS)}')
    return content


def _find(folder: Path, name: str, digest: str) -> _File:
    """Return NAME or NAME.new, whichever has this digest."""
    for path in (folder / name, folder / (name + NEW)):
        if _is_file(path):
            file = _File.at(path)
            if _file_digest(path) == digest:
                return file
    if not (folder / name).exists():
        raise CheckpointError(f"{folder / name} is missing")
    raise CheckpointError(f"{folder / name} is damaged or from another save than {CONFIG}")


def _is_file(path: Path) -> bool:
    """Path.is_file, which from Python 3.14 on says "no" where it was not allowed to look."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or "" if there is none."""
    if not _is_file(path):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_json(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} has more than {LARGEST_JSON:,} bytes: it is no model's")
    return path.read_bytes()


def _check_finite(what: str, name: str, value: NDArray[Any]) -> None:
    if not np.isfinite(value).all():
        raise CheckpointError(f"{what}: the tensor {name!r} holds NaN or infinity")


@contextmanager
def _explained(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong with files into a CheckpointError."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, MemoryError, *more)
    try:
        yield
    except kinds as error:
        raise CheckpointError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    reason = str(error) or type(error).__name__
    return reason if reason.isprintable() else ascii(reason)  # it may quote what a file says
