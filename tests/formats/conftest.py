"""Owns what the tests of formats share: folders of Hugging Face, written by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rustgpt.text.library_json import characters_json

V, C, S, L, H, F = 262, 6, 9, 2, 3, 10  # of the small models
CHARACTERS = "abcde"  # with the end token and the bytes, V tokens

Tensors = dict[str, np.ndarray]


def gpt2_config(**changes: Any) -> dict[str, Any]:
    """The config.json of a small GPT-2."""
    return {
        "model_type": "gpt2", "vocab_size": V, "n_embd": C, "n_positions": S, "n_layer": L,
        "n_head": H, "n_inner": F, "activation_function": "gelu_new",
    } | changes  # fmt: skip


def gpt2_tensors(prefix: str = "transformer.") -> Tensors:
    """Random tensors of a small GPT-2, with the names and shapes that transformers gives them."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C), "wpe.weight": (S, C)}
    for i in range(L):
        shapes |= {
            f"h.{i}.ln_1.weight": (C,), f"h.{i}.ln_1.bias": (C,),
            f"h.{i}.attn.c_attn.weight": (C, 3 * C), f"h.{i}.attn.c_attn.bias": (3 * C,),
            f"h.{i}.attn.c_proj.weight": (C, C), f"h.{i}.attn.c_proj.bias": (C,),
            f"h.{i}.ln_2.weight": (C,), f"h.{i}.ln_2.bias": (C,),
            f"h.{i}.mlp.c_fc.weight": (C, F), f"h.{i}.mlp.c_fc.bias": (F,),
            f"h.{i}.mlp.c_proj.weight": (F, C), f"h.{i}.mlp.c_proj.bias": (C,),
        }  # fmt: skip
    shapes |= {"ln_f.weight": (C,), "ln_f.bias": (C,)}
    return {
        prefix + name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama_config(**changes: Any) -> dict[str, Any]:
    """The config.json of a small Llama, with fewer heads of keys than of queries."""
    return {
        "model_type": "llama", "vocab_size": V, "hidden_size": 8, "intermediate_size": F,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 40, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "hidden_act": "silu", "head_dim": 2, "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 20,
        },
    } | changes  # fmt: skip


def llama_tensors() -> Tensors:
    """Random tensors of a small Llama, with the names and shapes that transformers gives them."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, 8), "model.norm.weight": (8,), "lm_head.weight": (V, 8),
    } | {
        f"model.layers.0.{name}.weight": shape
        for name, shape in {
            "input_layernorm": (8,), "post_attention_layernorm": (8,),
            "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8), "mlp.gate_proj": (F, 8), "mlp.up_proj": (F, 8),
            "mlp.down_proj": (8, F),
        }.items()
    }  # fmt: skip
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def write(folder: Path, config: dict[str, Any], tensors: Tensors, **files: Any) -> Path:
    """Write a folder of Hugging Face; `files` are other JSON files, without their ending."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config": config, "tokenizer": characters_json(CHARACTERS)} | files
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def gpt2(tmp_path: Path) -> Callable[..., Path]:
    """gpt2(tensors=None, files={}, **config): the folder of a small GPT-2, with changes."""

    def made(tensors: Tensors | None = None, files: Any = None, **config: Any) -> Path:
        tensors = gpt2_tensors() if tensors is None else tensors
        return write(tmp_path / "gpt2", gpt2_config(**config), tensors, **(files or {}))

    return made
