"""Owns the loop that makes one token after another."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.generation.sampling import sample
from rustgpt.layers.cache import Cache

# Continues the text in a cache by tokens; returns the logits (V,) of what follows.
Decode = Callable[[Sequence[int], Cache], NDArray[Any]]


def generate_ids(
    decode: Decode,
    max_seq_len: int,
    prompt: Sequence[int],
    max_new_tokens: int,
    end_id: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, until `end_id` (not yielded) or enough are made.

    Keys and values of earlier tokens are cached, so that a token costs one row. When the context of
    `max_seq_len` tokens is full, its older half is dropped and the younger half is read again.
    """
    rng = np.random.default_rng(seed)
    S = max_seq_len
    seen = list(prompt[-S:])
    cache, fresh = Cache(S), list(seen)
    for _ in range(max_new_tokens):
        if len(seen) > S:
            seen = seen[-(S // 2) :]
            cache, fresh = Cache(S), list(seen)
        token = sample(decode(fresh, cache), temperature, rng)
        if token == end_id:
            return
        yield token
        seen.append(token)
        fresh = [token]
