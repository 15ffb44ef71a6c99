"""Owns what each of several processes does in test_ranks.py; it prints nothing if all is well."""

import sys

import numpy as np
import pytest

from rustgpt.errors import CheckpointError, TrainingError
from rustgpt.layers.memory import aligned
from rustgpt.parallel import mpi, ranks

exchange = mpi.world()
rank, size = exchange.rank, exchange.size
assert isinstance(exchange, ranks.Ranks)
assert mpi.world() is exchange
assert size > 1


def numbers(of: int, n: int, dtype: str) -> np.ndarray:
    """Return numbers of a rank whose sum depends on its order."""
    rng = np.random.default_rng((of, n))
    return (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype)


def sums() -> None:
    ranks.PIECE = 100  # bytes: many pieces, of which the last are shorter or empty
    for n in (1, 2, 1003, 4 * size):
        for dtype in ("float32", "float64"):
            flat = aligned(n, np.dtype(dtype))
            flat[...] = numbers(rank, n, dtype)
            expected = numbers(0, n, dtype)
            for other in range(1, size):
                expected += numbers(other, n, dtype)
            part = exchange.part(n)
            exchange.sum_gradients(flat)
            assert np.array_equal(flat[part], expected[part])
            exchange.gather_parameters(flat)
            assert np.array_equal(flat, expected)
            whole = exchange.gathered(flat[part], n)
            assert (whole is None) == (rank > 0)
            assert whole is None or np.array_equal(whole, expected)
            assert np.array_equal(exchange.scattered(whole, n, dtype), expected[part])
            flat[...] = numbers(rank, n, dtype)
            exchange.spread(flat)
            assert np.array_equal(flat, numbers(0, n, dtype))


def volume() -> None:
    assert ranks.PIECE <= 16e6
    ranks.PIECE = 100
    sent, send = [], exchange._send
    exchange._send = lambda array, *to: sent.append(array.nbytes) or send(array, *to)
    flat = aligned(1003, np.dtype("float32"))
    flat[...] = rank
    exchange.sum_gradients(flat)
    exchange.gather_parameters(flat)
    assert set(flat) == {sum(range(size))}
    own = flat[exchange.part(1003)].nbytes
    assert sum(sent) == flat.nbytes - own + (size - 1) * own  # of all ranks, as in a ring
    assert max(sent) <= 100


def meetings() -> None:
    assert exchange.meet("step", rank, 0.5) == [[r, 0.5] for r in range(size)]
    assert exchange.total("norm", rank + 1) == size * (size + 1) / 2
    found = exchange.from_first("sample", lambda: {"from": rank})
    assert found == {"from": 0}
    with pytest.raises(CheckpointError, match=r"^the disk is full$"):
        exchange.from_first("save", lambda: fail("the disk is full"))
    times = exchange.meet("step", exchange.now())
    assert len({time for (time,) in times}) == 1
    assert not exchange.stopped
    if rank == 1:
        exchange.ask_to_stop()
    assert not exchange.stopped
    exchange.meet("step")
    assert exchange.stopped
    exchange.begin()
    exchange.meet("step")
    assert not exchange.stopped


def fail(text: str) -> None:
    raise CheckpointError(text)


def errors() -> None:
    same = TrainingError("all are wrong")
    exchange.fail(same)  # on all: they may go on
    exchange.meet("step")
    if rank == 1:
        exchange.fail(ValueError("of one alone"))
    else:
        expect(lambda: exchange.meet("step"), "rank 1 (process", "has failed: ValueError: of one")
    expect(lambda: exchange.meet("step"), "has ended with an error")


def others() -> None:
    expect(
        lambda: exchange.check_equal("digest", bytes([rank] * 6), "hats"), "other hats", "rank 0"
    )


def points() -> None:
    expect(lambda: exchange.meet("step" if rank else "save"), "rank 0: save, rank 1: step")


def expect(work, *words: str) -> None:
    with pytest.raises(TrainingError) as raised:
        work()
    assert all(word in str(raised.value) for word in words), raised.value


globals()[sys.argv[1]]()
sys.exit(max(exchange.leave(0) or [1]))
