"""Owns what is on disk: a model as config.json, model.safetensors and tokenizer.json in a folder.

config.json names the other two files by their SHA-256. They are written beside the old ones, as
NAME.new; then config.json is replaced in one step, and from that moment on the folder holds the new
model. Renaming NAME.new to NAME is what is left: a reader takes whichever of the two config.json
means, and the next save finishes what a killed one left undone.

Who saves locks the folder. Who reads need not: a file is never written to once it has its name, so
what was opened stays whole, and only the moment from config.json to the opening of the other two
must be looked at again if a save has come between.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.folder_lock import FolderLock
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.text.vocab import FORMAT as TOKENIZER_FORMAT

__all__ = ["Saved", "is_model", "load", "locked", "save"]

FORMAT: Final = "rustgpt"
VERSION: Final = 1
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
PAYLOADS: Final = (WEIGHTS, TOKENIZER)
NEW: Final = ".new"
LARGEST_JSON: Final = 2**26  # bytes
CODES: Final = {"float32": "F32", "float64": "F64"}  # what safetensors calls them


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[FolderLock]:
    """Have a folder for oneself: make it where there is none, and lock it unless that is done.

    Raises
    ------
    CheckpointError
        If it has no name, cannot be made, or another process keeps it.
    """
    path = _named(folder)
    with ExitStack() as held:
        with _explained(f"cannot save a model in {path}"):
            if path.exists() and not path.is_dir():
                raise CheckpointError(f"cannot save a model in {path}: it is a file, no folder")
            if not isinstance(folder, FolderLock) or not folder.is_held():
                folder = held.enter_context(FolderLock(path))
        yield folder


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
        Is made where there is none. It is locked meanwhile, unless it is a `FolderLock` that the
        caller has entered.
    config, tensors, tokenizer
        The fields of a `ModelConfig`; the parameters by name, float32 or float64; JSON.

    Raises
    ------
    CheckpointError
        If it cannot be written, another process keeps the folder, or a parameter is NaN or
        infinite: `load` would refuse the model. The message says which model is on disk.
    """
    with locked(folder) as held:
        _save(held.folder, config, tensors, tokenizer)


def _save(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], tokenizer: str
) -> None:
    """Write a model into a folder that is locked."""
    before = ", which still holds the one before" if is_model(folder) else ""
    try:
        with _explained(f"cannot save a model in {folder}{before}"):
            folder.mkdir(parents=True, exist_ok=True)
            _settle(folder)
            _write_new(folder, config, tensors, tokenizer)
            _sync(folder)
            os.replace(folder / (CONFIG + NEW), folder / CONFIG)
        with _explained(
            f"the new model is in {folder} and can be loaded, but the system does not confirm that "
            "it would outlast a power cut; check the disk and save again"
        ):
            _sync(folder)
    except CheckpointError:
        with suppress(OSError, ValueError, MemoryError):
            _settle(folder)
        raise
    with suppress(OSError):  # the model is safe, and loads as it is; the next save tries again
        _rename(folder, PAYLOADS)


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Tell whether there is a model in a folder, sound or not."""
    return (Path(folder) / CONFIG).exists()


def load(folder: str | os.PathLike[str]) -> Saved:
    """Open a model, and check that its files are undamaged and belong together.

    Raises
    ------
    CheckpointError
        If there is no model, or a file is missing, damaged or from another save.
    """
    path = _named(folder)
    while True:
        version = _version(path)
        try:
            return _open(path)
        except CheckpointError:
            if _version(path) == version:  # otherwise a save has come between
                raise


def _named(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder, or raise CheckpointError if it has no name."""
    try:
        name = os.fspath(folder)
    except TypeError:
        name = None
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


