"""Owns what a second thread brings: its pace beside one thread's, alone and beside a busy process.

A process that computes without end has a share of the machine, and training must lose no more than
that. On each shape of `training.py` one thread and two take turns, first in some rounds without
such a process, then in as many with it; two threads need two processors that nobody else uses. What
one thread loses beside the process, with a processor for each, is the machine's doing.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from training import SHAPES, System, spread

LOAD = [sys.executable, "-c", "while True: pass"]
SECONDS = 1.5  # of each turn at least, so that a scheduler's choices even out


def pace(system: System) -> float:
    """Return the median pace of as many turns as fill a few seconds."""
    system.paces = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        system.turn(keep=True)
    return statistics.median(system.paces)


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
    one, two = (System("rustgpt", name, threads) for threads in (1, 2))
    for system in (one, two):
        pace(system)  # warms up
    quiet, loaded, lost_by_one, shares = [], [], [], []
    for _ in range(rounds):  # without the process, which training remembers for a while
        alone = pace(one)
        quiet.append(pace(two) / alone)
    for _ in range(rounds):
        alone = pace(one)
        beside, share = pace_under_load(two)
        loaded.append(beside / alone)
        lost_by_one.append(1 - pace_under_load(one)[0] / alone)
        shares.append(share)
    lost = [1 - ratio / statistics.median(quiet) for ratio in loaded]
    one.close()
    two.close()
    return {
        "shape": name, "two_threads": statistics.median(quiet), "spread": spread(quiet),
        "under_load": statistics.median(loaded), "spread_under_load": spread(loaded),
        "lost": statistics.median(lost), "spread_of_lost": spread(lost),
        "load_had": statistics.median(shares), "lost_by_one": statistics.median(lost_by_one),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()
    if not arguments.json:
        print("two threads, beside one thread's pace on a quiet machine")
        print(f"{'shape':<10} {'quiet':>8} {'spread':>10} {'under load':>10} {'spread':>10} "
              f"{'lost':>6} {'spread':>10} {'load had':>8} {'lost by one':>11}")  # fmt: skip
    for name in arguments.shapes.split(","):
        row = measure(name, arguments.rounds)
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{name:<10} {row['two_threads']:>6.2f} x {row['spread']:>10} "
                f"{row['under_load']:>8.2f} x {row['spread_under_load']:>10} {row['lost']:>6.0%} "
                f"{row['spread_of_lost']:>10} {row['load_had']:>8.0%} {row['lost_by_one']:>11.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
