"""Owns what a training sees of a text: its token ids, and where the loss counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """A text as token ids, with what is to be learned of it.

    Parameters
    ----------
    ids
        (n + 1,) the tokens; the first n are read, the last n predicted.
    counted
        (n,) whether the prediction of `ids[i + 1]` counts in the loss; None if all do.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_] | None = None
