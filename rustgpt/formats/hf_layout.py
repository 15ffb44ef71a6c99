"""Owns the names of Hugging Face's tensors, and which parameter of ours each of them is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from rustgpt.config import ModelConfig
from rustgpt.formats.foreign import Layout, Piece
from rustgpt.formats.json_file import Fields

HEAD: Final = "lm_head.weight"


def layout_of(fields: Fields, config: ModelConfig, names: Collection[str]) -> Layout:
    """Return where each parameter of ours lies.

    Parameters
    ----------
    fields
        Of config.json.
    config
        What was read from it.
    names
        Of the tensors that there are: some files lack the model's own prefix.
    """
    prefix = "transformer."
    if not any(name.startswith(prefix) for name in names):
        prefix = ""
    return gpt2_layout(config, fields.get(int, "vocab_size", 50257), prefix)


def gpt2_layout(config: ModelConfig, V: int, prefix: str = "transformer.") -> Layout:
    """Return GPT-2's layout: its `Conv1D` has weights (in, out), as ours, so none is transposed."""
    C, F, S = config.embedding_dim, config.hidden_dim, config.max_seq_len
    L = config.n_layers
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "layers.0.tokens": ("wte.weight", (V, C)),
        "layers.0.places": ("wpe.weight", (S, C)),
    }
    for i in range(L):
        theirs: dict[str, tuple[str, tuple[int, ...]]] = {
            "attention.qkv_weight": ("attn.c_attn.weight", (C, 3 * C)),
            "attention.qkv_bias": ("attn.c_attn.bias", (3 * C,)),
            "attention.projection_weight": ("attn.c_proj.weight", (C, C)),
            "attention.projection_bias": ("attn.c_proj.bias", (C,)),
            "norm1.weight": ("ln_1.weight", (C,)),
            "norm1.bias": ("ln_1.bias", (C,)),
            "feed_forward.weight1": ("mlp.c_fc.weight", (C, F)),
            "feed_forward.bias1": ("mlp.c_fc.bias", (F,)),
            "feed_forward.weight2": ("mlp.c_proj.weight", (F, C)),
            "feed_forward.bias2": ("mlp.c_proj.bias", (C,)),
            "norm2.weight": ("ln_2.weight", (C,)),
            "norm2.bias": ("ln_2.bias", (C,)),
        }
        shapes |= {f"layers.{i + 1}.{a}": (f"h.{i}.{b}", s) for a, (b, s) in theirs.items()}
    shapes[f"layers.{L + 1}.weight"] = ("ln_f.weight", (C,))
    shapes[f"layers.{L + 1}.bias"] = ("ln_f.bias", (C,))
    layout: Layout = {
        ours: (Piece(prefix + name, shape),) for ours, (name, shape) in shapes.items()
    }
    if not config.tie_embeddings:
        layout[f"layers.{L + 2}.weight"] = (Piece(HEAD, (V, C), transposed=True),)
    return layout
