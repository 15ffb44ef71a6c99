"""Tests of how the kernels are found: for which instruction set, and with what they load."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rustgpt._ext.cpu import instruction_sets

import rustgpt._ext
from rustgpt._ext import instruction_set
from rustgpt.errors import ConfigError


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("level", ["plain", *instruction_sets()])
def test_the_environment_chooses_the_instruction_set(level):
    code = (
        "import sys, rustgpt._ext as e, numpy as np; k = e.kernels()\n"
        "print(e.instruction_set(), k['sum_of_squares'](np.array([3.0, 4.0])))\n"
        "print(*sorted(name for name in sys.modules if name.endswith('optimizer')))"
    )
    result = python(code, RUSTGPT_SIMD=level)
    module = f"rustgpt._ext.{'' if level == 'plain' else level + '.'}optimizer"
    assert result.stdout.split() == [level, "25.0", module], result.stderr


def test_a_process_may_change_its_mind():
    # Python takes two modules of one name for one, and would go on with the first.
    code = (
        "import os, rustgpt._ext as e\n"
        "found = []\n"
        "for level in [*e._module('cpu').instruction_sets(), 'plain']:\n"
        "    os.environ['RUSTGPT_SIMD'] = level\n"
        "    found.append(e.kernels()['add_into'])\n"
        "print(len(found), len(set(map(id, found))))"
    )
    levels = str(1 + len(instruction_sets()))
    assert python(code).stdout.split() == [levels, levels]


@pytest.mark.parametrize("level", ["plain", *instruction_sets()])
def test_a_checkout_without_kernels_takes_the_installed_ones(tmp_path, level):
    installed = Path(rustgpt._ext.__file__).parents[1]
    for path in installed.rglob("*.py"):
        copy = tmp_path / "rustgpt" / path.relative_to(installed)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    code = (
        "import sys, rustgpt._ext as e; e.kernels()\n"
        "print(e.__file__, e.instruction_set(), sep='\\n')\n"
        "print(*sorted(name for name in sys.modules if name.endswith('optimizer')))"
    )
    environment = os.environ | {"RUSTGPT_SIMD": level, "PYTHONPATH": str(installed.parent)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    module = f"rustgpt._ext.{'' if level == 'plain' else level + '.'}optimizer"
    own = str(tmp_path / "rustgpt" / "_ext" / "__init__.py")
    assert found.stdout.splitlines() == [own, level, module], found.stderr


def test_without_a_wish_the_best_is_taken(monkeypatch):
    for unset in (None, ""):
        monkeypatch.delenv("RUSTGPT_SIMD", raising=False)
        if unset is not None:
            monkeypatch.setenv("RUSTGPT_SIMD", unset)
        assert instruction_set() == [*instruction_sets(), "plain"][0]


def test_without_the_faster_kernels_the_plain_ones_serve(monkeypatch):
    monkeypatch.delenv("RUSTGPT_SIMD", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert instruction_set() == "plain"


def test_kernels_that_are_not_built_are_a_config_error():
    with pytest.raises(ConfigError, match=r"cannot be loaded \(.*no_kernel.*\): run 'pip install"):
        rustgpt._ext._module("no_kernel")


@pytest.mark.parametrize("wish", ["sse", "AVX2", "avx2 "])
def test_a_wrong_instruction_set_is_a_config_error(wish):
    code = (
        "import rustgpt\n"
        "try: rustgpt.use_backend('cython')\n"
        "except rustgpt.ConfigError as error: print(error)"
    )
    message = python(code, RUSTGPT_SIMD=wish).stdout
    assert f"RUSTGPT_SIMD is {wish!r}" in message
    assert "plain" in message


def test_importing_the_kernels_leaves_denormals_alone():
    # A library linked with -ffast-math turns them into zeros for the whole process.
    code = (
        "import numpy as np, rustgpt; rustgpt.use_backend('cython')\n"
        "rustgpt.ops.sum_of_squares(np.ones(3))\n"
        "print(np.float32(1e-38) / np.float32(1000) > 0, 5e-324 * np.float64(1.0) > 0)"
    )
    assert python(code).stdout.split() == ["True", "True"]


def test_the_kernels_load_nothing_of_scipy_but_its_blas():
    code = (
        "import sys, rustgpt.backend\n"
        "rustgpt.backend.backend_name()\n"
        "print('scipy.linalg.cython_blas' in sys.modules, 'scipy.linalg' in sys.modules)\n"
        "import scipy.linalg, numpy\n"
        "from scipy.linalg import cython_blas\n"
        "print(sys.modules['scipy.linalg.cython_blas'] is cython_blas)\n"
        "print(*scipy.linalg.eigvalsh(numpy.array([[2.0, 1.0], [1.0, 2.0]])).round(9))"
    )
    found = python(code, RUSTGPT_BACKEND="cython")
    assert found.stdout.split() == ["True", "False", "True", "1.0", "3.0"], found.stderr
