"""Owns new tokens for a finished model: a larger tokenizer, and rows for what it adds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rustgpt.errors import ConfigError
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.text.tokenizer import Tokenizer


def extended_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that also knows the words of some texts; ConfigError if there is none."""
    if not hasattr(tokenizer, "extended"):
        raise ConfigError(
            f"a {type(tokenizer).__name__} takes no new words: it can spell any text with the "
            "tokens that it has; leave out --extend-vocab"
        )
    larger: Tokenizer = tokenizer.extended(texts)
    return larger


def extended_layers(layers: Sequence[Layer], old: Tokenizer, new: Tokenizer) -> list[Layer]:
    """Return a model's layers for the larger of two tokenizers.

    A new token begins with the mean of what is known of the tokens that have spelled it so far.

    Raises
    ------
    ConfigError
        If the first or last layer is of a class of one's own.
    """
    first, last = layers[0], layers[-1]
    if type(first) is not Embeddings or type(last) is not OutputProjection:
        raise ConfigError(
            "the vocabulary can be extended only where the first layer is Embeddings and the last "
            "OutputProjection, and neither is of a class of its own"
        )
    embeddings, output = _longer(first, last, _spellings(old, new))
    return [embeddings, *layers[1:-1], output]


def _spellings(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """Return for each new token the old ones that spell it."""
    added = range(old.vocab_size, new.vocab_size)
    return [old.encode(new.decode([token])) or [old.end_id] for token in added]


def _longer(
    first: Embeddings, last: OutputProjection, spellings: list[list[int]]
) -> tuple[Layer, Layer]:
    """Return both layers with a row for each new token: the mean of those that spell it."""

    def more(table: Array) -> Array:  # (V, ...) -> (V + new, ...)
        rows = [table[ids].mean(0, dtype=np.float64) for ids in spellings]
        return np.concatenate([table, np.array(rows, table.dtype).reshape(-1, *table.shape[1:])])

    V, C = first.tokens.shape
    V += len(spellings)
    S = 0 if first.places is None else len(first.places)
    embeddings = Embeddings(V, S, C, None, first.dtype)
    embeddings.tokens = more(first.tokens)
    if first.places is not None:
        embeddings.places = first.places
    output = OutputProjection(C, V, None, last.bias is not None, last.tied, last.dtype)
    if not last.tied:
        output.weight = more(last.weight.T).T
    if last.bias is not None:
        output.bias = more(last.bias)
    return embeddings, output
