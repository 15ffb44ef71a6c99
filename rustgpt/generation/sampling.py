"""Owns the choice of the next token from its scores, and how likely the model held it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError, RustGPTError
from rustgpt.generation.constraint import Constraint
from rustgpt.generation.processors import changes_of, narrowing_of
from rustgpt.generation.sampling_config import SamplingConfig

Scores = NDArray[Any]  # (V,)
Likely = tuple[tuple[int, float], ...]  # tokens with their log-probabilities, the likeliest first


class Sampler:
    """Chooses the tokens of one text.

    Parameters
    ----------
    config
        How.
    end_ids
        The tokens that end a text; the first one does where all are ruled out.
    vocab_size
        V
    sample
        Which of several texts of the same prompt and seed this is.

    Raises
    ------
    ConfigError
        If `logit_bias` names a token that there is not.
    """

    def __init__(
        self, config: SamplingConfig, end_ids: tuple[int, ...], vocab_size: int, sample: int = 0
    ) -> None:
        self.config = config
        self._end_id = end_ids[0]
        self._changes = changes_of(config, end_ids, vocab_size)
        self._narrowing = narrowing_of(config)
        self._is_plain = not self._changes and not config.temperature
        if config.temperature:
            seed = [config.seed, sample] if sample else config.seed
            self._rng = np.random.default_rng(seed)

    def scores(
        self, history: Sequence[int], logits: Scores, constraint: Constraint | None = None
    ) -> Scores:
        """Return the scores to choose by, at any temperature; -inf for what is ruled out.

        Raises
        ------
        RustGPTError
            If no logit is finite, or one is not a number: the model is damaged.
        ConfigError
            If a processor of one's own returns anything but scores.
        """
        check_finite(float(logits.max()))
        scores: Scores = logits.astype(np.float64)
        for change in self._changes:
            scores = change(history, scores)
        if self.config.processors:
            scores = _checked(scores, logits)
        return scores if constraint is None else constraint.masked(scores)

    def choose(
        self, history: Sequence[int], logits: Scores, constraint: Constraint | None = None
    ) -> int:
        """Choose a token: the best one, the first of equals, or at a temperature drawn.

        If all are ruled out, it is the one that ends the text.

        Raises
        ------
        RustGPTError, ConfigError
            As `scores`.
        """
        if self._is_plain and constraint is None:
            best = int(logits.argmax())  # a NaN counts as the largest
            if not math.isfinite(logits[best]):
                check_finite(float(logits[best]))
            return best
        scores = self.scores(history, logits, constraint)
        best = int(scores.argmax())
        if scores[best] == -math.inf:
            return self._end_id
        if not self.config.temperature:
            return best
        for narrow in self._narrowing:
            scores = narrow(history, scores)
        return draw(scores, self._rng)


def draw(scores: Scores, rng: np.random.Generator) -> int:
    """Draw a token from softmax(scores), of which the largest is finite."""
    cumulative = np.exp(scores.astype(np.float64) - float(scores.max())).cumsum()  # (V,)
    return int(cumulative.searchsorted(rng.random() * cumulative[-1], side="right"))


def check_finite(largest: float) -> None:
    """Raise RustGPTError unless the largest of some logits is a number."""
    if not math.isfinite(largest):
        raise RustGPTError(
            f"the model's scores are not finite (the largest is {largest}): "
            "its parameters are damaged or its training diverged; train it again"
        )


def _checked(scores: Any, logits: Scores) -> Scores:
    """Return what processors have made of scores; ConfigError if that is none."""
    if not isinstance(scores, np.ndarray) or scores.shape != logits.shape:
        raise ConfigError(f"the processors must return scores of the shape {logits.shape}")
    if not (scores < np.inf).all():
        raise ConfigError("the processors must return scores that are finite, or -inf")
    return scores


def log_softmax(logits: Scores) -> Scores:  # (V,) -> (V,)
    """Return the log-probability of each token."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - math.log(np.exp(shifted).sum())


def likeliest(logprobs: Scores, n: int) -> Likely:
    """Return the n likeliest tokens with their log-probabilities."""
    n = min(n, len(logprobs))
    if n == 0:
        return ()
    best = np.argpartition(-logprobs, n - 1)[:n]
    best = best[np.lexsort((best, -logprobs[best]))]
    return tuple(zip(best.tolist(), logprobs[best].tolist(), strict=True))
