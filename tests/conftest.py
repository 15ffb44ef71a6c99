"""Owns what the tests share: kernels, tolerances, guarded memory, layers' contract, a tokenizer."""

import ctypes
import mmap
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rustgpt._ext.cpu

import rustgpt._ext
import rustgpt.reference
from rustgpt import workers
from rustgpt._ext import block
from rustgpt.backend import BACKENDS, backend_name, explained_kernels, use_backend
from rustgpt.config import ModelConfig
from rustgpt.layers import team
from rustgpt.layers.layer import Cache
from rustgpt.reference.share import Barrier

# What rounding may cost, as a share of the largest number of an array (and of 1 at least).
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
# Central differences in float64: what may be missing, and as a share of the derivative.
STEP, ABSOLUTE, RELATIVE = 1e-5, 1e-8, 1e-6
LEVELS = ("plain", *reversed(rustgpt._ext.cpu.instruction_sets()))

Arguments = dict[str, Any]


# Which implementation runs


GRID = 40  # cases from which on a test is a grid of shapes and options


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of grids, which `-m "not grid"` leaves out."""
    names = [item.nodeid.partition("[")[0] for item in items]
    cases = Counter(names)
    for item, name in zip(items, names, strict=True):
        if cases[name] >= GRID:
            item.add_marker(pytest.mark.grid)


def _compiled(level: str) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUSTGPT_SIMD", level)
        return SimpleNamespace(**explained_kernels(), level=level)


@pytest.fixture(scope="session", params=LEVELS)
def compiled(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The compiled kernels, for each instruction set that this processor has."""
    return _compiled(request.param)


@pytest.fixture(scope="session")
def bfloat16() -> SimpleNamespace:
    """The compiled kernels that multiply bfloat16; where nobody has them, the test is skipped."""
    if not rustgpt._ext.cpu.has_bfloat16():
        pytest.skip("this processor has no AVX512-BF16")
    return _compiled("avx512")


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """The kernels in plain NumPy."""
    return SimpleNamespace(**rustgpt.reference.kernels(), level="reference")


@pytest.fixture(scope="session", params=("reference", *LEVELS))
def kernels(request: pytest.FixtureRequest, reference: SimpleNamespace) -> SimpleNamespace:
    """Every implementation of the kernels, the reference among them."""
    return reference if request.param == "reference" else _compiled(request.param)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, for what runs on `rustgpt.ops`; the one before is put back."""
    before = backend_name()
    use_backend(request.param)
    yield request.param
    use_backend(before)


@pytest.fixture
def switch_backend() -> Iterator[Callable[[str], None]]:
    """`use_backend`, with the backend before put back at the end."""
    before = backend_name()
    yield use_backend
    use_backend(before)


@pytest.fixture(params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> str:
    """Both floating types."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test."""
    return np.random.default_rng(20240229)


# What is equal


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """close(found, expected, factor=1): finite, and equal within the tolerance of found's dtype."""

    def check(found: Any, expected: Any, factor: float = 1.0) -> None:
        found, expected = np.asarray(found), np.asarray(expected, np.float64)
        assert found.shape == expected.shape
        assert np.isfinite(found).all(), f"not finite: {found}"
        allowed = factor * TOLERANCE[found.dtype.name] * max(1.0, np.abs(expected).max(initial=0))
        error = np.abs(found - expected).max(initial=0)
        assert error <= allowed, f"off by {error:g}, allowed are {allowed:g}"

    return check


@pytest.fixture(scope="session")
def same_gradient() -> Callable[..., None]:
    """same_gradient(found, function, x): found is d function() / dx, by central differences."""

    def check(found: Any, function: Callable[[], float], x: Any) -> None:
        assert x.dtype == np.float64
        expected, flat = np.empty(x.size), x.reshape(-1)
        for i in range(x.size):
            kept = flat[i]
            flat[i] = kept + STEP
            above = function()
            flat[i] = kept - STEP
            below = function()
            flat[i] = kept
            expected[i] = (above - below) / (2 * STEP)
        error = np.abs(found.reshape(-1) - expected)
        worst = (error / (ABSOLUTE + RELATIVE * np.abs(expected))).max(initial=0)
        assert worst <= 1, f"{worst:g} of the tolerance: found {found}, expected {expected}"

    return check


# Memory


@pytest.fixture
def blank() -> Callable[..., Any]:
    """blank(*shape, dtype): an array full of NaN, to be overwritten."""

    def make(*shape: int, dtype: str) -> Any:
        return np.full(shape, np.nan, dtype)

    return make


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


