"""Owns rotary positions, in NumPy (Su et al. 2021, equations 14 and 34).

Of each head's D numbers, i and i + D / 2 are a point in a plane, which a position t turns by the
angle t * frequency i. The product of a query at t and a key at s then depends on t - s alone. To
turn back is to turn by the opposite angle: that is the gradient.
"""

from itertools import pairwise

import numpy as np

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix


def rotary(
    x: OutMatrix,  # IN/OUT (N, columns): the first n_heads * D columns are turned
    offsets: Indices,  # (B + 1,)
    table: Matrix,  # (S, D): D / 2 cosines and as many sines of each position
    n_heads: int,
    back: bool = False,  # by the opposite angle
    starts: Indices | None = None,  # (B,): how many rows of each text came before
) -> None:
    """(a, b) = (a cos - b sin, b cos + a sin), a and b being the halves of each head."""
    D = table.shape[1]
    for text, (first, end) in enumerate(pairwise(offsets)):
        start = 0 if starts is None else starts[text]
        turned = x[first:end, : n_heads * D].reshape(-1, n_heads, 2, D // 2)  # a copy
        cos, sin = np.split(table[start : start + end - first, None], 2, axis=2)  # (T, 1, D / 2)
        sin = -sin if back else sin
        a, b = turned[:, :, 0], turned[:, :, 1]  # (T, H, D / 2)
        both = np.stack([a * cos - b * sin, b * cos + a * sin], axis=2)  # (T, H, 2, D / 2)
        x[first:end, : n_heads * D] = both.reshape(end - first, n_heads * D)


KERNELS = (rotary,)
