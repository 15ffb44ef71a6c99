"""Tests of what is known of the processor."""

import platform
import sys
from pathlib import Path

import pytest

from rustgpt._ext import cpu


def test_instruction_sets_come_best_first():
    found = cpu.instruction_sets()
    assert found == [name for name in ("avx512", "avx2") if name in found]
    assert "avx2" in found or "avx512" not in found


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="reads Linux's /proc/cpuinfo"
)
def test_they_are_what_the_system_says():
    text = Path("/proc/cpuinfo").read_text()
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    expected = []
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"} <= flags:
        expected.append("avx512")
    if {"avx2", "fma"} <= flags:
        expected.append("avx2")
    assert cpu.instruction_sets() == expected
    assert cpu.has_bfloat16() == ("avx512" in expected and "avx512_bf16" in flags)


def test_other_processors_have_none():
    if platform.machine().lower() not in ("x86_64", "amd64"):
        assert cpu.instruction_sets() == []
        assert not cpu.has_bfloat16()
    else:
        assert set(cpu.instruction_sets()) <= {"avx2", "avx512"}
