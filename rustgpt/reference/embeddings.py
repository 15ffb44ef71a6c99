"""Owns the embedding look-up, in NumPy."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Indices = NDArray[np.int32]


def embedding_forward(
    ids: Indices,  # (N,)
    positions: Indices,  # (N,)
    tokens: Array,  # (V, C)
    places: Array,  # (max_seq_len, C)
    out: Array,  # (N, C)
) -> None:
    """out[n] = tokens[ids[n]] + places[positions[n]]."""
    out[...] = tokens[ids] + places[positions]


def embedding_backward(
    dout: Array,  # (N, C)
    ids: Indices,  # (N,)
    positions: Indices,  # (N,)
    dtokens: Array,  # (V, C): added to
    dplaces: Array,  # (max_seq_len, C): added to
) -> None:
    """dtokens[ids[n]] += dout[n]; dplaces[positions[n]] += dout[n]."""
    np.add.at(dtokens, ids, dout)
    np.add.at(dplaces, positions, dout)


KERNELS = (embedding_forward, embedding_backward)
