"""Owns which implementation of the kernels is in use: the compiled ones, or plain NumPy.

Layers call `ops.linear_forward(...)` and never see Cython. The choice is made when a kernel is
first needed, so that importing the package loads neither.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError

BACKENDS = ("cython", "reference")
FLOAT32 = np.dtype(np.float32)


class Ops:
    """The kernels of the chosen backend, as attributes."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            with _loading:
                if "backend" not in self.__dict__:
                    use_backend(os.environ.get("RUSTGPT_BACKEND") or "cython")
            if name in self.__dict__:  # perhaps another thread has just loaded it
                return self.__dict__[name]
        raise AttributeError(f"there is no kernel called {name!r}")


ops = Ops()
_loading = threading.RLock()  # whoever loads kernels is alone


def use_backend(name: str) -> None:
    """Let every model run on the compiled kernels ("cython") or on plain NumPy ("reference").

    The environment variable `RUSTGPT_BACKEND` makes the same choice before the program starts.

    Raises
    ------
    ConfigError
        If `name` is neither, or the compiled kernels are not built.
    """
    with _loading:
        if name == "cython":
            found = explained_kernels()
        elif name == "reference":
            from rustgpt.reference import kernels

            found = kernels()
        else:
            raise ConfigError(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
        ops.__dict__.update(found, backend=name)
        for other in ops.__dict__.keys() - found.keys() - {"backend"}:
            del ops.__dict__[other]


def backend_name() -> str:
    """Return the name of the backend in use, loading it if none is yet."""
    return str(ops.backend)


def kernels_in_use() -> str:
    """Return for people which kernels are in use, such as "cython, avx2"."""
    from rustgpt._ext import instruction_set

    name = backend_name()
    return f"{name}, {instruction_set()}" if name == "cython" else name


def has_bfloat16() -> bool:
    """Return whether the kernels in use multiply bfloat16; those in plain NumPy always do."""
    from rustgpt import _ext

    return backend_name() != "cython" or _ext.has_bfloat16()


def check_bfloat16(dtype: str) -> None:
    """Raise ConfigError unless the kernels in use multiply bfloat16 for a model of `dtype`."""
    if dtype != "float32":
        raise ConfigError(f"precision bfloat16 is for models of dtype float32, not {dtype}")
    if not has_bfloat16():
        raise ConfigError(
            "precision bfloat16 needs a processor with AVX512-BF16 and its kernels, but in use are "
            f"{kernels_in_use()}: leave it at float32"
        )


def encoder(name: str) -> Callable[..., Any]:
    """Return a function that makes tokens of text: compiled, or its twin in plain Python.

    Raises
    ------
    ConfigError
        If the compiled ones are not built.
    """
    return _encoders(backend_name())[name]


@functools.cache
def _encoders(backend: str) -> dict[str, Callable[..., Any]]:
    if backend == "reference":
        from rustgpt.reference import encoders
    else:
        from rustgpt._ext import encoders
    return encoders()


def explained_kernels() -> dict[str, Callable[..., Any]]:
    """Return the compiled kernels by name; an error of theirs names the kernel and the argument."""
    from rustgpt._ext import kernels

    return {name: _explained(name, kernel) for name, kernel in kernels().items()}


def _explained(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a compiled kernel so that a wrong argument's error names the kernel and the argument."""

    # Cython's own choice between float32 and float64 takes 0.2 microseconds a call.
    single = getattr(kernel, "__signatures__", {}).get("float", kernel)

    @functools.wraps(kernel)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if args and getattr(args[0], "dtype", None) is FLOAT32:
                return single(*args, **kwargs)
            return kernel(*args, **kwargs)
        except (TypeError, ValueError, OverflowError, BufferError) as error:
            raise _explanation(name, args, kwargs, error) from None

    return call


def _explanation(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> Exception:
    """Say which argument is wrong: a typed memoryview refuses it without its name.

    The types are those of the twin in `rustgpt.reference`.
    """
    from rustgpt.reference import kernels
    from rustgpt.reference.arrays import Shard
    from rustgpt.reference.spec import BlockSpec, DecoderSpec

    twin = inspect.signature(kernels()[name])
    try:
        given = twin.bind(*args, **kwargs).arguments
    except TypeError as mismatch:
        return TypeError(f"{name}: {mismatch}")
    floating = ""  # the floating type of the first such array, which decides for all
    for argument, value in given.items():
        kind = twin.parameters[argument].annotation
        optional = type(None) in get_args(kind)
        kind = get_args(kind)[0] if optional else kind
        if kind in (Shard, BlockSpec, DecoderSpec):
            continue  # their errors say so themselves
        if get_origin(kind) is not Annotated:
            if not isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
                return TypeError(f"{name}: {argument} must be a number, got {type(value).__name__}")
            continue
        if value is None and optional:
            continue
        sides, *written = kind.__metadata__
        wrong = _wrong_array(value, sides, bool(written), floating, kind.__origin__)
        if wrong:
            return wrong[0](f"{name}: {argument} must be {wrong[1]}")
        if value.dtype.kind == "f":
            floating = value.dtype.name
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{name}: {error}")


def _wrong_array(
    value: Any, sides: int, written: bool, floating: str, kind: Any
) -> tuple[type[Exception], str] | None:
    """Return what a kernel's array must be and is not, if anything."""
    types = [floating] if floating else ["float32", "float64"]
    if kind == NDArray[np.int32]:
        types = ["int32"]
    if not isinstance(value, np.ndarray):
        return TypeError, f"an array, got {type(value).__name__}"
    if value.dtype.name not in types or not value.dtype.isnative:
        return TypeError, f"{' or '.join(types)}, got {value.dtype}"
    if value.ndim != sides:
        return ValueError if value.ndim else TypeError, f"of {sides} dimensions, got {value.ndim}"
    if not value.flags.c_contiguous:
        return ValueError, "C-contiguous: pass numpy.ascontiguousarray of it"
    if written and not value.flags.writeable:
        return TypeError, "writable, but is read-only"
    if not value.flags.aligned:
        return TypeError, "aligned in memory: pass a copy of it"
    return None


class single_threaded_blas:
    """Keeps every BLAS of the process on one thread, in a `with`: whole threads fill the cores.

    Two OpenBLAS pools (NumPy's and SciPy's) beside our threads fight for the cores and make small
    products many times slower. Of all that are entered at the same time, the first limits and the
    last restores, whichever threads they are in. One that was torn away before its end, by Ctrl-C,
    counts no more.
    """

    _lock = threading.RLock()  # a weak reference may die at any moment
    _entered: ClassVar[weakref.WeakSet[single_threaded_blas]] = weakref.WeakSet()
    _before: tuple[int, ...] = ()  # threads of each library, while there is a limit

    def __enter__(self) -> None:
        kind = single_threaded_blas
        with kind._lock:
            kind._entered.add(self)  # first: another's end, at any moment, would restore
            if not kind._before:
                kind._before = tuple(library.num_threads for library in _blas_libraries())
                kind._set((1,) * len(kind._before))

    def __exit__(self, *_: object) -> None:
        kind = single_threaded_blas
        with kind._lock:
            kind._entered.discard(self)
            if kind._before and not kind._entered:
                before, kind._before = kind._before, ()
                kind._set(before)

    def __del__(self) -> None:
        self.__exit__()

    @staticmethod
    def _set(threads: tuple[int, ...]) -> None:
        for library, n in zip(_blas_libraries(), threads, strict=True):
            # From 3.7 on, threadpoolctl would listen only to the thread that has set first.
            listen_to_all = getattr(library, "clear_controlling_thread", lambda **_: None)
            listen_to_all(force=True)
            library.set_num_threads(n)
            listen_to_all(force=True)


@functools.cache
def _blas_libraries() -> list[Any]:
    """Return what controls each BLAS that is loaded when this is first needed."""
    backend_name()  # loads SciPy's
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)
