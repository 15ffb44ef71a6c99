"""Owns which implementation of the kernels is in use: the compiled ones, or plain NumPy.

Layers call `ops.linear_forward(...)` and never see Cython. The choice is made when a kernel is
first needed, so that importing the package loads neither.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rustgpt.errors import ConfigError

BACKENDS = ("cython", "reference")


class Ops:
    """The kernels of the chosen backend, as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "backend" in self.__dict__:
            raise AttributeError(f"there is no kernel called {name!r}")
        use_backend(os.environ.get("RUSTGPT_BACKEND") or "cython")
        return getattr(self, name)


ops = Ops()


def use_backend(name: str) -> None:
    """Let every model run on the compiled kernels ("cython") or on plain NumPy ("reference").

    The environment variable `RUSTGPT_BACKEND` makes the same choice before the program starts.

    Raises
    ------
    ConfigError
        If `name` is neither, or the compiled kernels are not built.
    """
    if name == "cython":
        from rustgpt._ext import kernels
    elif name == "reference":
        from rustgpt.reference import kernels
    else:
        raise ConfigError(f"there is no backend {name!r}: choose one of {', '.join(BACKENDS)}")
    found = kernels()
    ops.__dict__.clear()
    ops.__dict__.update(found, backend=name)


def backend_name() -> str:
    """Return the name of the backend in use, loading it if none is yet."""
    return str(ops.backend)


_controller: Any = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep every BLAS of the process on one thread: the cores are kept busy by whole workers.

    Two OpenBLAS pools (NumPy's and SciPy's) beside our workers fight for the cores and make small
    products many times slower.
    """
    global _controller
    if _controller is None:
        backend_name()  # a BLAS must be loaded before the controller can find it
        from threadpoolctl import ThreadpoolController

        _controller = ThreadpoolController()
    with _controller.limit(limits=1, user_api="blas"):
        yield
