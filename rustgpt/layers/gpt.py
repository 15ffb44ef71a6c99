"""Owns what a GPT's layers are, in order, and how a list of layers is shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.transformer import TransformerBlock, norm_of


def build_layers(config: ModelConfig, vocab_size: int, initialise: bool = True) -> list[Layer]:
    """Return the layers of a GPT: embeddings, blocks, a last norm if "pre", output projection.

    Put a layer of your own into the list and hand it to `LLM`.

    Parameters
    ----------
    config
        The sizes and options, and the seed of the initial values.
    vocab_size
        V, tokens that the model knows.
    initialise
        Whether to draw initial values; without, they are zero, to be read from a file.
    """
    rng = np.random.default_rng(config.seed) if initialise else None
    C, dtype = config.embedding_dim, config.dtype
    places = config.max_seq_len if config.positions == "learned" else 0
    layers: list[Layer] = [Embeddings(vocab_size, places, C, rng, dtype)]
    layers += [TransformerBlock(config, rng) for _ in range(config.n_layers)]
    if config.norm == "pre":
        layers.append(norm_of(config))
    layers.append(
        OutputProjection(C, vocab_size, rng, config.output_bias, config.tie_embeddings, dtype)
    )
    return layers


def named_parameters(layers: Sequence[Layer]) -> dict[str, Array]:
    """Return all parameters by name, each once, each layer's names beginning with its number."""
    found: dict[str, Array] = {}
    seen = set[int]()
    for i, layer in enumerate(layers):
        found |= layer.parameters(f"layers.{i}", seen)
    return found


def check_standard(layers: Sequence[Layer], config: ModelConfig, vocab_size: int) -> None:
    """Raise CheckpointError unless layers are those that `build_layers` makes."""
    built = build_layers(config, vocab_size, initialise=False)
    for i, layer in enumerate(layers):
        parts = [part for _, part in layer.walk()]
        wanted = [part for _, part in built[i].walk()] if i < len(built) else []
        same = [type(part) for part in parts] == [type(part) for part in wanted]
        if not same or any(part._changed for part in parts):
            raise CheckpointError(
                f"layer {i} is not as rustgpt builds it ({layer.describe()}): other programs "
                "cannot compute a layer of your own"
            )
    if len(layers) < len(built):
        raise CheckpointError(f"the model has {len(layers)} layers, but {len(built)} are needed")


def describe(layers: Sequence[Layer]) -> str:
    """Return layers with their sizes, for people; equal ones that follow each other once."""
    rows: list[tuple[str, int]] = []
    for (first, *parts), same in groupby(_rows(layer) for layer in layers):
        n = len(list(same))
        rows += [(f"{first[0]} x {n}" if n > 1 else first[0], first[1]), *parts]
    parameters = {id(v): v.size for layer in layers for v in layer.parameters().values()}
    width = max(len(text) for text, _ in rows)
    lines = [f"{text:<{width}} {count:>12,}" for text, count in rows]
    return "\n".join([*lines, f"{'Parameters':<{width}} {sum(parameters.values()):>12,}"])


def _rows(layer: Layer) -> list[tuple[str, int]]:
    """Return a layer and its parts: what each is, and its number of parameters."""
    return [
        (f"{'  ' * path.count('.')}{part.describe()}", part.n_parameters)
        for path, part in layer.walk("0")
    ]
