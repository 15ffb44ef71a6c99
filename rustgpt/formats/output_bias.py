"""Owns doing without a bias of the output projection, which models of others do not have.

What comes from the last layer norm is h = n * w + c, where the numbers of n have the sum 0. So
with c + w in the place of c there is a vector u for which h @ u is 1 for every h:

    u = 1 / (w * k)    k = sum(c / w) + C

since (n * w + c + w) @ u = (sum(n) + sum(c / w) + C) / k = 1. So h @ (weight + outer(u, bias)) has
the bias in it, and what w has added to h goes from the bias: bias - w @ weight. Where sum(c / w) is
negative, w is taken from c instead, so that k is never small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.formats.foreign import Array


def without_bias(
    config: ModelConfig, parameters: Mapping[str, Array]
) -> tuple[ModelConfig, dict[str, Array]]:
    """Return a model with the same logits whose output projection has no bias and is not tied.

    Raises
    ------
    CheckpointError
        If there is no layer norm before it, or one with a weight of 0.
    """
    last = config.n_layers + 1 + (config.norm == "pre")
    norm = f"layers.{last - 1}" if config.norm == "pre" else f"layers.{last - 1}.norm2"
    bias = parameters[f"layers.{last}.bias"].astype(np.float64)  # (V,)
    found = {name: value for name, value in parameters.items() if name != f"layers.{last}.bias"}
    config = replace(config, output_bias=False)
    if not bias.any():
        return config, found
    w = found.get(f"{norm}.weight", np.zeros(1)).astype(np.float64)  # (C,)
    if not w.all() or f"{norm}.bias" not in found:
        raise CheckpointError(
            "the bias of the output projection cannot be expressed in a model of other programs: "
            "there is no layer norm before it that could take it up; train with --no-output-bias"
        )
    c = found[f"{norm}.bias"].astype(np.float64)  # (C,)
    tied = config.tie_embeddings
    weight = found["layers.0.tokens"].T if tied else found[f"layers.{last}.weight"]  # (C, V)
    k = (c / w).sum()
    added = w if k >= 0 else -w
    k += np.copysign(len(w), k)
    left = bias - added @ weight  # (V,)
    found[f"{norm}.bias"] = c + added
    found[f"layers.{last}.weight"] = weight + np.outer(1 / (w * k), left)
    return replace(config, tie_embeddings=False), found
