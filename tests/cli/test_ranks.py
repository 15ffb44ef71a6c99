"""Owns the tests of the command line under mpiexec."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import rustgpt

from ..mpi_runs import LIMIT, MPIEXEC, lines_with, needs_mpi, run_ranks, start_ranks

pytestmark = [needs_mpi, pytest.mark.slow]
SCRIPT = str(Path(__file__).with_name("ranks_script.py"))
COMMAND = ("-m", "rustgpt")
# With an evaluation every 20 steps, before which the model is saved.
LONG = (
    *("--pretrain-epochs", "1000000", "--save-every", "0"),
    *("--validation-share", "0.4", "--eval-every", "20"),
)


def is_open_mpi() -> bool:
    told = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in told.stdout + told.stderr


def state(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())["state"]


def test_one_process_tells_and_saves(tmp_path, small):
    status, out, err = run_ranks(2, *COMMAND, "train", *small, "--out", "m", cwd=tmp_path)
    assert status == 0
    assert out.count("=== MODEL INFORMATION ===") == out.count("The model is saved in m.") == 1
    assert "threads: 1 in each of 2 processes" in out
    assert len(lines_with(err, "rustgpt: to stop, send SIGTERM to rank 0")) == is_open_mpi()
    assert len(lines_with(err, "rustgpt: rank 1 (process ")) == 1
    assert len(lines_with(err, "instruction tuning: 2 texts")) == 1
    rustgpt.LLM.load(tmp_path / "m")
    status, _, err = run_ranks(2, *COMMAND, "train", *small, "--out", "m", cwd=tmp_path)
    assert status == 2
    assert len(lines_with(err, "rustgpt: error: 'm' holds a model already")) == 1


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        (("chat", "m"), 2, "rustgpt chat is for one process: leave out mpiexec"),
        ((), 2, "is for one process"),
        (("train", "--batch-size", "x"), 2, "--batch-size"),
        (("train", "nothing.txt"), 1, "nothing.txt"),
        (("train", "-"), 2, "several processes cannot read their data from standard input"),
        (("train", "--dry-run", "--chat", "-"), 2, "put them into a file, and name that"),
        (("train", "--resume", "nothing"), 1, "nothing"),
    ],
)
def test_an_error_is_told_once(tmp_path, command, status, told):
    found, out, err = run_ranks(2, *COMMAND, *command, cwd=tmp_path)
    assert found == status
    assert out.strip() == "" or not is_open_mpi()
    (line,) = lines_with(err, "rustgpt: error: ")
    assert told in line
    assert not (tmp_path / "rustgpt-model").exists()


def test_info_names_ranks_and_library(tmp_path):
    status, out, _ = run_ranks(2, *COMMAND, "info", "--json", cwd=tmp_path)
    assert status == 0
    found = json.loads(out)["mpi"]
    assert found["processes"] == 2
    assert re.search("Open MPI|MPICH|Intel", found["library"])
    host = os.uname().nodename
    for number, name in enumerate(found["ranks"]):
        assert re.fullmatch(rf"rank {number} \(process \d+ on {re.escape(host)}\)", name)


def test_a_dry_run_is_of_all_processes(tmp_path, small):
    status, out, _ = run_ranks(2, *COMMAND, "train", *small, "--dry-run", cwd=tmp_path)
    assert status == 0
    assert len(lines_with(out, "pre-training: 2 steps in 2 epochs")) == 1


def test_stored_data_are_tokenised_once(tmp_path, small):
    flags = ("--cache", "cache", "--max-steps", "5", "--dtype", "float64")
    args = (SCRIPT, "store", "0", "0", "train", *small, *flags)
    assert run_ranks(3, *args, "--out", "three", cwd=tmp_path)[0] == 0
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    assert run_ranks(2, *args, "--out", "two", cwd=tmp_path)[0] == 0
    three, two = (rustgpt.LLM.load(tmp_path / one).parameters for one in ("three", "two"))
    assert three == pytest.approx(two, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise", r"rank 1 \(process \d+ on .*\) has failed: the rank is ill"),
        ("bug", r"rank 1 \(process \d+ on .*\) has failed: ZeroDivisionError: the rank is wrong"),
        (
            "sleep",
            r"rank 1 \(process \d+ on .*\) has not been heard of for \d+ s and counts as hung",
        ),
        (
            "stop",
            r"rank 1 \(process \d+ on .*\) has not been heard of for \d+ s and counts as hung",
        ),
        ("forget", r"rank 1 \(process \d+ on .*\) has other parameters than rank 0 \("),
    ],
)
def test_a_rank_that_fails_ends_all(tmp_path, small, what, told):
    args = (SCRIPT, what, "1", "70", "train", *small, *LONG, "--out", "m")
    status, _, err = run_ranks(2, *args, cwd=tmp_path)
    assert status == 1
    (line,) = lines_with(err, "rustgpt: error: ")
    assert re.search(told, line)
    assert "m holds a good model, saved at pre-training, step " in line
    assert state(tmp_path / "m")["steps"] in (20, 40, 60, 80, 100)
    assert "Traceback" not in err


def test_a_signal_to_one_rank_is_one_to_all(tmp_path, small):
    args = (SCRIPT, "interrupt", "1", "30", "train", *small, *LONG)
    status, _, err = run_ranks(3, *args, "--out", "m", cwd=tmp_path)
    assert status == 130
    assert "rustgpt: stopped; m holds a good model, saved at the end" in err
    assert state(tmp_path / "m")["steps"] == 29
    # The training goes on, with another number of processes.
    args = (SCRIPT, "interrupt", "0", "11", "train", "--resume", "m")
    status, _, err = run_ranks(2, *args, cwd=tmp_path)
    assert status == 130
    assert "the processes were 3 and are now 2" in err
    assert state(tmp_path / "m")["steps"] == 39


def begun(folder, small):
    """Return a training by two processes that has been saved, and their numbers."""
    child = start_ranks(2, *COMMAND, "train", *small, *LONG, "--out", "m", cwd=folder)
    pids = []
    for line in child.stderr:
        pids += [int(pid) for pid in re.findall(r"rank \d \(process (\d+)", line)]
        if "validation loss" in line:
            break
    return child, pids


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


def wait_for_the_end(pids: list[int]) -> None:
    """Wait until no process is left, for at most ten seconds; where there is a /proc."""
    began = time.monotonic()
    while time.monotonic() - began < 10 and any(map(is_alive, pids)):
        time.sleep(0.05)
    assert pids
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all(tmp_path, small, rank):
    child, pids = begun(tmp_path, small)
    os.kill(pids[rank], signal.SIGKILL)
    out, err = child.communicate(timeout=LIMIT)
    wait_for_the_end(pids)
    assert child.returncode != 0
    assert str(pids[rank]) in out + err
    assert rustgpt.Trainer.resume(tmp_path / "m").steps > 0


@pytest.mark.parametrize("way", ["to rank 0", "passed on", "Ctrl-C"])
def test_a_stopped_training_is_saved_once(tmp_path, small, way):
    child, pids = begun(tmp_path, small)
    if way == "to rank 0":
        os.kill(pids[0], signal.SIGTERM)
    elif way == "passed on":
        child.send_signal(signal.SIGUSR1)
    else:
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    _, err = child.communicate(timeout=LIMIT)
    assert child.returncode != 0
    # After Ctrl-C Open MPI's mpiexec does not wait, nor tell whether the model is saved in time.
    if way != "Ctrl-C" or not is_open_mpi():
        assert err.count("rustgpt: stopping after this step, then saving the model") == 1
        assert err.count("m holds a good model, saved at the end") == 1
    wait_for_the_end(pids)
    assert rustgpt.Trainer.resume(tmp_path / "m").steps > 0
