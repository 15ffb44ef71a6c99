"""Owns what the processes of a training know of each other: where each runs, on what processors."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of a training.

    Parameters
    ----------
    host, pid
        Where it runs, and its number there.
    node
        Differs from that of a process whose number means nothing here.
    cpus
        The processors that it may use.
    """

    host: str
    pid: int
    node: str
    cpus: tuple[int, ...]

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this(cls) -> Process:
        """Return what there is to know of this one."""
        host = node = platform.node()
        with suppress(OSError):  # Linux: another system, or container, may have the same name
            node += Path("/proc/sys/kernel/random/boot_id").read_text()
            node += os.readlink("/proc/self/ns/pid")
        if hasattr(os, "sched_getaffinity"):
            cpus = (*sorted(os.sched_getaffinity(0)),)
        else:
            cpus = (*range(os.cpu_count() or 1),)
        return cls(host, os.getpid(), node, cpus)

    def is_gone(self, here: Process) -> bool:
        """Whether it has ended, as far as another process sees."""
        if here.node != self.node or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def share(number: int, processes: Sequence[Process]) -> Fraction:
    """Return how many processors a process has if all on its node share theirs evenly."""
    here = processes[number]
    local = [one.cpus for one in processes if one.node == here.node]
    return sum((Fraction(1, sum(cpu in one for one in local)) for cpu in here.cpus), Fraction())
