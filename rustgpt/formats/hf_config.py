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
    return KNOWN[kind][0](fields, dtype)


def vocab_size(fields: Fields) -> int:
    """Return V, how many tokens a model has that `read_config` can read."""
    _, default = KNOWN[fields.values["model_type"]]
    found: int = fields.get(int, "vocab_size", default)
    return found


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
    )


def _opt(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of an OPT: norms before or after, ReLU, positions from the third."""
    C = fields.get(int, "hidden_size", 768)
    if fields.get(int, "word_embed_proj_dim", C) != C:
        fields.refuse(
            "word_embed_proj_dim differs from hidden_size: a projection of the "
            "embeddings cannot be expressed here"
        )
    missing = "layers without weights of their own cannot be expressed here"
    fields.must_be("enable_bias", True, "products without a bias are not read")
    fields.must_be("layer_norm_elementwise_affine", True, missing)
    fields.must_be("_remove_final_layer_norm", False, "a last norm is needed here")
    return _configured(
        fields,
        embedding_dim=C,
        hidden_dim=fields.get(int, "ffn_dim", 3072),
        n_layers=fields.get(int, "num_hidden_layers", 12),
        n_heads=fields.get(int, "num_attention_heads", 12),
        max_seq_len=fields.get(int, "max_position_embeddings", 2048),
        activation=_activation(fields, "activation_function", "relu"),
        norm="pre" if fields.get(bool, "do_layer_norm_before", True) else "post",
        attention_bias=True,
        output_bias=False,
        tie_embeddings=fields.get(bool, "tie_word_embeddings", True),
        dtype=dtype,
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


# By "model_type": what reads its config.json, and how many tokens it has where that does not say.
KNOWN: Final[dict[str, tuple[Callable[[Fields, str], ModelConfig], int]]] = {
    "gpt2": (_gpt2, 50257),
    "opt": (_opt, 50272),
}


def written_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Return the config.json that says how one of our models computes.

    The settings that cannot be expressed are dealt with before, or refused here.

    Raises
    ------
    CheckpointError
        If no model of transformers computes the same.
    """
    C, L, H = config.embedding_dim, config.n_layers, config.n_heads
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.norm == "pre":
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
            "vocab_size": vocab_size, "n_positions": config.max_seq_len,
            "n_embd": C, "n_inner": config.hidden_dim, "n_layer": L, "n_head": H,
            "activation_function": names[config.activation], "layer_norm_epsilon": EPSILON,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "tie_word_embeddings": config.tie_embeddings,
        }  # fmt: skip
    return {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "do_layer_norm_before": False,
        "vocab_size": vocab_size, "max_position_embeddings": config.max_seq_len,
        "hidden_size": C, "word_embed_proj_dim": C, "ffn_dim": config.hidden_dim,
        "num_hidden_layers": L, "num_attention_heads": H,
        "activation_function": names[config.activation],
        "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip
