"""Owns the tests of writing folders of Hugging Face that need no other package."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from rustgpt import LLM, LayerNorm, ModelConfig, WordTokenizer, build_layers, formats
from rustgpt.errors import CheckpointError, ConfigError, TokenizerError
from rustgpt.text.char_tokenizer import CharTokenizer

from .conftest import gpt2_tensors

GPT2 = {
    "norm": "pre", "activation": "gelu", "attention_bias": True, "output_bias": False,
    "tie_embeddings": True,
}  # fmt: skip
LLAMA = {
    "n_kv_heads": 1, "activation": "swiglu", "feed_forward_bias": False, "norm": "pre",
    "norm_type": "rms_norm", "positions": "rotary", "output_bias": False,
}  # fmt: skip
IDS = [0, 5, 258, 260, 257, 17, 17, 3]
FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


def model_of(tokenizer=None, **changes):
    """A small random model, all of whose parameters matter."""
    sizes = {"embedding_dim": 12, "hidden_dim": 10, "n_layers": 2, "n_heads": 3, "max_seq_len": 8}
    model = LLM(ModelConfig(**(sizes | changes)), tokenizer or CharTokenizer("abcd"))
    model.parameters += 0.2 * np.random.default_rng(2).standard_normal(model.n_parameters)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        GPT2, {}, {"norm": "pre"}, {"tie_embeddings": True},
        {"norm": "pre", "tie_embeddings": True},
        {"attention_projection": False}, {"dtype": "float64"}, {"add_bos_token": False},
        GPT2 | {"activation": "relu", "attention_bias": False, "dtype": "float64"},
        LLAMA, LLAMA | {"attention_bias": True, "tie_embeddings": True, "rope_scaling": "linear"},
        {"n_layers": 0, "norm": "pre"}, {"end_token_ids": (258, 3)}, {"bos_token_id": 0},
    ],
)  # fmt: skip
def test_what_is_written_is_read_and_computes_the_same(changes, tmp_path):
    model = model_of(**changes)
    model.save(tmp_path / "out", format="hf")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    again = LLM.load(tmp_path / "out")
    tolerance = 1e-5 if model.config.dtype == "float32" else 1e-12
    np.testing.assert_allclose(again.logits(IDS), model.logits(IDS), atol=tolerance, rtol=0)
    assert again.prompt_ids("abé") == model.prompt_ids("abé")
    assert {*again.end_ids} == {0, *model.end_ids}
    assert again.config.dtype == model.config.dtype


def test_a_model_that_was_read_is_written_as_it_was(gpt2, tmp_path):
    folder = gpt2()
    LLM.load(folder).save(tmp_path / "out", format="hf")
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in gpt2_tensors().items():
        np.testing.assert_array_equal(found.pop(name), value)
    assert not found


def test_halves_are_the_nearest(tmp_path):
    model = model_of(**GPT2)
    values = model.named_parameters()["layers.0.tokens"]
    values[0, :4] = 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -65504  # ties go to even
    formats.export(model, tmp_path / "b", "hf", "bfloat16")
    found = LLM.load(tmp_path / "b").named_parameters()["layers.0.tokens"]
    assert found[0, :4].tolist() == [1, 1 + 2**-6, 1 + 2**-7, -65536]
    assert np.abs(found - values).max() <= np.abs(values).max() * 2**-8
    formats.export(model, tmp_path / "h", "hf", "float16")
    found = LLM.load(tmp_path / "h").named_parameters()["layers.0.tokens"]
    np.testing.assert_array_equal(found, values.astype(np.float16))
    assert json.loads((tmp_path / "h" / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (LLAMA | {"norm": "post"}, "norm post"),
        (LLAMA | {"activation": "gelu"}, "activation gelu"),
        (LLAMA | {"positions": "learned"}, "positions learned"),
        (LLAMA | {"norm_type": "layer_norm"}, "norm_type layer_norm"),
        (LLAMA | {"output_bias": True}, "--no-output-bias"),
        (GPT2 | {"n_kv_heads": 1}, "1 heads of keys for 3"),
        (GPT2 | {"activation": "swiglu"}, "activation swiglu"),
        ({"norm_epsilon": 1e-3}, "a norm_epsilon of 0.001"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(changes, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        model_of(**changes).save(tmp_path / "out", format="hf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65520), ("bfloat16", 3.4e38)])
def test_a_number_that_is_too_large_is_refused(dtype, value, tmp_path):
    model = model_of(**GPT2)
    model.named_parameters()["layers.0.tokens"][3, 2] = value
    with pytest.raises(
        CheckpointError, match=rf"wte\.weight' holds a number too large for {dtype}"
    ):
        formats.export(model, tmp_path / "out", "hf", dtype)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model_is_not_written(value, tmp_path):
    model = model_of()
    model.parameters[7] = value
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        model.save(tmp_path / "out", format="hf")
    assert not [*tmp_path.iterdir()]


def test_a_tokenizer_of_words_is_refused(tmp_path):
    model = model_of(WordTokenizer.train(["the sun"]))
    with pytest.raises(TokenizerError, match=r"WordTokenizer cannot be written .* --tokenizer bpe"):
        model.save(tmp_path / "out", format="hf")
    assert not [*tmp_path.iterdir()]


class Own(LayerNorm):
    """A layer of one's own."""


def test_layers_of_ones_own_are_refused(tmp_path):
    config = ModelConfig(norm="pre", embedding_dim=12, n_heads=3, n_layers=1)
    tokenizer = CharTokenizer("ab")

    def refused(change):
        layers = build_layers(config, tokenizer.vocab_size)
        change(layers)
        with pytest.raises(CheckpointError, match="a layer of your own"):
            LLM(config, tokenizer, layers).save(tmp_path / "out", format="hf")

    refused(lambda layers: layers.__setitem__(2, Own(12)))
    refused(lambda layers: layers.insert(2, LayerNorm(12)))
    refused(lambda layers: layers.pop(2))
    refused(lambda layers: setattr(layers[1].norm1, "epsilon", 1e-3))
    refused(lambda layers: setattr(layers[2], "epsilon", 1e-3))


def test_wrong_names_are_refused(tmp_path):
    model = model_of()
    with pytest.raises(ConfigError, match="format must be one of"):
        model.save(tmp_path / "out", format="onnx")
    with pytest.raises(ConfigError, match="dtype must be one of"):
        formats.export(model, tmp_path / "out", "hf", "int8")


def test_a_start_token_that_text_could_be_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="token 258, with which texts begin, is no special"):
        model_of(bos_token_id=258).save(tmp_path / "out", format="hf")
