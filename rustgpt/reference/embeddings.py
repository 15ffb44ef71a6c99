"""Owns the embedding look-up, in NumPy."""

import numpy as np
from numpy.typing import NDArray

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix
from rustgpt.reference.share import Share, whole


def positions_of(offsets: Indices) -> NDArray[np.int64]:  # (B + 1,) -> (N,)
    """Return each row's position in its text."""
    starts = np.repeat(offsets[:-1], np.diff(offsets))  # (N,)
    return np.arange(len(starts), dtype=np.int64) - starts


def embedding_forward(
    ids: Indices,  # (N,)
    offsets: Indices,  # (B + 1,)
    start: int,  # position of each text's first row
    tokens: Matrix,  # (V, C)
    places: Matrix,  # (S, C)
    out: OutMatrix,  # (N, C)
    share: Share | None = None,  # this thread's, of several: it has some rows
) -> None:
    """out[n] = tokens[ids[n]] + places[start + n - offsets[b]], b being the text of row n."""
    r = (share or whole(len(ids))).rows
    out[r] = tokens[ids[r]] + places[start + positions_of(offsets)[r]]


def embedding_backward(
    dout: Matrix,  # (N, C)
    ids: Indices,  # (N,)
    offsets: Indices,  # (B + 1,)
    dtokens: OutMatrix,  # (V, C): added to
    dplaces: OutMatrix,  # (S, C): added to
    share: Share | None = None,  # this thread's, of several: it has some columns
) -> None:
    """dtokens[ids[n]] += dout[n]; dplaces[n - offsets[b]] += dout[n]."""
    columns = (share or whole(len(ids))).part_of(dout.shape[1])
    np.add.at(dtokens[:, columns], ids, dout[:, columns])
    np.add.at(dplaces[:, columns], positions_of(offsets), dout[:, columns])


KERNELS = (embedding_forward, embedding_backward)
