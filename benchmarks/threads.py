"""Owns what a second thread brings: its pace beside one thread's, alone and beside a busy process.

On each shape of `training.py` one thread and two take turns on a machine that nobody else should
use. Beside them, what the machine gives: two trainings at once that share nothing, added up.

A process that computes without end has a share of the machine, and training must lose no more than
that. In the second half two threads take turns without such a process and beside it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from training import SHAPES, System, spread

LOAD = [sys.executable, "-c", "while True: pass"]
SECONDS = 1.0  # of each turn at least, so that a scheduler's choices even out


def pace(system: System) -> float:
    """Return the pace over as many turns as fill a second."""
    system.paces = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        system.turn(keep=True)
    return statistics.harmonic_mean(system.paces)  # of turns of equally many tokens


def pace_together(systems: list[System]) -> float:
    """Return what several do at once, added up."""
    with ThreadPoolExecutor(len(systems)) as pool:
        return sum(pool.map(pace, systems))


def pace_under_load(system: System) -> tuple[float, float]:
    """Return the pace beside a busy process, and which share of the machine that process had."""

    def processor_time() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, began = processor_time(), time.perf_counter()
    with subprocess.Popen(LOAD) as load:
        found = pace(system)
        seconds = time.perf_counter() - began
        load.kill()
    return found, (processor_time() - before) / seconds / len(os.sched_getaffinity(0))


def measure(name: str, rounds: int) -> dict[str, float | str]:
    """Return medians over some rounds."""
    one, other, two = systems = [System("rustgpt", name, threads) for threads in (1, 1, 2)]
    for system in systems:
        pace(system)  # warms up
    quiet, apart, loaded, lost, shares = [], [], [], [], []
    for _ in range(rounds):  # without the process, which training remembers for a while
        alone = pace(one)
        quiet.append(pace(two) / alone)
        apart.append(pace_together([one, other]) / alone)
    for _ in range(rounds):
        alone, before = pace(one), pace(two)
        beside, share = pace_under_load(two)
        loaded.append(beside / alone)
        lost.append(1 - beside / statistics.mean([before, pace(two)]))
        shares.append(share)
    for system in systems:
        system.close()
    return {
        "shape": name, "two_threads": statistics.median(quiet), "spread": spread(quiet),
        "two_processes": statistics.median(apart), "spread_of_processes": spread(apart),
        "under_load": statistics.median(loaded), "spread_under_load": spread(loaded),
        "lost": statistics.median(lost), "spread_of_lost": spread(lost),
        "load_had": statistics.median(shares),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each (default: 15)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()
    if not arguments.json:
        print("two threads, beside one thread's pace on a quiet machine")
        print(f"{'shape':<10} {'quiet':>8} {'spread':>10} "
              f"{'processes':>9} {'spread':>10} {'under load':>10} {'spread':>10} "
              f"{'lost':>6} {'spread':>10} {'load had':>8}")  # fmt: skip
    for name in arguments.shapes.split(","):
        row = measure(name, arguments.rounds)
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{name:<10} {row['two_threads']:>6.2f} x {row['spread']:>10} "
                f"{row['two_processes']:>7.2f} x {row['spread_of_processes']:>10} "
                f"{row['under_load']:>8.2f} x {row['spread_under_load']:>10} {row['lost']:>6.0%} "
                f"{row['spread_of_lost']:>10} {row['load_had']:>8.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
