"""Plain-NumPy twins of the kernels in `rustgpt._ext`: the same names, arguments and results.

Written to be read. Sizes, here and everywhere in the package:

B sequences in a batch, N rows (tokens of all sequences, one after another), T rows of one
sequence, C embedding_dim, H heads of D = C / H columns, K heads of keys and values,
W = (H + 2 K) D columns of queries, keys and values, F hidden_dim, G columns of the hidden layer
before its activation (F, or 2 F with SwiGLU), V vocabulary size, P parameters. A gradient is
called `d` and the name of what it belongs to.
"""

import importlib
from collections.abc import Callable
from typing import Any

MODULES = (
    "blas", "linear", "activations", "layer_norm", "rms_norm", "attention", "rotary", "block",
    "decoder", "cross_entropy", "dropout", "embeddings", "optimizer",
)  # fmt: skip


ENCODERS = ("bpe",)  # what makes tokens of text


def kernels() -> dict[str, Callable[..., Any]]:
    """Return every function of the reference by name."""
    return _functions(MODULES)


def encoders() -> dict[str, Callable[..., Any]]:
    """Return the functions that make tokens of text, by name."""
    return _functions(ENCODERS)


def _functions(names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for name in names:
        module = importlib.import_module(f"{__name__}.{name}")
        found |= {function.__name__: function for function in module.KERNELS}
    return found
