"""Owns our parameters as the tensors of another program, to be written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rustgpt.errors import CheckpointError
from rustgpt.formats.foreign import Array, Layout, Piece
from rustgpt.formats.safetensors_write import Tensor, rows_of


def tensors_of(layout: Layout, parameters: Mapping[str, Array]) -> list[Tensor]:
    """Return the tensors of a model, as a layout has them."""
    found = []
    for name, pieces in layout.items():
        left = 0
        for piece in pieces:
            if name in parameters:
                value = parameters[name][..., left : left + piece.width]
            else:
                value = _neutral(name, piece)
            found.append(_tensor(piece, value))
            left += piece.width
    return found


def _neutral(name: str, piece: Piece) -> Array:
    """Return the values of a parameter that the model does without: they change nothing."""
    if name.endswith("attention.projection_weight"):
        return np.eye(*piece.shape, dtype=np.float32)
    return np.zeros(piece.shape, np.float32)


def _tensor(piece: Piece, value: Array) -> Tensor:
    if piece.skipped:
        value = np.concatenate([np.zeros((piece.skipped, piece.width), value.dtype), value])
    value = value.T if piece.transposed else value
    if value.shape != piece.shape:
        raise CheckpointError(
            f"the model was not written: {piece.name!r} must be {piece.shape}, but is {value.shape}"
        )
    return Tensor(piece.name, piece.shape, lambda: rows_of(value))
