"""Tests of what all kernels have in common: how they are found, checked, and kept inside arrays."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rustgpt._ext.cpu import instruction_sets

import rustgpt.reference
from rustgpt._ext import instruction_set
from rustgpt.errors import ConfigError

REFERENCE = rustgpt.reference.kernels()
INDICES = ("ids", "targets", "offsets", "edges")
# Every argument that is an array, of every kernel: the twins' types say "Annotated" of those alone.
ARRAYS = [
    (kernel, name)
    for kernel, function in sorted(REFERENCE.items())
    for name, parameter in inspect.signature(function).parameters.items()
    if "Annotated" in str(parameter.annotation)
]
KERNELS = sorted({kernel for kernel, _ in ARRAYS})
MAY_BE_NONE = {
    ("linear_forward", "bias"), ("linear_backward", "dx"), ("linear_backward", "dbias"),
    ("linear_cross_entropy", "bias"), ("linear_cross_entropy", "dbias"),
    ("linear_cross_entropy", "dx"), ("linear_cross_entropy", "dweight"),
}  # fmt: skip
# Sizes of what a second, larger call has; the first has the default ones.
LARGER = {
    "matrix_product": {"m": 13, "n": 67, "k": 31},
    "matrix_vector_product": {"m": 67, "n": 131},
    "linear_forward": {"N": 67, "A": 33, "B": 65},
    "linear_backward": {"N": 67, "A": 33, "B": 65},
    "layer_norm_forward": {"N": 5, "C": 129},
    "layer_norm_backward": {"N": 5, "C": 129},
    "attention_forward": {"lengths": (0, 67, 1), "H": 3, "D": 7},
    "attention_backward": {"lengths": (0, 67, 1), "H": 3, "D": 7},
    "attention_decode": {"n": 67, "start": 2, "capacity": 69, "H": 3, "D": 7},
    "block_decode": {"n": 67, "start": 2, "capacity": 69, "H": 3, "D": 7, "F": 33},
    "block_forward": {"lengths": (0, 67, 1), "H": 3, "D": 7, "F": 33},
    "block_backward": {"lengths": (0, 67, 1), "H": 3, "D": 7, "F": 33},
    "cross_entropy": {"N": 7, "V": 131},
    "linear_cross_entropy": {"N": 67, "C": 5, "V": 131, "R": 33},
    "embedding_forward": {"N": 33, "C": 67},
    "embedding_backward": {"N": 33, "C": 67},
    "relu_forward": {"N": 13, "F": 31},
    "relu_backward": {"N": 13, "F": 31},
    "gelu_forward": {"N": 13, "F": 31},
    "gelu_backward": {"N": 13, "F": 31},
    "softmax": {"N": 13, "F": 131},
    "sum_of_squares": {"P": 1031},
    "clip_by_global_norm": {"P": 1031},
    "add_into": {"P": 1031},
    "adam_step": {"P": 1031},
}


# Finding them


def test_kernels_and_twins_have_the_same_names_parameters_and_defaults(compiled):
    found = {name: f for name, f in vars(compiled).items() if callable(f)}
    assert sorted(found) == sorted(REFERENCE)
    for name, twin in REFERENCE.items():
        mine, theirs = inspect.signature(found[name]), inspect.signature(twin)
        assert list(mine.parameters) == list(theirs.parameters), name
        for parameter in theirs.parameters:
            ours = mine.parameters[parameter].default
            assert ours == theirs.parameters[parameter].default, f"{name}: {parameter}"
        assert found[name].__doc__, name
        assert twin.__doc__, name


def test_every_kernel_is_called_here(kernel_names):
    assert sorted(kernel_names) == KERNELS
    assert sorted(LARGER) == KERNELS
    without_arrays = set(REFERENCE) - set(KERNELS)
    sizes = {"attention_scratch_size", "block_kept_size", "block_scratch_size"}
    assert without_arrays == sizes


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


@pytest.mark.parametrize("kernel", ["add_into", "relu_forward"])
def test_denormals_pass_through_the_kernels(compiled, kernel):
    for dtype, tiny in (("float32", 1e-40), ("float64", 1e-310)):
        x, out = np.full((1, 20), tiny, dtype), np.zeros((1, 20), dtype)
        if kernel == "add_into":
            compiled.add_into(x[0], out[0])
        else:
            compiled.relu_forward(x, out)
        np.testing.assert_array_equal(out, x)


# Memory


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("larger", [False, True])
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, kernel, larger):
    if kernel == "block_backward":
        pytest.skip("it takes what its own block_forward kept: see test_block.py")
    agrees(compiled, kernel, arguments(kernel, dtype, **LARGER[kernel] if larger else {}), 3)


def exact_scratch(compiled, kernel, given):
    """Return as much scratch as the kernel asks for, and no number more."""
    if kernel == "linear_cross_entropy":
        return given["scratch"]
    if kernel.startswith("block"):
        (n, C), F = given["x"].shape, given["hidden_dim"]
        longest = given["start"] + n if "start" in given else np.diff(given["offsets"]).max()
        size = compiled.block_scratch_size(n, int(longest), C, F)
    elif kernel == "attention_decode":
        n, C = given["out"].shape
        size = compiled.attention_scratch_size(given["start"] + n, C // given["n_heads"])
    else:
        D = given["qkv"].shape[1] // 3 // given["n_heads"]
        size = compiled.attention_scratch_size(int(np.diff(given["offsets"]).max()), D)
    return np.full(size, np.nan, given["scratch"].dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_an_array_is_touched(
    compiled, arguments, guarded, dtype, kernel, larger, at_end
):
    given = arguments(kernel, dtype, **LARGER[kernel] if larger else {})
    if "scratch" in given:
        given["scratch"] = exact_scratch(compiled, kernel, given)
    inside = {k: guarded(v, at_end) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    getattr(compiled, kernel)(**given)
    getattr(compiled, kernel)(**inside)  # a step outside ends the process
    for name, value in given.items():
        if isinstance(value, np.ndarray) and name not in ("scratch", "kept"):
            np.testing.assert_allclose(inside[name], value, rtol=1e-5, atol=1e-6)


def test_the_guard_itself_works():
    code = (
        "import ctypes, mmap, numpy as np\n"
        "m = mmap.mmap(-1, 2 * mmap.PAGESIZE); a = np.frombuffer(m, np.uint8)\n"
        "f = ctypes.CDLL(None).mprotect\n"
        "f.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "f(a.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, 0); a[mmap.PAGESIZE - 1] = 1\n"
        "print('inside', flush=True); a[mmap.PAGESIZE] = 1; print('outside')"
    )
    if sys.platform != "linux":
        pytest.skip("pages are protected with Linux's mprotect")
    result = python(code)
    assert result.stdout.split() == ["inside"]
    assert result.returncode != 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_may_be_read_only(compiled, arguments, kernel, written_arguments):
    plain, given = arguments(kernel, "float32"), arguments(kernel, "float32")
    for name, value in given.items():
        if isinstance(value, np.ndarray) and name not in written_arguments(kernel):
            value.flags.writeable = False
    getattr(compiled, kernel)(**plain)
    getattr(compiled, kernel)(**given)
    for name, value in plain.items():
        if name not in ("scratch", "kept"):
            np.testing.assert_array_equal(given[name], value)


# Errors


def error_of(compiled, kernel, given, change):
    """Return the message of the error that a call with changed arguments gives."""
    wrong = given | change
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(compiled, kernel)(**wrong)
    message = str(caught.value)
    assert message.startswith(f"{kernel}: "), message
    return caught.type, message


@pytest.fixture
def refuses(compiled, arguments, kernel, argument):
    """refuses(value_of, errors): the kernel refuses value_of(argument), and names the argument."""

    def check(value_of, *expected):
        given = arguments(kernel, "float32")
        kept = {k: v.copy() for k, v in given.items() if isinstance(v, np.ndarray)}
        kind, message = error_of(compiled, kernel, given, {argument: value_of(given[argument])})
        assert kind in expected
        assert re.match(rf"{kernel}: (Argument )?'?{argument}'? must", message), message
        for name, value in kept.items():
            np.testing.assert_array_equal(given[name], value, err_msg=f"{name} was changed")

    return check


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_a_wrong_dtype_is_refused(refuses, argument):
    others = ["float32", "int64", ">i4"] if argument in INDICES else ["float16", "int64", ">f4"]
    for other in others:
        refuses(lambda value, other=other: np.zeros(value.shape, other), TypeError)


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_what_is_no_array_is_refused(refuses, kernel, argument):
    refuses(lambda value: value.tolist(), TypeError)
    refuses(lambda value: 3.0, TypeError)
    refuses(lambda value: 3, TypeError)
    refuses(lambda value: "text", TypeError)
    if (kernel, argument) not in MAY_BE_NONE:
        refuses(lambda value: None, TypeError)


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_wrong_dimensions_are_refused(refuses):
    refuses(lambda value: value[None].copy(), ValueError, TypeError)
    refuses(lambda value: np.array(1, value.dtype), ValueError, TypeError)


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_what_is_not_contiguous_is_refused(refuses):
    refuses(lambda value: np.repeat(value, 2, axis=-1)[..., ::2], ValueError)


# Each shape in turn is what the others are measured by.
GIVES_THE_SIZE = {
    ("sum_of_squares", "x"), ("clip_by_global_norm", "gradients"), ("attention_decode", "scratch"),
    ("attention_forward", "scratch"), ("attention_backward", "scratch"),
    ("embedding_forward", "tokens"), ("embedding_forward", "places"),
    ("block_decode", "x"), ("block_decode", "scratch"), ("block_forward", "scratch"),
    ("block_backward", "scratch"), ("linear_cross_entropy", "scratch"), ("adam_step", "edges"),
    ("embedding_backward", "dtokens"), ("embedding_backward", "dplaces"),
}  # fmt: skip


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_a_wrong_shape_is_refused(compiled, arguments, kernel, argument):
    for axis in range(arguments(kernel, "float32")[argument].ndim):
        for change in (1, -1):
            given = arguments(kernel, "float32")
            value = given[argument]
            if (kernel, argument) in GIVES_THE_SIZE and (axis == 0 or value.ndim == 1):
                continue
            shape = list(value.shape)
            shape[axis] += change
            kind, message = error_of(
                compiled, kernel, given, {argument: np.ones(shape, value.dtype)}
            )
            assert kind is ValueError
            assert re.search("shape|offsets|columns", message), message


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_an_output_that_cannot_be_written_is_refused(refuses, kernel, argument, written_arguments):
    if argument not in written_arguments(kernel):
        return

    def sealed(value):
        value = value.copy()
        value.flags.writeable = False
        return value

    refuses(sealed, TypeError)
    refuses(lambda value: value.dtype.type(1), TypeError)
    refuses(lambda value: np.array(1, value.dtype), TypeError)


@pytest.mark.parametrize(("kernel", "argument"), ARRAYS)
def test_a_misaligned_array_is_refused(refuses):
    def shifted(value):
        raw = bytearray(b"\0" + value.tobytes())
        return np.frombuffer(raw, value.dtype, value.size, 1).reshape(value.shape)

    refuses(shifted, TypeError)


SIZES = {
    "attention_scratch_size": (7, 4),
    "block_kept_size": (7, 8, 16, 2, True, True),
    "block_scratch_size": (7, 5, 8, 16, 2),
}


@pytest.mark.parametrize("kernel", SIZES)
def test_giant_sizes_are_refused_and_never_overflow(compiled, kernel):
    size = getattr(compiled, kernel)
    assert size(*SIZES[kernel]) > 0
    names = list(inspect.signature(REFERENCE[kernel]).parameters)
    for i, right in enumerate(SIZES[kernel]):
        for wrong in (-1, 2**31, 2**40, 2**62, 2**63 - 1):
            if type(right) is int:
                with pytest.raises(ValueError, match=f"{kernel}: {names[i]} must be from"):
                    size(*SIZES[kernel][:i], wrong, *SIZES[kernel][i + 1 :])
    largest = [2**31 - 1 if type(given) is int else given for given in SIZES[kernel]]
    if kernel == "attention_scratch_size":
        assert size(*largest) >= sum(largest)
    else:
        with pytest.raises(ValueError, match="are too many"):
            size(*largest)


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_calls_name_the_kernel(compiled, arguments, kernel):
    given = arguments(kernel, "float32")
    function, last = getattr(compiled, kernel), next(iter(given))
    with pytest.raises(TypeError, match=rf"{kernel}: .*'{last}'"):
        function(**{k: v for k, v in given.items() if k != last})
    with pytest.raises(TypeError, match=rf"{kernel}: .*'colour'"):
        function(**given, colour=1)
    with pytest.raises(TypeError, match=rf"{kernel}: too many"):
        function(*given.values(), *[None] * 20)


SCALARS = [
    (kernel, name)
    for kernel in KERNELS
    for name, parameter in inspect.signature(REFERENCE[kernel]).parameters.items()
    if parameter.annotation in (int, float, "int", "float")
]


@pytest.mark.parametrize(("kernel", "argument"), SCALARS)
def test_a_scalar_that_is_no_number_is_refused(refuses):
    refuses(lambda value: "three", TypeError)
    refuses(lambda value: None, TypeError)
    refuses(lambda value: np.ones(3), TypeError)


@pytest.mark.parametrize("wrong", [-2, -(2**31), 4, 2**31 - 1])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("kernel", ["cross_entropy", "linear_cross_entropy"])
def test_a_target_outside_the_vocabulary_is_refused(compiled, arguments, kernel, wrong, at):
    given = arguments(kernel, "float32")
    given["targets"][at] = wrong
    kind, message = error_of(compiled, kernel, given, {})
    assert kind is ValueError
    assert f"targets[{at}] is {wrong}, but must be at least -1 and below 4" in message
    assert np.isnan(given["losses"]).all()  # refused before anything is written


@pytest.mark.parametrize(
    "kernel", ["attention_forward", "attention_backward", "block_forward", "block_backward"]
)
@pytest.mark.parametrize(
    "wrong", [[], [0], [1, 4], [0, 3], [0, 5], [-1, 4], [0, 3, 2, 4], [0, -1, 4], [0, 9, 4], [4]]
)
def test_offsets_must_rise_from_zero_to_the_number_of_rows(compiled, arguments, kernel, wrong):
    given = arguments(kernel, "float32")
    given["offsets"] = np.array(wrong, np.int32)
    kind, message = error_of(compiled, kernel, given, {})
    assert kind is ValueError
    assert "offsets" in message


@pytest.mark.parametrize("wrong", [[3, 2], [-1], [8], [0, 9], [2**31 - 1]])
def test_edges_must_rise_inside_the_buffer(compiled, arguments, wrong):
    change = {"edges": np.array(wrong, np.int32)}  # of seven parameters
    kind, message = error_of(compiled, "adam_step", arguments("adam_step", "float32"), change)
    assert kind is ValueError
    assert "edges[" in message


ATTENTION = ["attention_forward", "attention_backward", "attention_decode"]


@pytest.mark.parametrize("kernel", ATTENTION)
def test_scratch_must_be_large_enough(compiled, arguments, kernel):
    given = arguments(kernel, "float32")
    length = 5 if kernel == "attention_decode" else 3
    enough = compiled.attention_scratch_size(length, 3)
    given["scratch"] = np.empty(enough, "float32")
    getattr(compiled, kernel)(**given)
    kind, message = error_of(compiled, kernel, given, {"scratch": given["scratch"][:-1]})
    assert kind is ValueError
    assert f"scratch must hold attention_scratch_size({length}, 3) = {enough}" in message


@pytest.mark.parametrize("kernel", [*ATTENTION, "block_forward", "block_backward", "block_decode"])
@pytest.mark.parametrize("wrong", [0, -1, 4, 7, 2**62])
def test_heads_must_divide_the_columns(compiled, arguments, kernel, wrong):
    kind, message = error_of(compiled, kernel, arguments(kernel, "float32"), {"n_heads": wrong})
    assert kind is ValueError
    assert f"n_heads must divide the 6 columns, got {wrong}" in message


@pytest.mark.parametrize("kernel", ["attention_decode", "block_decode"])
@pytest.mark.parametrize("wrong", [-1, 5, 6, 2**31, 2**62, 2**63 - 1, -(2**63)])
def test_decoding_stays_inside_its_cache(compiled, arguments, kernel, wrong):
    given = arguments(kernel, "float32")  # two rows into a cache of six
    kind, message = error_of(compiled, kernel, given, {"start": wrong})
    assert kind is ValueError
    assert f"start must leave room for 2 rows in a cache of 6, got {wrong}" in message


def test_numbers_too_large_for_the_machine_are_refused(compiled, arguments):
    given = arguments("attention_forward", "float32")
    kind, _ = error_of(compiled, "attention_forward", given, {"n_heads": 2**70})
    assert kind is ValueError


def test_kernels_let_other_threads_run(compiled):
    # While one call runs, a thread that needs Python's lock gets on.
    x = np.ones((2_000, 2_000))
    out, ticks, done = np.empty_like(x), [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    compiled.softmax(x, out)
    ended = time.perf_counter()
    done.set()
    thread.join()
    inside = [t for t in ticks if began < t < ended]
    assert ended - began < 0.004 or len(inside) >= 2


def test_the_kernels_load_nothing_of_scipy_but_its_blas():
    script = """
import sys
import rustgpt.backend
rustgpt.backend.backend_name()
assert "scipy.linalg.cython_blas" in sys.modules
assert "scipy.linalg" not in sys.modules
import scipy.linalg, numpy
from scipy.linalg import cython_blas
assert sys.modules["scipy.linalg.cython_blas"] is cython_blas
x = numpy.array([[2.0, 1.0], [1.0, 2.0]])
assert numpy.allclose(scipy.linalg.eigvalsh(x), [1, 3])
"""
    environment = {**os.environ, "RUSTGPT_BACKEND": "cython"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
