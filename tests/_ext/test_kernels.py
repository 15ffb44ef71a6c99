"""Tests of what all kernels have in common: signatures, results, and the memory they touch."""

import inspect
import subprocess
import sys
import threading

import numpy as np
import pytest

from ..kernel_arguments import ARRAYS, CALLS, KERNELS, OPAQUE, TWINS, exactly, kernel_of, make

# Sizes of a second, larger call of each kernel.
LARGER = {
    "matrix_product": {"m": 13, "n": 67, "k": 31},
    "linear_forward": {"N": 67, "A": 33, "B": 65},
    "linear_backward": {"N": 67, "A": 33, "B": 65},
    "layer_norm_forward": {"N": 5, "C": 129},
    "layer_norm_backward": {"N": 5, "C": 129},
    "rms_norm_forward": {"N": 5, "C": 129},
    "rms_norm_backward": {"N": 5, "C": 129},
    "attention_forward": {"lengths": (0, 67, 1), "H": 3, "D": 7},
    "attention_backward": {"lengths": (0, 67, 1), "H": 3, "D": 7},
    "attention_decode": {"lengths": (0, 67, 1), "starts": (5, 2, 70), "H": 3, "D": 7},
    "block_forward": {"lengths": (0, 67, 1), "H": 3, "D": 7, "F": 33},
    "block_backward": {"lengths": (0, 67, 1), "H": 3, "D": 7, "F": 33},
    "decoder_forward": {
        "lengths": (3, 1, 8),
        "starts": (5, 70, 0),
        "H": 3,
        "D": 7,
        "F": 133,
        "V": 151,
    },
    "cross_entropy": {"N": 7, "V": 131},
    "linear_cross_entropy": {"N": 67, "C": 5, "V": 131, "R": 33},
    "dropout": {"N": 33, "C": 67},
    "embedding_forward": {"N": 33, "C": 67},
    "embedding_backward": {"N": 33, "C": 67},
    "relu_forward": {"N": 13, "F": 31},
    "relu_backward": {"N": 13, "F": 31},
    "gelu_forward": {"N": 13, "F": 31},
    "gelu_backward": {"N": 13, "F": 31},
    "swiglu_forward": {"N": 13, "F": 31},
    "swiglu_backward": {"N": 13, "F": 31},
    "rotary": {"lengths": (0, 67, 1), "H": 3, "D": 14},
    "softmax": {"N": 13, "F": 131},
    "sum_of_squares": {"P": 1031},
    "clip_by_global_norm": {"P": 1031},
    "add_into": {"P": 1031},
    "adam_step": {"P": 1031},
}
SIZES = [pytest.param({}, id="small"), pytest.param(LARGER, id="larger")]


def sizes_for(call, sizes):
    """Return the sizes of a call; a head that is turned has an even number of columns."""
    found = sizes.get(kernel_of(call), {})
    starts = {"starts": (5, 2, 70)} if "cache" in call and found else {}
    return found | starts | ({"D": 6} if "Llama" in call and found else {})


# Signatures


def test_kernels_and_twins_have_the_same_names_parameters_and_defaults(compiled):
    found = {name: f for name, f in vars(compiled).items() if callable(f)}
    assert sorted(found) == sorted(TWINS)
    for name, twin in TWINS.items():
        mine, theirs = inspect.signature(found[name]), inspect.signature(twin)
        assert list(mine.parameters) == list(theirs.parameters), name
        for parameter in theirs.parameters:
            ours = mine.parameters[parameter].default
            assert ours == theirs.parameters[parameter].default, f"{name}: {parameter}"
        assert found[name].__doc__, name
        assert twin.__doc__, name


