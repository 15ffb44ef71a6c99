"""Owns the choice of the next token from its logits."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError, RustGPTError, check_integer


def check_sampling(max_new_tokens: int, temperature: float, seed: int) -> None:
    """Raise ConfigError unless all three are in their ranges: whole numbers from 0 on, but for
    0 <= temperature < infinity.
    """
    check_integer("max_new_tokens", max_new_tokens, highest=2**31 - 1)
    check_integer("seed", seed)
    try:
        right = not isinstance(temperature, (bool, str)) and 0 <= float(temperature) < math.inf
    except (TypeError, ValueError, OverflowError):  # no number, or one that no float can hold
        right = False
    if not right:
        raise ConfigError(
            f"temperature must be 0 (always the likeliest token) or above, got {temperature!r:.60}"
        )


def sample(logits: NDArray[Any], temperature: float, rng: np.random.Generator) -> int:
    """Choose a token.

    Parameters
    ----------
    logits
        (V,)
    temperature
        0 takes the likeliest token, the first of equals; otherwise the token is drawn from
        softmax(logits / temperature).
    rng
        Source of the draw.

    Raises
    ------
    RustGPTError
        If no logit is finite, or one is not a number: the model is damaged.
    """
    best = int(logits.argmax())  # a NaN counts as the largest
    largest = float(logits[best])
    if not math.isfinite(largest):
        raise RustGPTError(
            f"the model's scores are not finite (the largest is {largest}): "
            "its parameters are damaged or its training diverged; train it again"
        )
    if temperature == 0:
        return best
    # The largest is subtracted first, so that a tiny temperature gives -inf and never NaN.
    with np.errstate(over="ignore"):
        exponents = (logits.astype(np.float64) - largest) / temperature
    cumulative = np.exp(exponents).cumsum()  # (V,)
    return int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))
