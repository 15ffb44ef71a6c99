"""Owns the loop that makes one token after another."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rustgpt.generation.sampling import check_temperature, sample
from rustgpt.layers.layer import Cache


class Decoder(Protocol):
    """What the loop needs of a model."""

    @property
    def max_seq_len(self) -> int: ...

    def decode(self, ids: Sequence[int], cache: Cache) -> NDArray[Any]:
        """Continue the text in `cache` by `ids`; return the logits (V,) of what follows."""


def generate_ids(
    model: Decoder,
    prompt: Sequence[int],
    max_new_tokens: int,
    end_id: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, until `end_id` (not yielded) or enough are made.

    Keys and values of earlier tokens are cached, so that a token costs one row. When the context is
    full, its older half is dropped and the younger half is read again.

    Raises
    ------
    ConfigError
        If `temperature` is out of range.
    """
    check_temperature(temperature)
    rng = np.random.default_rng(seed)
    S = model.max_seq_len
    seen = list(prompt[-S:])
    cache, fresh = Cache(S), list(seen)
    for _ in range(max_new_tokens):
        if cache.length + len(fresh) > S:
            seen = seen[-(S // 2) :]
            cache, fresh = Cache(S), list(seen)
        token = sample(model.decode(fresh, cache), temperature, rng)
        if token == end_id:
            return
        yield token
        seen.append(token)
        fresh = [token]
