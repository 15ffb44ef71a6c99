"""Owns what the annotations of the twins in `rustgpt.reference` say of the kernels' arguments."""

import dataclasses
import inspect
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

import rustgpt.reference
from rustgpt.reference.arrays import WRITTEN

TWINS = rustgpt.reference.kernels()


@dataclasses.dataclass(frozen=True)
class ArrayArgument:
    """What a twin's annotation says of an argument that is an array."""

    dimensions: int
    written: bool
    optional: bool
    indices: bool


def _array(annotation: Any) -> ArrayArgument | None:
    """Return what an annotation says of an array; None if it is of something else."""
    kinds = get_args(annotation)
    optional = NoneType in kinds
    kind = kinds[0] if optional else annotation
    if get_origin(kind) is not Annotated:
        return None
    dimensions, *rest = kind.__metadata__
    indices = kind.__origin__ == NDArray[np.int32]
    return ArrayArgument(dimensions, WRITTEN in rest, optional, indices)


def _arrays(twin: Any) -> dict[str, ArrayArgument]:
    hints = get_type_hints(twin, include_extras=True)
    found = {name: _array(hints[name]) for name in inspect.signature(twin).parameters}
    return {name: array for name, array in found.items() if array is not None}


# By kernel and name. The functions without arrays, which return a size, are no kernels here.
ARRAYS = {name: found for name, twin in sorted(TWINS.items()) if (found := _arrays(twin))}
KERNELS = list(ARRAYS)
