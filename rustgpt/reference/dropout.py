"""Owns dropout, in NumPy: which numbers are kept follows from where they are."""

import numpy as np
from numpy.typing import NDArray

from rustgpt.reference.arrays import Indices, Matrix, OutMatrix, Shard, check_whole

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each number: SplitMix64's (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(row_numbers: Indices, key: int, C: int) -> NDArray[np.uint32]:  # -> (N, C)
    """Return 32 random bits for each number of some rows.

    A row's are 64 bits of SplitMix64. With them each column's own number is mixed as in
    Wellons's hash "lowbias32": a permutation of the columns, another for each row.
    """
    row = mixed(np.uint64(key) + GOLDEN * (row_numbers.astype(np.uint64) + np.uint64(1)))  # (N,)
    low = row.astype(np.uint32)[:, None]  # (N, 1)
    high = (row >> np.uint64(32)).astype(np.uint32)[:, None]  # (N, 1)
    columns = np.arange(C, dtype=np.uint32)
    h: NDArray[np.uint32] = np.add(low, columns)  # (N, C), like all that follows modulo 2^32
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= high
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def check_rate(rate: float) -> None:
    """Raise ValueError unless dropout can have this rate."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be from 0 to below 1, got {rate}")


def dropout(
    x: Matrix,  # (N, C)
    row_numbers: Indices,  # (N,): of each row in the batch of the whole step
    key: int,  # of the step and the place in the model, modulo 2^64
    rate: float,
    out: OutMatrix,  # (N, C)
    shard: Shard | None = None,  # this thread's, of several: it has some rows
) -> None:
    """out = x / (1 - rate) where random bits say so, else 0: of a gradient as of what it is of."""
    check_whole(shard)
    check_rate(rate)
    kept = random_bits(row_numbers, key, x.shape[1]) >= np.uint32(rate * 2.0**32)  # (N, C)
    out[...] = x * np.where(kept, 1 / (1 - rate), 0.0).astype(x.dtype)


KERNELS = (dropout,)
