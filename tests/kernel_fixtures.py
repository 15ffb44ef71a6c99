"""Owns the kernels under test, and what they are held against."""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rustgpt._ext.cpu

from rustgpt.backend import explained_kernels

from .kernel_arguments import OPAQUE, TWINS, Arguments, copied, exactly, make, widened, written

LEVELS = ("plain", *reversed(rustgpt._ext.cpu.instruction_sets()))


def compiled_for(level: str) -> SimpleNamespace:
    """Return the compiled kernels for an instruction set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUSTGPT_SIMD", level)
        return SimpleNamespace(**explained_kernels(), level=level)


@pytest.fixture(scope="session", params=LEVELS)
def compiled(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The compiled kernels, for each instruction set that this processor has."""
    return compiled_for(request.param)


@pytest.fixture(scope="session")
def bfloat16() -> SimpleNamespace:
    """The compiled kernels that multiply bfloat16; where nobody has them, the test is skipped."""
    if not rustgpt._ext.cpu.has_bfloat16():
        pytest.skip("this processor has no AVX512-BF16")
    return compiled_for("avx512")


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The kernels in plain NumPy."""
    return SimpleNamespace(**TWINS, level="reference")


@pytest.fixture(scope="session", params=("reference", *LEVELS))
def kernels(request: pytest.FixtureRequest, reference: SimpleNamespace) -> SimpleNamespace:
    """Every implementation of the kernels, the reference among them."""
    return reference if request.param == "reference" else compiled_for(request.param)


# Memory


@pytest.fixture(scope="session")
def guarded() -> Callable[..., Any]:
    """guarded(array): a copy between two pages that nobody may touch, ending or beginning there."""
    if sys.platform != "linux":
        pytest.skip("pages are protected with Linux's mprotect")
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE

    def copy(array: Any, at_end: bool = True) -> Any:
        inside = -(-array.nbytes // page) * page
        memory = mmap.mmap(-1, inside + 2 * page)
        base = np.frombuffer(memory, np.uint8).ctypes.data
        for forbidden in (base, base + page + inside):
            if mprotect(forbidden, page, 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        start = page + (inside - array.nbytes if at_end else 0)
        twin = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
        twin[...] = array
        return twin

    return copy


@pytest.fixture(scope="session")
def guarded_all(guarded: Callable[..., Any]) -> Callable[..., Arguments]:
    """guarded_all(arguments, at_end=True): the same, every array of them guarded."""

    def copy(given: Arguments, at_end: bool = True) -> Arguments:
        return {k: guarded(v, at_end) if isinstance(v, np.ndarray) else v for k, v in given.items()}

    return copy


# Arguments


@pytest.fixture(scope="session")
def arguments() -> Callable[..., Arguments]:
    """arguments(call, dtype, **sizes): by name, in order, what the kernel accepts."""
    return make


def check_cache(found: Any, given: Arguments, expected: Any, close: Callable[..., None]) -> None:
    """Check that each text's new rows are in its slot, and that no other row has changed."""
    if found.ndim == 4:  # of each block
        for one, other, before in zip(found, expected, given["kv"], strict=True):
            check_cache(one, given | {"kv": before}, other, close)
        return
    after = given["kv"].copy()
    texts = zip(pairwise(given["offsets"]), given["slots"], given["starts"], strict=True)
    for (first, stop), slot, start in texts:
        new = slice(start, start + stop - first)
        close(found[slot, new], expected[slot, new])
        after[slot, new] = found[slot, new]
    np.testing.assert_array_equal(found, after, err_msg="a row of kv was changed")


@pytest.fixture(scope="session")
def agrees(reference: SimpleNamespace, close: Callable[..., None]) -> Callable[..., None]:
    """agrees(compiled, kernel, arguments, factor=1): does what the reference does in float64.

    Outputs that are overwritten must not keep a NaN, and inputs not change by a bit.
    """

    def check(compiled: SimpleNamespace, kernel: str, given: Arguments, factor: float = 1) -> None:
        def near(one: Any, other: Any) -> None:
            close(one, other, factor)

        mine = copied(exactly(compiled, kernel, given))
        wide = widened(exactly(reference, kernel, given))
        found = getattr(compiled, kernel)(**mine)
        expected = getattr(reference, kernel)(**wide)
        assert (found is None) == (expected is None)
        if expected is not None:
            dtype = next(v.dtype for v in mine.values() if isinstance(v, np.ndarray))
            near(np.asarray(found, dtype), expected)
        for name, value in given.items():
            if not isinstance(value, np.ndarray) or name in OPAQUE:
                continue
            if name not in written(kernel):
                np.testing.assert_array_equal(mine[name], value, err_msg=f"{name} was changed")
            elif name == "kv":
                check_cache(mine[name], given, wide[name], near)
            else:
                near(mine[name], wide[name])

    return check
