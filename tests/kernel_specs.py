"""Owns what the tests of whole blocks and models tell the kernels: their specs, and the angles."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.layers.transformer import block_spec
from rustgpt.reference.spec import BlockSpec, DecoderSpec

# The form of Llama, two heads of queries over one of keys and values.
LLAMA = {
    "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
    "feed_forward_bias": False, "n_kv_heads": 1,
}  # fmt: skip


def offsets_of(lengths: Sequence[int]) -> Any:
    """Return where texts of these lengths begin and end."""
    return np.cumsum([0, *lengths], dtype=np.int32)


def head_dim(D: int | None, options: dict[str, Any]) -> int:
    """Return the columns of a head: by default 3, or 4 where they are turned in pairs."""
    return D or (4 if options.get("positions") == "rotary" else 3)


def spec_of(H: int, D: int, F: int, **options: Any) -> BlockSpec:
    """Return what a block of H heads of D columns is made of, with two different norms."""
    config = ModelConfig(embedding_dim=H * D, hidden_dim=F, n_heads=H, **options)
    return dataclasses.replace(block_spec(config), epsilon1=1e-3, epsilon2=0.3)


def decoder_spec_of(
    H: int, D: int, F: int, V: int, S: int, L: int, tied: bool, bias: bool,
    last_norm: bool | None = None, **options: Any,
) -> DecoderSpec:  # fmt: skip
    """Return what a model of L such blocks is made of, with a number between its parts."""
    block, C = spec_of(H, D, F, **options), H * D
    sizes = {"tokens": V * C}
    sizes |= {"places": S * C} if block.positions == "learned" else {}
    firsts, offsets, taken = [], {}, 1
    if last_norm if last_norm is not None else block.pre_norm:
        sizes |= {"norm.weight": C} | ({"norm.bias": C} if block.norm == "layer_norm" else {})
    sizes |= {} if tied else {"output.weight": C * V}
    sizes |= {"output.bias": V} if bias else {}
    for _ in range(L):
        firsts.append(taken)
        taken += block.size + 1
    for name, size in sizes.items():
        offsets[name] = taken
        taken += size + 1
    if tied:
        offsets["output.weight"] = offsets["tokens"]
    return DecoderSpec(V, S, C, (block,) * L, tuple(firsts), offsets, 0.1, tied, taken)


def angles(rng: np.random.Generator, S: int, D: int, dtype: str) -> Any:
    """Return cosines and sines of random angles, of S positions."""
    some = rng.uniform(-4, 4, (S, D // 2))
    return np.hstack([np.cos(some), np.sin(some)]).astype(dtype)
