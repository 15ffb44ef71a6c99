"""Owns the tests of what processes know of each other."""

import dataclasses
import os
import subprocess
import sys

import pytest

from rustgpt.parallel.process import Process


@pytest.mark.skipif(os.name != "posix", reason="asks for a process as POSIX does")
def test_a_process_that_has_ended_is_gone_as_far_as_its_own_machine_sees():
    here = Process.this()
    assert here.pid == os.getpid()
    assert not here.is_gone(here)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    ended = dataclasses.replace(here, pid=child.pid)
    assert ended.is_gone(here)
    assert not dataclasses.replace(ended, node="another").is_gone(here)
    assert str(ended) == f"process {child.pid} on {here.host}"


def test_a_process_knows_the_processors_that_it_may_use():
    cpus = Process.this().cpus
    assert len({*cpus}) == len(cpus) > 0
    assert len(cpus) <= (os.cpu_count() or 1)
