"""Owns the tests of `rustgpt.formats.hf_config`: every field is heeded, or refused by its name."""

import json

import pytest

from rustgpt.errors import CheckpointError
from rustgpt.formats.hf_config import read_config, read_fields, vocab_size, written_config

SMALL = {"n_embd": 12, "n_head": 3}


def read(tmp_path, kind="gpt2", **values):
    content = {"model_type": kind} | (SMALL if kind == "gpt2" else {}) | values
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_config(read_fields(tmp_path), "float32")


def test_the_defaults_are_those_of_transformers(tmp_path):
    config = read(tmp_path, n_embd=None, n_head=None)
    assert (config.embedding_dim, config.hidden_dim) == (768, 3072)
    assert (config.n_layers, config.n_heads, config.max_seq_len) == (12, 12, 1024)
    assert (config.norm, config.activation) == ("pre", "gelu")
    assert config.tie_embeddings
    assert config.attention_bias
    assert not config.output_bias
    assert vocab_size(read_fields(tmp_path)) == 50257
    config = read(tmp_path, "opt")
    assert (config.hidden_dim, config.n_layers, config.max_seq_len) == (3072, 12, 2048)
    assert (config.norm, config.activation) == ("pre", "relu")
    assert vocab_size(read_fields(tmp_path)) == 50272


def test_sizes_may_have_the_names_of_other_models(tmp_path):
    config = read(
        tmp_path, n_embd=None, n_head=None, hidden_size=20, num_attention_heads=5,
        num_hidden_layers=7, max_position_embeddings=33,
    )  # fmt: skip
    assert (config.embedding_dim, config.n_heads) == (20, 5)
    assert (config.n_layers, config.max_seq_len) == (7, 33)
    with pytest.raises(CheckpointError, match="hidden_size is 20, but n_embd is 12"):
        read(tmp_path, hidden_size=20)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"])
def test_the_names_of_our_gelu(name, tmp_path):
    assert read(tmp_path, activation_function=name).activation == "gelu"


REFUSED = [
    ("gpt2", "activation_function", "gelu", "activation_function is 'gelu', which cannot.* tanh"),
    ("opt", "activation_function", "gelu", "activation_function is 'gelu', which cannot.* tanh"),
    ("gpt2", "activation_function", "silu", "activation_function is 'silu', which cannot"),
    ("gpt2", "activation_function", 3, "activation_function must be of type str"),
    ("gpt2", "scale_attn_weights", False, "scale_attn_weights is False: attention is computed"),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", "add_cross_attention", True, "add_cross_attention is True"),
    ("gpt2", "pruned_heads", {"0": [1]}, "pruned_heads is"),
    ("gpt2", "quantization_config", {"bits": 4}, "quantization_config is .*quantised weights"),
    ("gpt2", "layer_norm_epsilon", -1.0, "epsilon"),
    ("gpt2", "layer_norm_epsilon", "small", "layer_norm_epsilon must be of type float"),
    ("gpt2", "n_embd", 12.0, "n_embd must be of type int, not 12.0"),
    ("gpt2", "n_embd", True, "n_embd must be of type int, not True"),
    ("gpt2", "n_embd", -12, "embedding_dim must be from 1"),
    ("gpt2", "n_embd", 10**30, "embedding_dim must be from 1"),
    ("gpt2", "n_head", 5, "n_heads must divide embedding_dim"),
    ("gpt2", "n_head", [3], "n_head must be of type int"),
    ("gpt2", "n_positions", 0, "max_seq_len must be from 2"),
    ("gpt2", "tie_word_embeddings", "yes", "tie_word_embeddings must be of type bool"),
    ("opt", "word_embed_proj_dim", 512, "word_embed_proj_dim differs from hidden_size"),
    ("opt", "enable_bias", False, "enable_bias is False"),
    ("opt", "layer_norm_elementwise_affine", False, "layer_norm_elementwise_affine is False"),
    ("opt", "_remove_final_layer_norm", True, "_remove_final_layer_norm is True"),
    (
        "bert",
        "n_embd",
        12,
        "a model of type 'bert' cannot be read; these can: gpt2, opt, llama, mist",
    ),
    ("gemma", "n_embd", 12, "a model of type 'gemma' cannot be read"),
    ("llama", "hidden_act", "gelu", "hidden_act is 'gelu'"),
    ("llama", "head_dim", 64, r"head_dim is 64, but here it is .* 4096 / 32"),
    ("llama", "num_key_value_heads", 5, "n_kv_heads must divide n_heads"),
    ("llama", "num_key_value_heads", 0, "n_kv_heads must be from 1"),
    ("llama", "num_attention_heads", 0, "n_heads must be from 1"),
    ("llama", "rms_norm_eps", "1e-6", "rms_norm_eps must be of type float"),
    ("llama", "mlp_bias", 1, "mlp_bias must be of type bool"),
    ("llama", "rope_theta", 0, "rope_theta must be from 1"),
    ("mistral", "sliding_window", 4096, "sliding_window is 4096: attention to a part"),
    ("mistral", "max_position_embeddings", 4097, "sliding_window is 4096: attention to a part"),
    ("mistral", "attention_bias", True, "attention_bias is True: a Mistral has none"),
    ("qwen2", "use_sliding_window", True, "use_sliding_window is True"),
    ("qwen2", "layer_types", ["sliding_attention"], "layer_types holds 'sliding_attention'"),
    ("qwen2", "attention_bias", False, "attention_bias is False: of a Qwen 2"),
    (["gpt2"], "n_embd", 12, "model_type must be of type str"),
]


@pytest.mark.parametrize(("kind", "name", "value", "message"), REFUSED)
def test_what_changes_the_mathematics_is_refused_by_name(kind, name, value, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, kind, **{name: value})
    assert str(caught.value).startswith(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"n": 1' + b"0" * 5000 + b"}", b"3"]
)
def test_a_broken_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(read_fields(tmp_path), "float32")


def test_the_defaults_of_the_llama_family(tmp_path):
    config = read(tmp_path, "llama")
    assert (config.embedding_dim, config.hidden_dim, config.n_kv_heads) == (4096, 11008, 32)
    assert (config.n_layers, config.n_heads, config.max_seq_len) == (32, 32, 2048)
    assert (config.norm_type, config.positions, config.activation) == (
        "rms_norm", "rotary", "swiglu",
    )  # fmt: skip
    assert (config.norm_epsilon, config.rope_theta) == (1e-6, 10000)
    assert not any([config.tie_embeddings, config.attention_bias, config.feed_forward_bias])
    config = read(tmp_path, "mistral", sliding_window=None)
    assert (config.hidden_dim, config.n_kv_heads, config.max_seq_len) == (14336, 8, 131072)
    assert read(tmp_path, "mistral", max_position_embeddings=4096).max_seq_len == 4096
    config = read(tmp_path, "qwen2")
    assert (config.hidden_dim, config.n_kv_heads, config.max_seq_len) == (22016, 32, 32768)
    assert config.attention_bias
    assert not config.feed_forward_bias
    assert read(tmp_path, "llama", num_attention_heads=64).n_kv_heads == 64


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_what_is_written_is_read(norm, tmp_path):
    config = read(
        tmp_path, n_layer=2, tie_word_embeddings=norm == "pre", activation_function="relu"
    )
    config = type(config)(**(config.to_dict() | {"norm": norm}))
    fields = written_config(config, 99)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_config(read_fields(tmp_path), "float32") == config
    assert vocab_size(read_fields(tmp_path)) == 99
