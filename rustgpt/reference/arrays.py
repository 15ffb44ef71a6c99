"""Owns the types of the kernels' arguments: how many sides an array has, and what is written to.

The compiled kernels' errors are explained with them; see `rustgpt.backend`.
"""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

WRITTEN = "written to"
Matrix = Annotated[Array, 2]
Vector = Annotated[Array, 1]
OutMatrix = Annotated[Array, 2, WRITTEN]
OutVector = Annotated[Array, 1, WRITTEN]
Indices = Annotated[NDArray[np.int32], 1]
