"""Owns what a model of another program must offer, and how its tensors become our parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.text.tokenizer import Tokenizer

Array = NDArray[Any]
Expected = Mapping[str, tuple[tuple[int, ...], Any]]  # (shape, dtype) by the name of a parameter

ROWS_OF: Final = 1 << 20  # numbers that are read at once, so that reading takes little memory


class OpenModel(Protocol):
    """A model on disk, of any format; a context manager, which closes it.

    Attributes
    ----------
    folder
        The folder or file.
    """

    folder: Path

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: Any) -> Any: ...

    def close(self) -> None:
        """Close its files."""

    def model_config(self) -> ModelConfig:
        """Return the configuration, or raise CheckpointError."""

    def tokenizer(self, kind: type[Any] | None = None) -> Tokenizer:
        """Return the tokenizer, as `kind.from_json` reads it, or raise CheckpointError."""

    def check_shapes(self, expected: Expected) -> None:
        """Raise CheckpointError if a tensor is missing, unknown or of another shape.

        No parameter is read.
        """

    def read_into(self, tensors: Mapping[str, Array]) -> None:
        """Copy the parameters into the model's arrays, by name, one at a time."""


class Piece(NamedTuple):
    """A tensor of a file, as one of those that stand side by side in a parameter of ours.

    Parameters
    ----------
    name
        Of the tensor.
    shape
        That it must have in the file.
    transposed
        Whether the file has it (out, in), as PyTorch's `nn.Linear` does, and we have (in, out).
    skipped
        Rows at its beginning that are not ours.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    skipped: int = 0

    @property
    def height(self) -> int:
        """How many rows of the parameter it fills."""
        return self.shape[1] if self.transposed else self.shape[0] - self.skipped

    @property
    def width(self) -> int:
        """How many columns of the parameter it fills."""
        return self.shape[0] if self.transposed else self.shape[-1]


# The pieces of each of our parameters, from left to right; of none it is zero.
Layout = dict[str, tuple[Piece, ...]]


class ForeignModel(ExitStack):
    """A model of another program.

    A subclass sets what is ours of it when it opens the files, and reads tensors (`shapes`,
    `rows`).

    Parameters
    ----------
    folder
        The folder or file.

    Attributes
    ----------
    config, tokens
        Our configuration and tokenizer.
    layout
        Where each parameter of ours lies.
    """

    config: ModelConfig
    tokens: Tokenizer
    layout: Layout

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor of the file by name, without those that say nothing."""
        raise NotImplementedError

    def rows(self, name: str) -> Iterator[Array]:
        """Yield a tensor of the file as float arrays, some of its rows at a time.

        All rows of a tensor, or about `ROWS_OF` numbers.
        """
        raise NotImplementedError

    def model_config(self) -> ModelConfig:
        return self.config

    def tokenizer(self, kind: type[Any] | None = None) -> Tokenizer:
        if kind is not None:
            raise CheckpointError(
                f"the tokenizer of {self.folder} is not one of your own: leave out the class"
            )
        return self.tokens

    def check_shapes(self, expected: Expected) -> None:
        self.check_tensors()
        for name, (shape, _) in expected.items():
            pieces = self.layout.get(name)
            if pieces is None:
                raise CheckpointError(f"a model of {self.folder} has no parameter {name!r}")
            if not pieces:
                continue
            width = sum(piece.width for piece in pieces)
            ours = (width,) if len(shape) == 1 else (pieces[0].height, width)
            if ours != tuple(shape):
                raise CheckpointError(
                    f"{self.folder}: the tensors of {name!r} give {ours}, but the model has "
                    f"{tuple(shape)}"
                )

    def check_tensors(self) -> None:
        """Raise CheckpointError if a tensor is missing, unknown, or not as the layout says."""
        found = dict(self.shapes())
        for piece in chain(*self.layout.values()):
            shape = found.pop(piece.name, None)
            if shape is None:
                raise CheckpointError(
                    f"{self.folder} lacks the tensor {piece.name!r}, {piece.shape}"
                )
            if shape != piece.shape:
                raise CheckpointError(
                    f"{self.folder}: the tensor {piece.name!r} must be {piece.shape}, but is "
                    f"{shape!s:.80}"
                )
        for name in sorted(found):
            raise CheckpointError(
                f"{self.folder}: a model of this kind has no tensor {name!r:.80}, so that it would "
                "not compute the same"
            )

    def read_into(self, tensors: Mapping[str, Array]) -> None:
        self.check_shapes({name: (value.shape, value.dtype) for name, value in tensors.items()})
        for name, value in tensors.items():
            left = 0
            if not self.layout[name]:
                value[...] = 0
            for piece in self.layout[name]:
                part = value[..., left : left + piece.width]
                self._read_piece(piece, part.T if piece.transposed else part)
                left += piece.width

    def _read_piece(self, piece: Piece, part: Array) -> None:
        """Copy a tensor into an array of its shape, without the rows that are skipped."""
        done = -piece.skipped
        for rows in self.rows(piece.name):
            if not np.isfinite(rows).all():
                raise CheckpointError(
                    f"{self.folder} is damaged: the tensor {piece.name!r} holds NaN or infinity"
                )
            ours = rows[max(0, -done) :]
            done += len(rows)
            part[done - len(ours) : done] = ours
        if done != len(part):
            raise CheckpointError(f"{self.folder}: the tensor {piece.name!r} ends too early")