@pytest.fixture(autouse=True)
def nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Let a test fail whose threads do not meet, instead of waiting for ever.

    nobody_waits_for_ever(barrier): a barrier that the package's functions did not make.
    """
    limit, broken = 60.0, []

    class Limited(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            began = time.monotonic()
            try:
                return super().wait(limit)
            except threading.BrokenBarrierError:
                if time.monotonic() - began >= limit:
                    broken.append(self)
                raise

    def watched(barrier: Any) -> Any:
        made.append(barrier)
        if len(made) == 1:
            timer.start()
        return barrier

    def barrier(n: int) -> Barrier:
        return watched(original(n))

    def give_up() -> None:
        broken.extend(made)
        for barrier in made:
            barrier.abort()

    original, made = team.barrier, list[Any]()
    timer = threading.Timer(limit, give_up)
    monkeypatch.setattr(threading, "Barrier", Limited)
    for module in (team, workers):
        monkeypatch.setattr(module, "barrier", barrier)
    yield watched
    timer.cancel()
    assert not broken, "a thread waited for one that never came"


# A call of every kernel

# Arguments that a kernel overwrites, and those that it adds to or changes in place.
OVERWRITTEN = {
    "matrix_product": ("out",),
    "matrix_vector_product": ("out",),
    "linear_forward": ("out",),
    "linear_backward": ("dx",),
    "relu_forward": ("out",),
    "relu_backward": ("dx",),
    "gelu_forward": ("out",),
    "gelu_backward": ("dx",),
    "layer_norm_forward": ("out", "mean", "rstd"),
    "layer_norm_backward": ("dx",),
    "attention_forward": ("out", "lse"),
    "attention_backward": ("dqkv",),
    "attention_decode": ("out",),
    "block_forward": ("out", "kept"),
    "block_backward": ("dx",),
    "block_decode": (),
    "softmax": ("out",),
    "cross_entropy": ("losses", "dlogits"),
    "linear_cross_entropy": ("losses", "dx"),
    "embedding_forward": ("out",),
    "embedding_backward": (),
    "sum_of_squares": (),
    "clip_by_global_norm": (),
    "add_into": (),
    "adam_step": (),
}
CHANGED = {
    "linear_backward": ("dweight", "dbias"),
    "layer_norm_backward": ("dweight", "dbias"),
    "attention_decode": ("keys", "values"),
    "block_backward": ("dparameters",),
    "block_decode": ("x", "keys", "values"),
    "linear_cross_entropy": ("dweight", "dbias"),
    "embedding_backward": ("dtokens", "dplaces"),
    "clip_by_global_norm": ("gradients",),
    "add_into": ("out",),
    "adam_step": ("parameters", "m", "v"),
}
# What `block_forward` keeps is laid out by each implementation in its own way.
SCRATCH = ("scratch", "kept")


class Maker:
    """Makes arguments that a kernel accepts: `Maker("float32").linear_forward(N=3, A=4, B=5)`."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def positive(self, *shape: int) -> Any:
        return self.rng.uniform(0.5, 2.0, shape).astype(self.dtype)

    def blank(self, *shape: int) -> Any:
        return np.full(shape, np.nan, self.dtype)

    def indices(self, limit: int, n: int, lowest: int = 0) -> Any:
        return self.rng.integers(lowest, limit, n, dtype=np.int32)

    def matrix_product(
        self, m: int = 3, n: int = 4, k: int = 5, trans_a: bool = False, trans_b: bool = False,
        alpha: float = 1.0, beta: float = 0.0,
    ) -> Arguments:  # fmt: skip
        return {
            "a": self.normal(*((k, m) if trans_a else (m, k))),
            "b": self.normal(*((n, k) if trans_b else (k, n))),
            "out": self.normal(m, n) if beta else self.blank(m, n),
            "trans_a": trans_a, "trans_b": trans_b, "alpha": alpha, "beta": beta,
        }  # fmt: skip

    def matrix_vector_product(
        self, m: int = 3, n: int = 4, trans_a: bool = False, alpha: float = 1.0, beta: float = 0.0
    ) -> Arguments:
        rows, columns = (n, m) if trans_a else (m, n)
        return {
            "a": self.normal(m, n),
            "x": self.normal(columns),
            "out": self.normal(rows) if beta else self.blank(rows),
            "trans_a": trans_a, "alpha": alpha, "beta": beta,
        }  # fmt: skip

    def linear_forward(
        self, N: int = 3, A: int = 4, B: int = 5, transposed: bool = False, bias: bool = True
    ) -> Arguments:
        return {
            "x": self.normal(N, A),
            "weight": self.normal(*((B, A) if transposed else (A, B))),
            "bias": self.normal(B) if bias else None,
            "out": self.blank(N, B),
            "transposed": transposed,
        }

    def linear_backward(
        self, N: int = 3, A: int = 4, B: int = 5, transposed: bool = False, bias: bool = True,
        with_dx: bool = True,
    ) -> Arguments:  # fmt: skip
        shape = (B, A) if transposed else (A, B)
        return {
            "dout": self.normal(N, B),
            "x": self.normal(N, A),
            "weight": self.normal(*shape),
            "dx": self.blank(N, A) if with_dx else None,
            "dweight": self.normal(*shape),
            "dbias": self.normal(B) if bias else None,
            "transposed": transposed,
        }

    def relu_forward(self, N: int = 3, F: int = 4) -> Arguments:
        return {"x": self.normal(N, F), "out": self.blank(N, F)}

    def relu_backward(self, N: int = 3, F: int = 4) -> Arguments:
        return {"dout": self.normal(N, F), "x": self.normal(N, F), "dx": self.blank(N, F)}

    gelu_forward = relu_forward
    gelu_backward = relu_backward
    softmax = relu_forward

    def layer_norm_forward(self, N: int = 3, C: int = 4, epsilon: float = 1e-5) -> Arguments:
        return {
            "x": 2 * self.normal(N, C) + 1,
            "weight": self.normal(C),
            "bias": self.normal(C),
            "epsilon": epsilon,
            "out": self.blank(N, C),
            "mean": self.blank(N),
            "rstd": self.blank(N),
        }

    def layer_norm_backward(self, N: int = 3, C: int = 4) -> Arguments:
        x = 2 * self.normal(N, C) + 1
        return {
            "dout": self.normal(N, C),
            "x": x,
            "weight": self.normal(C),
            "mean": x.mean(axis=1),
            "rstd": 1 / np.sqrt(x.var(axis=1) + np.asarray(1e-5, self.dtype)),
            "dx": self.blank(N, C),
            "dweight": self.normal(C),
            "dbias": self.normal(C),
        }

    def attention_forward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3
    ) -> Arguments:
        N, C = sum(lengths), H * D
        return {
            "qkv": self.normal(N, 3 * C),
            "offsets": np.cumsum([0, *lengths], dtype=np.int32),
            "n_heads": H,
            "out": self.blank(N, C),
            "lse": self.blank(N, H),
            "scratch": self.blank(128 * (max(lengths, default=0) + D)),
            "first_head": 0,
            "stop_head": -1,
        }

    def attention_backward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3
    ) -> Arguments:
        N, C = sum(lengths), H * D
        forward = self.attention_forward(lengths, H, D)
        wide = {k: v.astype(np.float64) if k == "qkv" else v for k, v in forward.items()}
        wide["out"], wide["lse"] = np.empty((N, C)), np.empty((N, H))
        rustgpt.reference.kernels()["attention_forward"](**wide)
        return {
            "dout": self.normal(N, C),
            "qkv": forward["qkv"],
            "lse": wide["lse"].astype(self.dtype),
            "offsets": forward["offsets"],
            "n_heads": H,
            "dqkv": self.blank(N, 3 * C),
            "scratch": forward["scratch"],
            "first_head": 0,
            "stop_head": -1,
        }

    def attention_decode(
        self, n: int = 2, start: int = 3, capacity: int = 6, H: int = 2, D: int = 3
    ) -> Arguments:
        C = H * D
        keys, values = self.normal(capacity, C), self.normal(capacity, C)
        keys[start:] = values[start:] = np.nan
        return {
            "qkv": self.normal(n, 3 * C),
            "keys": keys,
            "values": values,
            "start": start,
            "n_heads": H,
            "out": self.blank(n, C),
            "scratch": self.blank(128 * (start + n + D)),
        }

    def block(
        self, H: int, D: int, F: int, pre_norm: bool, gelu: bool, projection: bool, bias: bool
    ) -> Arguments:
        C = H * D
        size = 3 * C * C + 2 * C * F + F + 5 * C
        size += projection * C * C + bias * (3 * C + projection * C)
        return {
            "parameters": self.normal(size),
            "n_heads": H,
            "hidden_dim": F,
            "pre_norm": pre_norm,
            "gelu": gelu,
            "projection": projection,
            "bias": bias,
            "epsilon1": 1e-3,
            "epsilon2": 0.3,
        }

    def block_forward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3, F: int = 7,
        pre_norm: bool = False, gelu: bool = False, projection: bool = True, bias: bool = True,
    ) -> Arguments:  # fmt: skip
        N, C, longest = sum(lengths), H * D, max(lengths, default=0)
        return {
            "x": self.normal(N, C),
            "offsets": offsets_of(lengths),
            **self.block(H, D, F, pre_norm, gelu, projection, bias),
            "out": self.blank(N, C),
            "kept": self.blank(block.block_kept_size(N, C, F, H, pre_norm, projection)),
            "scratch": self.blank(block.block_scratch_size(N, longest, C, F)),
        }

    def block_backward(
        self, lengths: Sequence[int] = (3, 0, 1), H: int = 2, D: int = 3, F: int = 7,
        pre_norm: bool = False, gelu: bool = False, projection: bool = True, bias: bool = True,
    ) -> Arguments:  # fmt: skip
        given = self.block_forward(lengths, H, D, F, pre_norm, gelu, projection, bias)
        out, kept, scratch = (given.pop(name) for name in ("out", "kept", "scratch"))
        return {
            "dout": self.normal(*out.shape),
            **given,
            "kept": self.normal(kept.size),
            "dx": out,
            "dparameters": self.normal(given["parameters"].size),
            "scratch": scratch,
        }

    def block_decode(
        self, n: int = 2, start: int = 3, capacity: int = 6, H: int = 2, D: int = 3, F: int = 7,
        pre_norm: bool = False, gelu: bool = False, projection: bool = True, bias: bool = True,
    ) -> Arguments:  # fmt: skip
        C = H * D
        keys, values = self.normal(capacity, C), self.normal(capacity, C)
        keys[start:] = values[start:] = np.nan
        return {
            "x": self.normal(n, C),
            **self.block(H, D, F, pre_norm, gelu, projection, bias),
            "start": start,
            "keys": keys,
            "values": values,
            "scratch": self.blank(block.block_scratch_size(n, start + n, C, F)),
        }

    def cross_entropy(
        self, N: int = 3, V: int = 4, scale: float = 0.25, max_norm: float = np.inf
    ) -> Arguments:
        return {
            "logits": 3 * self.normal(N, V),
            "targets": self.indices(V, N, -1),
            "scale": scale,
            "max_norm": max_norm,
            "losses": self.blank(N),
            "dlogits": self.blank(N, V),
        }

    def linear_cross_entropy(
        self, N: int = 5, C: int = 3, V: int = 4, R: int = 2, transposed: bool = False,
        bias: bool = True, gradient: bool = True, max_norm: float = np.inf,
    ) -> Arguments:  # fmt: skip
        shape = (V, C) if transposed else (C, V)
        return {
            "x": self.normal(N, C),
            "weight": self.normal(*shape),
            "bias": self.normal(V) if bias else None,
            "targets": self.indices(V, N, -1),
            "scale": 0.25,
            "max_norm": max_norm,
            "losses": self.blank(N),
            "dx": self.blank(N, C) if gradient else None,
            "dweight": self.normal(*shape) if gradient else None,
            "dbias": self.normal(V) if gradient and bias else None,
            "scratch": self.blank(R, V),
            "transposed": transposed,
        }

    def texts(self, N: int, longest: int) -> np.ndarray:
        """Return the edges of texts, the first of them empty, that have N rows."""
        return np.array([0, *range(0, N, longest), N], np.int32)

    def embedding_forward(
        self, N: int = 4, V: int = 5, S: int = 6, C: int = 3, start: int = 0
    ) -> Arguments:
        return {
            "ids": self.indices(V, N),
            "offsets": self.texts(N, S - start),
            "start": start,
            "tokens": self.normal(V, C),
            "places": self.normal(S, C),
            "out": self.blank(N, C),
        }

    def embedding_backward(self, N: int = 4, V: int = 5, S: int = 6, C: int = 3) -> Arguments:
        return {
            "dout": self.normal(N, C),
            "ids": self.indices(V, N),
            "offsets": self.texts(N, S),
            "dtokens": self.normal(V, C),
            "dplaces": self.normal(S, C),
        }

    def sum_of_squares(self, P: int = 7) -> Arguments:
        return {"x": self.normal(P)}

    def clip_by_global_norm(self, P: int = 7, max_norm: float = 0.5) -> Arguments:
        return {"gradients": self.normal(P), "max_norm": max_norm}

    def add_into(self, P: int = 7) -> Arguments:
        return {"x": self.normal(P), "out": self.normal(P)}

    def adam_step(self, P: int = 7) -> Arguments:
        return {
            "parameters": self.normal(P),
            "gradients": self.normal(P),
            "m": self.normal(P),
            "v": self.positive(P),
            "edges": np.array([P // 3, P // 2], np.int32),
            "gradient_scale": 0.5,
            "rate": 0.01,
            "beta1": 0.9,
            "beta2": 0.99,
            "inverse_root": 3.0,
            "epsilon": 1e-3,
            "decay": 0.02,
        }


@pytest.fixture(scope="session")
def arguments() -> Callable[..., Arguments]:
    """arguments(kernel, dtype, **sizes): by name, in order, what the kernel accepts."""

    def make(kernel: str, dtype: str, **sizes: Any) -> Arguments:
        return dict(getattr(Maker(dtype), kernel)(**sizes))

    return make


@pytest.fixture(scope="session")
def written_arguments() -> Callable[[str], tuple[str, ...]]:
    """written_arguments(kernel): the names of those that it writes to."""

    def names(kernel: str) -> tuple[str, ...]:
        return (*OVERWRITTEN[kernel], *CHANGED.get(kernel, ()), "scratch")

    return names


def copied(given: Arguments) -> Arguments:
    """Return the arguments with arrays of their own."""
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in given.items()}


@pytest.fixture(scope="session")
def agrees(reference: SimpleNamespace, close: Callable[..., None]) -> Callable[..., None]:
    """agrees(compiled, kernel, arguments, factor=1): does what the reference does in float64.

    Outputs that are overwritten must not keep a NaN, and inputs not change by a bit.
    """

    def check(compiled: SimpleNamespace, kernel: str, given: Arguments, factor: float = 1) -> None:
        mine = copied(given)
        wide = {
            k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype != np.int32 else v
            for k, v in copied(given).items()
        }
        found = getattr(compiled, kernel)(**mine)
        expected = getattr(reference, kernel)(**wide)
        if expected is not None:
            assert found == pytest.approx(expected, rel=1e-6)
        written = (*OVERWRITTEN[kernel], *CHANGED.get(kernel, ()))
        for name, value in given.items():
            if not isinstance(value, np.ndarray) or name in SCRATCH:
                continue
            if name not in written:
                np.testing.assert_array_equal(mine[name], value, err_msg=f"{name} was changed")
            elif "start" in given and name in ("keys", "values"):
                start = given["start"]
                end = start + len(given["out" if "out" in given else "x"])
                np.testing.assert_array_equal(mine[name][:start], value[:start])
                close(mine[name][start:end], wide[name][start:end], factor)
                assert np.isnan(mine[name][end:]).all()
            else:
                close(mine[name], wide[name], factor)

    return check


# What holds for every layer

LENGTHS = (3, 1, 4)  # rows of each text


def offsets_of(lengths: Sequence[int]) -> Any:
    return np.cumsum([0, *lengths], dtype=np.int32)


@pytest.fixture
def scrambled(rng: np.random.Generator) -> Callable[[Any], Any]:
    """scrambled(layer): the layer, with random numbers for all of its parameters."""

    def scramble(layer: Any) -> Any:
        for value in layer.parameters().values():
            value[...] = rng.standard_normal(value.shape)
        return layer

    return scramble


@pytest.fixture
def accumulates(rng: np.random.Generator, close: Callable[..., None]) -> Callable[..., None]:
    """accumulates(layer, x): backward adds to the parameters' gradients, overwrites the input's."""

    def check(layer: Any, x: Any) -> None:
        layer.zero_grad()
        assert not any(gradient.any() for gradient in layer.gradients().values())
        out = layer.forward(x, offsets_of(LENGTHS))
        dout = rng.standard_normal(out.shape).astype(layer.dtype)
        dx = np.array(layer.backward(dout.copy()))
        once = {name: gradient.copy() for name, gradient in layer.gradients().items()}
        assert all(gradient.any() for gradient in once.values())
        close(np.asarray(layer.backward(dout.copy())), dx)
        for name, gradient in layer.gradients().items():
            close(gradient, 2 * once[name], 5)

    return check


@pytest.fixture
def replicates(rng: np.random.Generator) -> Callable[..., None]:
    """replicates(layer, x): a replica shares the parameters, but no gradient and no memory."""

    def check(layer: Any, x: Any) -> None:
        offsets = offsets_of(LENGTHS)
        out = layer.forward(x, offsets).copy()
        dout = rng.standard_normal(out.shape).astype(layer.dtype)
        layer.zero_grad()
        dx = np.array(layer.backward(dout.copy()))
        gradients = {name: gradient.copy() for name, gradient in layer.gradients().items()}

        layer.zero_grad()
        kept = layer.forward(x, offsets)
        twin = layer.replica()
        assert type(twin) is type(layer)
        for name, value in twin.parameters().items():
            assert value is layer.parameters()[name]
            assert not np.shares_memory(twin.gradients()[name], layer.gradients()[name])
        # The twin sees other data between the layer's forward and backward.
        other = x[::-1].copy()
        twin.zero_grad()
        assert not np.shares_memory(twin.forward(other, offsets), kept)
        twin.backward(dout[::-1].copy())
        np.testing.assert_array_equal(kept, out)
        np.testing.assert_array_equal(layer.backward(dout.copy()), dx)
        for name, gradient in layer.gradients().items():
            np.testing.assert_array_equal(gradient, gradients[name])

    return check


@pytest.fixture
def reuses_memory() -> Callable[..., None]:
    """reuses_memory(layer, x): after the largest batch, no array is allocated."""

    def held(layer: Any) -> dict[int, int]:
        stores = {id(layer._buffers): layer._buffers, id(layer._scratch): layer._scratch}
        for _, child in layer.children():
            stores |= {id(store): store for store in (child._buffers, child._scratch)}
        return {
            flat.ctypes.data: flat.nbytes
            for store in stores.values()
            for flat in store._flat.values()
        }

    def check(layer: Any, x: Any) -> None:
        def run(rows: int) -> Any:
            out = layer.forward(x[:rows], offsets_of([rows]))
            layer.backward(np.ones_like(out))
            return out

        largest = run(len(x))
        before = held(layer)
        assert before
        for rows in (1, len(x) - 1, len(x), 2):
            assert np.shares_memory(run(rows), largest)
        assert held(layer) == before

    return check


@pytest.fixture
def decodes(close: Callable[..., None]) -> Callable[..., None]:
    """decodes(layer, x): rows given a few at a time come out as forward gives them at once."""

    def check(layer: Any, x: Any) -> None:
        expected = layer.forward(x, offsets_of([len(x)])).copy()
        cache, given = Cache(len(x)), x.copy()
        for n in (2, 1, 1, len(x) - 4):
            rows = slice(cache.length, cache.length + n)
            close(layer.decode(given[rows], cache), expected[rows], 10)
            cache.length += n
        np.testing.assert_array_equal(given, x, err_msg="decode changed its input")

    return check


@pytest.fixture(scope="session")
def small() -> Callable[..., ModelConfig]:
    """small(**changes): the configuration of a model for tests."""

    def make(**changes: Any) -> ModelConfig:
        settings = {
            "embedding_dim": 6, "hidden_dim": 10, "n_layers": 2, "n_heads": 2, "max_seq_len": 12,
        }  # fmt: skip
        return ModelConfig(**settings | changes)

    return make


# A model without the word tokenizer


class Letters:
    """A tokenizer of single characters; "." ends a text."""

    def __init__(self, characters: str = ".abcdefghijklmnopqrstuvwxyz ") -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self.end_id = 0

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        return [self.characters.index(c) for c in text if allow_special or c != "."]

    def decode(
        self, ids: Sequence[int], skip_special: bool = True, *, after: Sequence[int] = ()
    ) -> str:
        return "".join(self.characters[i] for i in ids)


@pytest.fixture
def letters() -> Any:
    """A tokenizer of 28 characters."""
    return Letters()


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[int], Any]:
    """tokenizer_of(n): what a model needs to know of a vocabulary of n tokens."""

    def make(size: int) -> Any:
        return Letters("".join(map(chr, range(0x4E00, 0x4E00 + size))))

    return make


@pytest.fixture(scope="session")
def kernel_names() -> tuple[str, ...]:
    """The kernels of which `arguments` knows a call."""
    return tuple(OVERWRITTEN)
