"""Tests of the choice between the compiled kernels and plain NumPy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from rustgpt._ext.cpu import has_bfloat16 as cpu_has_bfloat16
from rustgpt._ext.cpu import instruction_sets
from threadpoolctl import threadpool_info

import rustgpt
from rustgpt._ext import instruction_set
from rustgpt.backend import (
    Ops,
    backend_name,
    has_bfloat16,
    kernels_in_use,
    ops,
    single_threaded_blas,
    use_backend,
)


def test_the_backend_in_use_is_known_by_name(backend):
    assert backend_name() == backend
    compiled = type(ops.add_into.__wrapped__).__name__ if backend == "cython" else None
    assert compiled in (None, "fused_cython_function", "cython_function_or_method")
    assert ops.sum_of_squares(np.array([3.0, 4.0])) == 25


def test_the_kernels_in_use_are_told(backend):
    expected = "reference" if backend == "reference" else f"cython, {instruction_set()}"
    assert kernels_in_use() == expected


@pytest.mark.parametrize("level", ["plain", *instruction_sets()])
def test_a_lower_instruction_set_turns_bfloat16_off(switch_backend, monkeypatch, level):
    monkeypatch.setenv("RUSTGPT_SIMD", level)
    assert has_bfloat16() == (level == "avx512" and cpu_has_bfloat16())
    switch_backend("reference")
    assert has_bfloat16()


def test_the_reference_is_plain_python(backend):
    is_python = hasattr(ops.add_into, "__code__") and not hasattr(ops.add_into, "__wrapped__")
    assert is_python == (backend == "reference")


@pytest.mark.parametrize("name", ["torch", "", "Cython"])
def test_another_backend_is_a_config_error(backend, name):
    with pytest.raises(rustgpt.ConfigError, match="cython, reference"):
        use_backend(name)
    assert backend_name() == backend  # still in use


def test_an_unknown_kernel_is_an_attribute_error(backend):
    with pytest.raises(AttributeError, match="no kernel called 'matrix_sum'"):
        _ = ops.matrix_sum
    assert not hasattr(Ops(), "__deepcopy__")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("wish", "expected"), [("reference", "reference"), ("cython", "cython"), ("", "cython")]
)
def test_the_environment_chooses(wish, expected):
    code = "import rustgpt.backend as b; b.ops.add_into; print(b.backend_name())"
    result = python(code, RUSTGPT_BACKEND=wish)
    assert result.stdout.split() == [expected], result.stderr


def test_a_wrong_choice_in_the_environment_is_a_config_error():
    code = (
        "import rustgpt\n"
        "try: rustgpt.ops.add_into\n"
        "except rustgpt.ConfigError as error: print(error)"
    )
    assert "'fortran'" in python(code, RUSTGPT_BACKEND="fortran").stdout


def test_importing_the_package_loads_no_kernels():
    code = (
        "import sys, rustgpt, rustgpt.backend\n"
        "print(*[n for n in sys.modules if n.startswith(('scipy', 'rustgpt.r', 'rustgpt._'))])"
    )
    assert python(code).stdout.split() == []


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_keeps_to_one_thread_and_goes_back(switch_backend):
    switch_backend("cython")
    before = blas_threads()
    with single_threaded_blas():
        assert set(blas_threads()) == {1}
        with single_threaded_blas():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    with pytest.raises(RuntimeError), single_threaded_blas():
        raise RuntimeError
    assert blas_threads() == before
