"""Owns which compiled kernels are in use: the best that this processor can run.

`RUSTGPT_SIMD` forces a lower choice: "plain", "avx2" or "avx512".
"""

import importlib.util
import os
import pkgutil
from collections.abc import Callable
from typing import Any

from rustgpt.errors import ConfigError

# In a checkout whose kernels are not built in place, those of the installed package serve.
__path__ = pkgutil.extend_path(__path__, __name__)

MODULES = (
    "blas", "linear", "activations", "layer_norm", "attention", "block", "cross_entropy",
    "embeddings", "optimizer",
)  # fmt: skip


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


def kernels() -> dict[str, Callable[..., Any]]:
    """Return every kernel by name, compiled for `instruction_set()`.

    Raises
    ------
    ConfigError
        If the extension modules are not built.
    """
    level = instruction_set()
    found: dict[str, Callable[..., Any]] = {}
    for name in MODULES:
        # The products run in SciPy's BLAS, which chooses for itself.
        module = _module(name if level == "plain" or name == "blas" else f"{level}.{name}")
        for attribute, function in vars(module).items():
            if callable(function) and not attribute.startswith("_"):
                found[attribute] = function
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise ConfigError(
            f"the compiled kernels cannot be loaded ({error}): run 'pip install .' in the "
            "checkout, or choose the slow ones in plain NumPy with RUSTGPT_BACKEND=reference"
        ) from error
