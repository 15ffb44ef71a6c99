"""Owns which compiled kernels are in use: the best that this processor can run.

`RUSTGPT_SIMD` forces a lower choice: "plain", "avx2" or "avx512".
"""

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rustgpt.errors import ConfigError

# In a checkout whose kernels are not built in place, those of the installed package serve.
__path__ = pkgutil.extend_path(__path__, __name__)

MODULES = (
    "blas", "linear", "activations", "layer_norm", "attention", "block", "decoder",
    "cross_entropy", "dropout", "embeddings", "optimizer",
)  # fmt: skip
ENCODERS = ("bpe", "words")  # what makes tokens of text: compiled once, for all processors


def available_instruction_sets() -> list[str]:
    """Return the names of those that this processor has, the best first; the last is "plain"."""
    return [*_module("cpu").instruction_sets(), "plain"]


def instruction_set() -> str:
    """Return the instruction set whose kernels are used: "avx512", "avx2" or "plain".

    Raises
    ------
    ConfigError
        If `RUSTGPT_SIMD` names one that does not exist or that this processor lacks.
    """
    available = available_instruction_sets()
    wanted = os.environ.get("RUSTGPT_SIMD")
    if wanted and wanted not in available:
        raise ConfigError(
            f"RUSTGPT_SIMD is {wanted!r}, but this processor offers {', '.join(available)}: "
            "set it to one of these, or unset it"
        )
    for level in [wanted] if wanted else available:
        if level == "plain" or importlib.util.find_spec(f"{__name__}.{level}.linear"):
            return level
    return "plain"


def has_bfloat16() -> bool:
    """Return whether the kernels in use multiply bfloat16; see `bfloat16.pxd`."""
    return instruction_set() == "avx512" and bool(_module("cpu").has_bfloat16())


def kernels() -> dict[str, Callable[..., Any]]:
    """Return every kernel by name, compiled for `instruction_set()`.

    Raises
    ------
    ConfigError
        If the extension modules are not built.
    """
    level = instruction_set()
    _load_blas()
    # The products run in SciPy's BLAS, which chooses for itself.
    plain = [level == "plain" or name == "blas" for name in MODULES]
    names = zip(MODULES, plain, strict=True)
    return _functions(_module(name if alone else f"{level}.{name}") for name, alone in names)


def encoders() -> dict[str, Callable[..., Any]]:
    """Return the functions that make tokens of text, by name.

    Raises
    ------
    ConfigError
        If the extension modules are not built.
    """
    return _functions(map(_module, ENCODERS))


def _functions(modules: Iterable[Any]) -> dict[str, Callable[..., Any]]:
    """Return the public functions of modules by name."""
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if callable(function) and not name.startswith("_")
    }


def _load_blas() -> None:
    """Load scipy.linalg.cython_blas, whose functions the kernels call, by itself.

    The rest of scipy.linalg, which Python would load with it, takes 23 MB and 0.15 s. Whoever
    imports scipy.linalg later gets all of it, around this module.
    """
    name = "scipy.linalg.cython_blas"
    if name in sys.modules or "scipy.linalg" in sys.modules:
        return
    import scipy  # where it is, and where its libraries are

    spec = PathFinder.find_spec(name, [str(Path(scipy.__file__).parent / "linalg")])
    if spec is None or spec.loader is None:
        return  # then the kernels import it in the usual way
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise ConfigError(
            f"the compiled kernels cannot be loaded ({error}): run 'pip install .' in the "
            "checkout, or choose the slow ones in plain NumPy with RUSTGPT_BACKEND=reference"
        ) from error