@dataclass(frozen=True)
class Saved:
    """An undamaged model on disk, as `load` found it: close it, or use it in a `with`.

    Its files stay open, so that no save can take them away before they are read.
    """

    folder: Path
    content: dict[str, Any]  # of config.json
    tokenizer_json: bytes
    weights: BufferedReader

    def __enter__(self) -> Saved:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self.weights.close()

    def model_config(self) -> ModelConfig:
        """Return the configuration, or raise CheckpointError."""
        try:
            return ModelConfig.from_dict(self.content["model"])
        except ConfigError as error:
            raise CheckpointError(f"{self.folder / CONFIG}: {error}") from error

    def tokenizer(self, kind: type[Any] | None = None) -> Any:
        """Return the tokenizer, or raise CheckpointError.

        Parameters
        ----------
        kind
            A class whose `from_json` reads it; by default `WordTokenizer`.
        """
        path = self.folder / TOKENIZER
        if kind is None:
            try:
                return WordTokenizer.from_json(self.tokenizer_json.decode())
            except (TokenizerError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: {error}{self._of_another_kind()}") from error
        try:
            return kind.from_json(self.tokenizer_json.decode())
        except Exception as error:  # whatever somebody else's code raises
            name = getattr(kind, "__name__", type(kind).__name__)
            raise CheckpointError(
                f"{path} cannot be read by {name}.from_json: {_reason(error)}"
            ) from error

    def _of_another_kind(self) -> str:
        """Return how to read a tokenizer that is not ours; "" if it is."""
        try:
            content = json.loads(self.tokenizer_json)
        except (ValueError, RecursionError):
            content = None
        found = content.get("format") if isinstance(content, dict) else None
        if found == TOKENIZER_FORMAT:
            return ""
        named = f' it is of the format "{found}";' if isinstance(found, str) else ""
        named = named[:80] if named.isprintable() else ""
        return f";{named} a tokenizer of your own is read with LLM.load(folder, tokenizer=Class)"

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
        path = self.folder / WEIGHTS
        with self._tensors() as file:
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
        with self._tensors() as file:
            for name, value in tensors.items():
                value[...] = file.get_tensor(name)
                _check_finite(f"{self.folder / WEIGHTS} is damaged", name, value)

    @contextmanager
    def _tensors(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open  # here: importing rustgpt stays fast

        path = self.folder / WEIGHTS
        # Whatever has become of the name, this means the file that is open.
        opened = f"/dev/fd/{self.weights.fileno()}"
        name = opened if os.path.exists(opened) else self.weights.name
        with _explained(f"{path} cannot be read", SafetensorError), safe_open(name, "np") as file:
            yield file


def _write_new(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], tokenizer: str
) -> None:
    """Write all three files under their new names."""
    if len(tokenizer.encode()) > LARGEST_JSON:
        raise CheckpointError(
            f"cannot save a model in {folder}: its tokenizer has more than {LARGEST_JSON:,} bytes"
        )
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


def _open(folder: Path) -> Saved:
    with _explained(f"cannot load a model from {folder}"), ExitStack() as opened:
        content = _read_config(folder)
        # The new names first: a file that is not there has just been given its old name.
        candidates = {
            name: [
                opened.enter_context(file)
                for path in (folder / (name + NEW), folder / name)
                if (file := _opened(path)) is not None
            ]
            for name in PAYLOADS
        }
        files = {
            name: _choose(folder / name, candidates[name], content["files"][name])
            for name in PAYLOADS
        }
        tokenizer_json = _read_json(files[TOKENIZER], folder / TOKENIZER)
        for file in chain(*candidates.values()):
            if file is not files[WEIGHTS]:
                file.close()
        opened.pop_all()
        return Saved(folder, content, tokenizer_json, files[WEIGHTS])


def _read_config(folder: Path) -> dict[str, Any]:
    """Check config.json, and return what it says, without its own digest."""
    path = folder / CONFIG
    if not _is_file(path):
        raise CheckpointError(
            f"there is no model in {folder} (no {CONFIG}): train one with rustgpt train"
        )
    with open(path, "rb") as file:
        text = _read_json(file, path)
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
    if not isinstance(content.get("model"), dict) or not isinstance(files, dict):
        raise CheckpointError(f'{path} must have the objects "model" and "files"')
    if not all(files.get(name) for name in PAYLOADS):
        raise CheckpointError(f'{path}: "files" must name {" and ".join(PAYLOADS)}')
    return content


def _opened(path: Path) -> BufferedReader | None:
    """Open a file; None if there is none."""
    with suppress(FileNotFoundError):  # also one that goes just now
        return open(path, "rb") if _is_file(path) else None
    return None


def _choose(path: Path, candidates: list[BufferedReader], digest: str) -> BufferedReader:
    """Return whichever of the open files NAME.new and NAME has this digest."""
    for file in reversed(candidates):
        if _digest(file) == digest:
            return file
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    raise CheckpointError(f"{path} is damaged or from another save than {CONFIG}")


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
        return _digest(file)


def _digest(file: BufferedReader) -> str:
    """Return the SHA-256 of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_json(file: BufferedReader, path: Path) -> bytes:
    if os.fstat(file.fileno()).st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} has more than {LARGEST_JSON:,} bytes: it is no model's")
    file.seek(0)
    return file.read()


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
