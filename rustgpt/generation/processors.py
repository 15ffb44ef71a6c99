"""Owns what changes the scores before a token is chosen: one small function for each method.

Each is made for a setting and is then called with the tokens of the text so far, of which the
prompt is a part, and the scores (V,) of what may follow. It returns scores, of which -inf rules a
token out, and leaves those that it was given unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rustgpt.errors import ConfigError
from rustgpt.generation.sampling_config import Processor, SamplingConfig

Scores = NDArray[Any]  # (V,)

ROUNDING: Final = 1e-6  # of a sum of probabilities, so that 0.5 and 0.3 reach 0.8


def temperature(t: float) -> Processor:
    """Divide the scores by t, after the largest was made 0 (Ackley, Hinton, Sejnowski 1985)."""

    def process(history: Sequence[int], scores: Scores) -> Scores:
        # In float64, and largest first, so that a tiny temperature gives -inf and never NaN.
        with np.errstate(over="ignore"):
            shifted: Scores = (scores.astype(np.float64) - float(scores.max())) / t
        return shifted

    return process


def top_k(k: int) -> Processor:
    """Keep the k best tokens, and what equals the last of them (Fan, Lewis, Dauphin 2018)."""

    def process(history: Sequence[int], scores: Scores) -> Scores:
        if k >= len(scores):
            return scores
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        return np.where(scores < least, -np.inf, scores)

    return process


def top_p(p: float) -> Processor:
    """Keep the fewest best tokens whose probabilities reach p ("nucleus"; Holtzman et al. 2020)."""

    def process(history: Sequence[int], scores: Scores) -> Scores:
        order = np.argsort(-scores, kind="stable")  # (V,) the best first
        odds = np.exp(scores[order].astype(np.float64) - float(scores[order[0]]))
        before = odds.cumsum() - odds  # (V,) what better ones have
        keep = before < (p - ROUNDING) * odds.sum()
        keep[0] = True
        kept = np.full_like(scores, -np.inf)
        kept[order[keep]] = scores[order[keep]]
        return kept

    return process


def min_p(p: float) -> Processor:
    """Keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024)."""

    def process(history: Sequence[int], scores: Scores) -> Scores:
        return np.where(scores < float(scores.max()) + math.log(p), -np.inf, scores)

    return process


def repetition_penalty(penalty: float, spared: Collection[int] = ()) -> Processor:
    """Make what the text has less likely: s / penalty, or s * penalty below 0 (Keskar et al. 2019).

    The tokens `spared`, those which end a text, are no repetition.
    """

    def process(history: Sequence[int], scores: Scores) -> Scores:
        seen = _seen(history, spared)
        changed = scores.copy()
        with np.errstate(over="ignore"):
            changed[seen] = np.where(
                scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty
            )
        return changed

    return process


def presence_and_frequency(
    presence: float, frequency: float, spared: Collection[int] = ()
) -> Processor:
    """Subtract `presence` from what the text has, and `frequency` for each time (OpenAI 2020)."""

    def process(history: Sequence[int], scores: Scores) -> Scores:
        counts = np.bincount(history, minlength=len(scores)).astype(scores.dtype)  # (V,)
        counts[[*spared]] = 0
        changed: Scores = scores - frequency * counts - presence * (counts > 0)
        return changed

    return process


def no_repeat_ngram(size: int, spared: Collection[int] = ()) -> Processor:
    """Rule out what would end a run of `size` tokens that the text has (Paulus et al. 2018).

    The tokens `spared`, those which end a text, may always come.
    """

    def process(history: Sequence[int], scores: Scores) -> Scores:
        if len(history) < size:
            return scores
        tokens = np.asarray(history)
        runs = np.lib.stride_tricks.sliding_window_view(tokens, size)  # (n - size + 1, size)
        same = (runs[:, :-1] == tokens[len(tokens) - size + 1 :]).all(axis=1)
        changed = scores.copy()
        ruled_out = runs[same, -1]
        changed[np.setdiff1d(ruled_out, [*spared])] = -np.inf
        return changed

    return process


def logit_bias(biases: Mapping[int, float]) -> Processor:
    """Add a number to the scores of some tokens."""
    tokens = np.fromiter(biases.keys(), np.intp)
    values = np.fromiter(biases.values(), np.float64)

    def process(history: Sequence[int], scores: Scores) -> Scores:
        changed = scores.copy()
        changed[tokens] += values
        return changed

    return process


def _seen(history: Sequence[int], spared: Collection[int]) -> list[int]:
    return [*({*history} - {*spared})]


def changes_of(
    config: SamplingConfig, end_ids: Collection[int], vocab_size: int
) -> list[Processor]:
    """Return what changes the scores at any temperature, in the order in which it is called.

    Raises
    ------
    ConfigError
        If there is a bias for a token that the vocabulary does not have.
    """
    found: list[Processor] = []
    if config.logit_bias:
        for token in config.logit_bias:
            if not 0 <= token < vocab_size:
                raise ConfigError(
                    f"logit_bias has the token {token}, but tokens are from 0 to {vocab_size - 1}"
                )
        found.append(logit_bias(config.logit_bias))
    if config.repetition_penalty != 1:
        found.append(repetition_penalty(config.repetition_penalty, end_ids))
    if config.presence_penalty or config.frequency_penalty:
        found.append(
            presence_and_frequency(config.presence_penalty, config.frequency_penalty, end_ids)
        )
    if config.no_repeat_ngram:
        found.append(no_repeat_ngram(config.no_repeat_ngram, end_ids))
    return [*found, *config.processors]


def narrowing_of(config: SamplingConfig) -> list[Processor]:
    """Return what narrows the choice where a token is drawn, in the order in which it is called."""
    if not config.temperature:
        return []
    found = [temperature(config.temperature)]
    if config.top_k:
        found.append(top_k(config.top_k))
    if config.top_p < 1:
        found.append(top_p(config.top_p))
    if config.min_p:
        found.append(min_p(config.min_p))
    return found
