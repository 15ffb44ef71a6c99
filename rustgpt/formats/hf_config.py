"""Owns config.json of Hugging Face: what of it is ours, and what cannot be expressed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.file_set import CONFIG
from rustgpt.formats.hf_rope import rope_settings, written_rope
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
    return _configured(
        fields,
        embedding_dim=C,
        hidden_dim=fields.get(int, "n_inner", 4 * C),
        n_layers=fields.get(int, "n_layer num_hidden_layers", 12),
        n_heads=fields.get(int, "n_head num_attention_heads", 12),
        max_seq_len=fields.get(int, "n_positions max_position_embeddings", 1024),
        activation=_activation(fields, "activation_function", "gelu_new"),
        norm="pre",
        norm_epsilon=fields.get(float, "layer_norm_epsilon", EPSILON),
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


def _llama(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of a Llama."""
    fields.must_be("hidden_act", "silu", "another activation than SiLU cannot be expressed here")
    C = fields.get(int, "hidden_size", 4096)
    H = fields.get(int, "num_attention_heads", 32)
    K = fields.get(int, "num_key_value_heads", H)
    head_dim = fields.get(int, "head_dim", None)
    if head_dim is not None and H * head_dim != C:
        fields.refuse(
            f"head_dim is {head_dim}, but here it is hidden_size / num_attention_heads, {C} / {H}"
        )
    S = fields.get(int, "max_position_embeddings", 2048)
    return _configured(
        fields,
        embedding_dim=C,
        hidden_dim=fields.get(int, "intermediate_size", 11008),
        n_layers=fields.get(int, "num_hidden_layers", 32),
        n_heads=H,
        n_kv_heads=K,
        max_seq_len=S,
        activation="swiglu",
        feed_forward_bias=fields.get(bool, "mlp_bias", False),
        norm="pre",
        norm_type="rms_norm",
        norm_epsilon=fields.get(float, "rms_norm_eps", 1e-6),
        positions="rotary",
        attention_bias=fields.get(bool, "attention_bias", False),
        output_bias=False,
        tie_embeddings=fields.get(bool, "tie_word_embeddings", False),
        dtype=dtype,
        **rope_settings(fields, S),
    )


def _mistral(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of a Mistral: a Llama, if each token sees all before it."""
    for name in ("attention_bias", "mlp_bias"):
        fields.must_be(name, False, "a Mistral has none")
    S = fields.get(int, "max_position_embeddings", 4096 * 32)
    null = "sliding_window" in fields.values and fields.values["sliding_window"] is None
    window = S if null else fields.get(int, "sliding_window", 4096)
    if window < S:
        fields.refuse(
            f"sliding_window is {window}: attention to a part of the {S} positions alone cannot be "
            "expressed here"
        )
    defaults = {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": S}
    return _llama(fields.filled(defaults), dtype)


def _qwen2(fields: Fields, dtype: str) -> ModelConfig:
    """Return our configuration of a Qwen 2: a Llama with a bias of queries, keys and values."""
    fields.must_be(
        "use_sliding_window", False, "attention to a part alone cannot be expressed here"
    )
    for layer in fields.get(list, "layer_types", []):
        if layer != "full_attention":
            fields.refuse(f"layer_types holds {layer!r:.60}, which cannot be expressed here")
    for name, needed in (("attention_bias", True), ("mlp_bias", False)):
        fields.must_be(name, needed, "of a Qwen 2, queries, keys and values alone have a bias")
    defaults = {
        "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    }  # fmt: skip
    return _llama(fields.filled({**defaults, "attention_bias": True}), dtype)


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


ACTIVATION_NAMES: Final = {"gelu": "gelu_new", "relu": "relu"}


def _activation(fields: Fields, name: str, default: str) -> str:
    found = fields.get(str, name, default)
    if found not in ACTIVATIONS:
        fields.refuse(
            f"{name} is {found!r:.40}, which cannot be expressed here; these can, of GELU the tanh "
            f"form alone: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[found]


# By "model_type": what reads its config.json, and how many tokens it has where that does not say.
KNOWN: Final[dict[str, tuple[Callable[[Fields, str], ModelConfig], int]]] = {
    "gpt2": (_gpt2, 50257),
    "opt": (_opt, 50272),
    "llama": (_llama, 32000),
    "mistral": (_mistral, 32000),
    "qwen2": (_qwen2, 151936),
}


def written_config(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Return the config.json that says how one of our models computes.

    Raises
    ------
    CheckpointError
        If no model of transformers that is known here computes the same.
    """
    settings = config.norm_type, config.positions, config.activation
    if settings == ("rms_norm", "rotary", "swiglu") and config.norm == "pre":
        return {**_written_llama(config), "vocab_size": vocab_size}
    plain = settings[:2] == ("layer_norm", "learned") and config.activation in ACTIVATION_NAMES
    if not plain or config.n_kv_heads != config.n_heads:
        raise CheckpointError(
            "transformers has no model that computes as this one does: with norm_type "
            f"{config.norm_type}, positions {config.positions}, activation {config.activation}, "
            f"norm {config.norm}, and {config.n_kv_heads} heads of keys for {config.n_heads}; it "
            "has GPT-2's form (layer_norm, learned, gelu or relu, as many heads) and Llama's "
            "(rms_norm, rotary, swiglu, norm pre): train one of these"
        )
    if config.norm == "pre":
        return {**_written_gpt2(config), "vocab_size": vocab_size}
    if config.norm_epsilon != EPSILON:
        raise CheckpointError(
            f"transformers has no model with the norms behind the sums and a norm_epsilon of "
            f"{config.norm_epsilon:g}: there it is {EPSILON:g}"
        )
    return {**_written_opt(config), "vocab_size": vocab_size}


def _written_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "n_positions": config.max_seq_len, "n_embd": config.embedding_dim,
        "n_inner": config.hidden_dim, "n_layer": config.n_layers, "n_head": config.n_heads,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip


def _written_opt(config: ModelConfig) -> dict[str, Any]:
    C = config.embedding_dim
    return {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "do_layer_norm_before": False,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": C, "word_embed_proj_dim": C, "ffn_dim": config.hidden_dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip


def _written_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.embedding_dim, "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.embedding_dim // config.n_heads,
        "rms_norm_eps": config.norm_epsilon, "attention_dropout": 0.0,
        "attention_bias": config.attention_bias, "mlp_bias": config.feed_forward_bias,
        "tie_word_embeddings": config.tie_embeddings, **written_rope(config),
    }  # fmt: skip
