"""Owns `rustgpt info`: what this machine offers and what is in use, or what a model consists of."""

from __future__ import annotations

import argparse
import json
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustgpt import __version__
from rustgpt.cli.options import A_MODEL, add_model
from rustgpt.cli.terminal import say

if TYPE_CHECKING:
    from rustgpt.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt info`."""
    add_model(parser, f"{A_MODEL}; none: the machine", nargs="?")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the facts about the machine, or about a model."""
    if args.model is None:
        facts = machine()
        text = "\n".join(f"{name.replace('_', ' '):<16} {_plain(facts[name])}" for name in facts)
    else:
        facts, text = _model(args.model)
    say(json.dumps(facts, indent=2) if args.json else text)
    return 0


def machine() -> dict[str, Any]:
    """Return what there is to know about the machine and the kernels in use."""
    import numpy
    import scipy

    from rustgpt._ext import available_instruction_sets, instruction_set
    from rustgpt.backend import backend_name, has_bfloat16
    from rustgpt.parallel import mpi
    from rustgpt.parallel.pool import available_threads

    backend = backend_name()
    compiled = backend == "cython"
    return {
        "rustgpt": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "threads": available_threads(),
        "backend": backend,
        "instruction_set": instruction_set() if compiled else None,
        "available": available_instruction_sets() if compiled else [],
        "bfloat16": has_bfloat16(),
        "blas": _blas(),
        "mpi": mpi.describe(mpi.world()),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _blas() -> dict[str, Any]:
    """Return what threadpoolctl finds out about SciPy's BLAS; NumPy may have one of its own."""
    import scipy.linalg.blas  # noqa: F401  (loads it)
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    # NumPy's own lies in numpy.libs, under a file name that speaks of SciPy too.
    found.sort(key=lambda library: "/scipy" not in Path(library["filepath"]).parent.as_posix())
    keys = {"name": "internal_api", "version": "version", "threads": "num_threads"}
    return {name: found[0][key] if found else None for name, key in keys.items()}


def _plain(value: Any) -> str:
    """Return a fact for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _model(folder: str) -> tuple[dict[str, Any], str]:
    """Return the facts about a model, and their text for people."""
    from rustgpt.llm import LLM

    model = LLM.load(folder)
    config = model.config.to_dict()
    facts = {
        "model": folder,
        "parameters": model.n_parameters,
        "vocabulary": model.tokenizer.vocab_size,
        "cache_bytes": cache_bytes(model),
        "config": config,
        "tensors": {name: list(value.shape) for name, value in model.named_parameters().items()},
    }
    width = max(map(len, config))
    settings = "\n".join(f"{name:<{width}} {value}" for name, value in config.items())
    size = f"Vocabulary: {model.tokenizer.vocab_size:,} tokens"
    held = f"{cache_bytes(model) / 1e6:,.1f} MB for each text that is made or chat that is open"
    session = f"Memory: {model.parameters.nbytes / 1e6:,.1f} MB of parameters, and up to {held}"
    return facts, f"{model.describe()}\n\n{size}\n{session}\n\n{settings}"


def cache_bytes(model: LLM) -> int:
    """Return the most bytes that the keys and values of one text take: those of a full context."""
    from rustgpt.layers.self_attention import SelfAttention

    columns = sum(
        part.qkv_weight.shape[1] - part.dim
        for layer in model.layers
        for _, part in layer.walk()
        if isinstance(part, SelfAttention)
    )
    return int(columns * model.max_seq_len * model.parameters.itemsize)
