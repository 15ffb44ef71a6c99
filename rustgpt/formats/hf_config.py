"""Owns config.json of Hugging Face: what of it is ours, and what cannot be expressed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.file_set import CONFIG
from rustgpt.formats.json_file import Fields, read_object

EPSILON: Final = 1e-5


def read_fields(folder: Path) -> Fields:
    """Return the fields of a folder's config.json, or raise CheckpointError."""
    path = folder / CONFIG
    return Fields(path, read_object(path, CheckpointError), CheckpointError)


def read_config(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of a model.

    Parameters
    ----------
    dtype
        Ours, in which the file's numbers have their place.

    Raises
    ------
    CheckpointError
        If the model cannot be expressed here; the field is named.
    """
    kind = fields.get(str, "model_type", "")
    if kind not in KNOWN:
        fields.refuse(f"a model of type {kind!r:.60} cannot be read; these can: {', '.join(KNOWN)}")
    fields.must_be("quantization_config", {}, "quantised weights cannot be read")
    return KNOWN[kind](fields, dtype)


def _gpt2(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of a GPT-2; the defaults are those of transformers."""
    computed = "attention is computed otherwise than GPT-2's, which cannot be expressed here"
    fields.must_be("scale_attn_weights", True, computed)
    fields.must_be("scale_attn_by_inverse_layer_idx", False, computed)
    fields.must_be("add_cross_attention", False, "a model that reads a second text cannot be read")
    fields.must_be("pruned_heads", {}, "layers with unequal heads cannot be expressed here")
    C = fields.get(int, "n_embd hidden_size", 768)
    epsilon = fields.get(float, "layer_norm_epsilon", EPSILON)
    if epsilon != EPSILON:
        fields.refuse(f"layer_norm_epsilon must be {EPSILON}, not {epsilon}")
    return _configured(
        fields,
        embedding_dim=C,
        hidden_dim=fields.get(int, "n_inner", 4 * C),
        n_layers=fields.get(int, "n_layer num_hidden_layers", 12),
        n_heads=fields.get(int, "n_head num_attention_heads", 12),
        max_seq_len=fields.get(int, "n_positions max_position_embeddings", 1024),
        activation=_activation(fields, "activation_function", "gelu_new"),
        norm="pre",
        attention_bias=True,
        output_bias=False,
        tie_embeddings=fields.get(bool, "tie_word_embeddings", True),
        dtype=dtype,
        add_bos_token=False,
    )


def _configured(fields: Fields, **values: Any) -> ModelConfig:
    """Return our configuration, or raise CheckpointError."""
    try:
        return ModelConfig(**values)
    except ConfigError as error:
        fields.refuse(str(error))


# The functions of transformers that are ours under another name. Its "gelu" is another function
# than our tanh form.
ACTIVATIONS: Final = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_python_tanh": "gelu",
    "gelu_fast": "gelu", "relu": "relu",
}  # fmt: skip


def _activation(fields: Fields, name: str, default: str) -> str:
    found = fields.get(str, name, default)
    if found not in ACTIVATIONS:
        fields.refuse(
            f"{name} is {found!r:.40}, which cannot be expressed here; these can: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[found]


KNOWN: Final[dict[str, Callable[[Fields, str], ModelConfig]]] = {"gpt2": _gpt2}