def test_every_kernel_is_called_here():
    assert sorted(LARGER) == KERNELS
    sizes = {"attention", "block", "decoder"}
    assert set(TWINS) - set(KERNELS) == {"block_saved_size"} | {f"{n}_scratch_size" for n in sizes}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_array_is_given_as_it_is_annotated(kernel):
    calls = [make(call, "float32") for call in CALLS if kernel_of(call) == kernel]
    for name, array in ARRAYS[kernel].items():
        values = [given[name] for given in calls if given.get(name) is not None]
        assert values, f"no call gives {name}"
        assert {value.ndim for value in values} == {array.dimensions}
        assert {value.dtype.name for value in values} == {"int32" if array.indices else "float32"}
        # What is overwritten begins as NaN, and so does a cache where it is free.
        if not array.written and name not in OPAQUE:
            assert np.isfinite(np.concatenate([value.reshape(-1) for value in values])).all()


# Results


# What `block_backward` is given was saved by the same implementation: see test_block.py.
@pytest.mark.parametrize("call", [c for c in CALLS if kernel_of(c) != "block_backward"])
@pytest.mark.parametrize("sizes", SIZES)
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, call, sizes):
    kernel = kernel_of(call)
    agrees(compiled, kernel, arguments(call, dtype, **sizes_for(call, sizes)))


def test_denormals_pass_through_the_kernels(compiled, dtype):
    x = np.full((1, 20), {"float32": 1e-40, "float64": 1e-310}[dtype], dtype)
    out = np.zeros_like(x)
    compiled.relu_forward(x, out)
    np.testing.assert_array_equal(out, x)
    compiled.add_into(x[0], out[0])
    np.testing.assert_array_equal(out, 2 * x)


@pytest.mark.parametrize("kernel", ["softmax", "matrix_product", "adam_step"])
def test_kernels_let_other_threads_run(compiled, arguments, kernel):
    sizes = {"softmax": {"N": 300, "F": 1000}, "adam_step": {"P": 300_000}}
    given = arguments(kernel, "float64", **sizes.get(kernel, {"m": 200, "n": 200, "k": 200}))
    ready, seen, before = threading.Event(), [], sys.getswitchinterval()

    def other():
        ready.wait()
        seen.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        sys.setswitchinterval(1e3)  # this thread keeps Python's lock, unless a kernel gives it up
        ready.set()
        for _ in range(2000):
            if seen:
                break
            getattr(compiled, kernel)(**given)
        assert seen
    finally:
        sys.setswitchinterval(before)
        thread.join()


# Memory


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_an_array_is_touched(
    compiled, arguments, guarded_all, close, dtype, call, sizes, at_end
):
    kernel = kernel_of(call)
    given = exactly(compiled, kernel, arguments(call, dtype, **sizes_for(call, sizes)))
    inside = guarded_all(given, at_end)
    getattr(compiled, kernel)(**given)
    getattr(compiled, kernel)(**inside)  # a step outside ends the process
    for name in [name for name in ARRAYS[kernel] if name not in OPAQUE]:
        value = given.get(name)
        if value is not None:
            np.testing.assert_array_equal(np.isnan(inside[name]), np.isnan(value))
            close(np.nan_to_num(inside[name]).astype(dtype), np.nan_to_num(value))


def test_the_guard_itself_works(guarded):
    code = (
        "import ctypes, mmap, numpy as np\n"
        "m = mmap.mmap(-1, 2 * mmap.PAGESIZE); a = np.frombuffer(m, np.uint8)\n"
        "f = ctypes.CDLL(None).mprotect\n"
        "f.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n"
        "f(a.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, 0); a[mmap.PAGESIZE - 1] = 1\n"
        "print('inside', flush=True); a[mmap.PAGESIZE] = 1; print('outside')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["inside"]
    assert result.returncode != 0


@pytest.mark.parametrize("call", CALLS)
def test_inputs_may_be_read_only(compiled, arguments, call):
    kernel = kernel_of(call)
    plain, given = arguments(call, "float32"), arguments(call, "float32")
    for name, array in ARRAYS[kernel].items():
        if not array.written and given.get(name) is not None:
            given[name].flags.writeable = False
    getattr(compiled, kernel)(**plain)
    getattr(compiled, kernel)(**given)
    for name in [name for name in ARRAYS[kernel] if name not in OPAQUE]:
        np.testing.assert_array_equal(given.get(name), plain.get(name))
