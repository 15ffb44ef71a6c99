"""Owns the embedding look-up, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix
from rustgpt.reference.share import Share, whole


def embedding_forward(
    ids: Indices,  # (N,)
    positions: Indices,  # (N,)
    tokens: Matrix,  # (V, C)
    places: Matrix,  # (max_seq_len, C)
    out: OutMatrix,  # (N, C)
) -> None:
    """out[n] = tokens[ids[n]] + places[positions[n]]."""
    out[...] = tokens[ids] + places[positions]


def embedding_backward(
    dout: Matrix,  # (N, C)
    ids: Indices,  # (N,)
    positions: Indices,  # (N,)
    dtokens: OutMatrix,  # (V, C): added to
    dplaces: OutMatrix,  # (max_seq_len, C): added to
    share: Share | None = None,  # this thread's, of several: it has some columns
) -> None:
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n]."""
    columns = (share or whole(len(ids))).part_of(dout.shape[1])
    np.add.at(dtokens[:, columns], ids, dout[:, columns])
    np.add.at(dplaces[:, columns], positions, dout[:, columns])


KERNELS = (embedding_forward, embedding_backward)
