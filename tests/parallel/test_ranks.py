"""Owns the tests of the exchange between processes; each starts some with mpiexec."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rustgpt.errors import ConfigError, TrainingError
from rustgpt.parallel import mpi
from rustgpt.parallel.exchange import Exchange
from rustgpt.parallel.process import Process
from rustgpt.parallel.ranks import Ranks

from ..mpi_runs import needs_mpi, run_ranks

SCRIPT = str(Path(__file__).with_name("ranks_script.py"))


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "what"),
    [
        (2, "sums"),
        (4, "sums"),
        (3, "volume"),
        (3, "meetings"),
        (3, "errors"),
        (2, "others"),
        (2, "points"),
    ],
)
def test_ranks_exchange(tmp_path, n, what):
    assert run_ranks(n, SCRIPT, what, cwd=tmp_path) == (0, "", "")


def test_one_process_exchanges_nothing():
    exchange = Exchange()
    assert exchange.is_first
    assert exchange.part(7) == slice(0, 7)
    assert exchange.meet("step", 1.5) == [(1.5,)]
    assert exchange.total("norm", 1.5) == 1.5
    assert exchange.from_first("save", lambda: 3) == 3
    exchange.ask_to_stop()
    assert exchange.stopped
    exchange.begin()
    assert not exchange.stopped


def test_parts_are_disjoint_and_cover_all():
    exchange = Exchange()
    for exchange.size in (1, 2, 3, 7):
        for n in (0, 1, 5, 100):
            parts = [exchange.part_of(rank, n) for rank in range(exchange.size)]
            covered = [i for part in parts for i in range(n)[part]]
            assert covered == [*range(n)]


@pytest.mark.parametrize(
    ("cpus", "threads"),
    [
        (["01", "01"], [1, 1]),
        (["0", "1"], [1, 1]),
        (["0123", "0123", "0123"], [1, 1, 1]),
        (["01234567", "01234567"], [4, 4]),
        (["0123", "01"], [3, 1]),
    ],
)
def test_ranks_share_the_processors(cpus, threads):
    exchange = object.__new__(Ranks)
    exchange.processes = [Process("a", i, "a", (*map(int, one),)) for i, one in enumerate(cpus)]
    exchange.processes.append(Process("b", 9, "b", (0, 1)))
    for rank, (one, expected) in enumerate(zip(cpus, threads, strict=True)):
        exchange.rank = rank
        assert exchange.threads(len(one)) == expected
    exchange.rank = len(cpus)
    assert exchange.threads(2) == 2


def test_what_is_sent_is_told_before_anything_is_received(monkeypatch):
    calls = []
    exchange = object.__new__(Ranks)
    exchange.rank, exchange.size, exchange._others, exchange._room = 1, 3, [0, 2], None
    for name in ("_send", "_receive"):
        monkeypatch.setattr(exchange, name, lambda *args, name=name: calls.append((name, args[1])))
    monkeypatch.setattr(exchange, "_wait", lambda requests: calls.append(len(requests)))
    order = [("_send", 0), ("_send", 2), ("_receive", 0), ("_receive", 2), 4]
    flat = np.zeros(9, "float32")
    exchange.sum_gradients(flat)
    exchange.gather_parameters(flat)
    assert calls == order * 2


class Request:
    """Of a rank that is not heard of."""

    def Test(self) -> bool:
        return False

    @staticmethod
    def Testall(_) -> bool:
        return False


def one_who_waits(monkeypatch, times):
    """Return an exchange whose clock shows these times."""
    times = iter(times)
    monkeypatch.setattr("rustgpt.parallel.ranks.time.monotonic", lambda: float(next(times)))
    monkeypatch.setattr("rustgpt.parallel.ranks.time.sleep", lambda _: None)
    exchange = object.__new__(Ranks)
    exchange.rank, exchange._mpi = 0, SimpleNamespace(Request=Request)
    exchange.processes = [Process("a", 1, "a", (0,)), Process("b", 2, "b", (0,))]
    exchange._longest, exchange._held = 0.0, []
    return exchange


@pytest.mark.parametrize(("step", "patience"), [(1, 60), (30, 300)])
def test_who_misses_ten_steps_and_a_minute_counts_as_hung(monkeypatch, step, patience):
    exchange = one_who_waits(monkeypatch, count())
    exchange.took(step)
    told = rf"rank 1 \(process 2 on b\) has not been heard of for {patience + 1} s"
    with pytest.raises(TrainingError, match=told):
        exchange._wait([(1, Request())])
    assert exchange.broken


def test_who_was_halted_itself_calls_no_one_hung(monkeypatch):
    exchange = one_who_waits(monkeypatch, [0, 0.2, 1000, 1000.2, 1000.4, 2000, 2000.2])
    with pytest.raises(TrainingError, match=r"for 3 s and counts as hung"):
        exchange._wait([(1, Request())], 2.5)


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, None, 0),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None, 0),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, 1, 4),
        ({"PMI_RANK": "3", "PMI_SIZE": "8"}, 3, 8),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "2"}, 0, 2),
    ],
)
def test_a_launcher_is_known_by_what_it_says(monkeypatch, environment, rank, size):
    for name in (*mpi.RANKS, *mpi.SIZES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mpi.launched_rank() == rank
    assert mpi.launched_size() == size


def test_mpi_without_mpi4py_is_an_error(monkeypatch):
    monkeypatch.setattr(mpi, "_world", None)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"2 processes .* pip install 'rustgpt\[mpi\]'"):
        mpi.world()
