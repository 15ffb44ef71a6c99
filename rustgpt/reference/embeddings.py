"""Owns the embedding look-up, in NumPy."""

import numpy as np

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix, Shard, check_whole


def embedding_forward(
    ids: Indices,  # (N,)
    positions: Indices,  # (N,): of each row in its text
    tokens: Matrix,  # (V, C)
    places: Matrix | None,  # (S, C); None if positions are no vectors
    out: OutMatrix,  # (N, C)
    shard: Shard | None = None,  # this thread's, of several: it has some rows
) -> None:
    """out = tokens[ids] + places[positions], row by row."""
    check_whole(shard)
    out[...] = tokens[ids]
    if places is not None:
        out += places[positions]


def embedding_backward(
    dout: Matrix,  # (N, C)
    ids: Indices,  # (N,)
    positions: Indices,  # (N,): of each row in its text
    dtokens: OutMatrix,  # (V, C): added to
    dplaces: OutMatrix | None,  # (S, C): added to; None if there are none
    shard: Shard | None = None,  # this thread's, of several: it has some columns
) -> None:
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n], in the order of n."""
    check_whole(shard)
    np.add.at(dtokens, ids, dout)
    if dplaces is not None:
        np.add.at(dplaces, positions, dout)


KERNELS = (embedding_forward, embedding_backward)
