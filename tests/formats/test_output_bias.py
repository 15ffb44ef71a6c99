"""Owns the tests of `rustgpt.formats.output_bias`: the same logits without the bias."""

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.formats.output_bias import without_bias
from rustgpt.text.char_tokenizer import CharTokenizer

SMALL = {"embedding_dim": 12, "hidden_dim": 10, "n_layers": 2, "n_heads": 3, "max_seq_len": 8}
TOKENIZER = CharTokenizer("ab")


def model_of(**changes):
    model = LLM(ModelConfig(**(SMALL | changes)), TOKENIZER)
    model.parameters += 0.3 * np.random.default_rng(2).standard_normal(model.n_parameters)
    return model


def norm_of(model):
    last = len(model.layers) - 2
    return f"layers.{last}" if model.config.norm == "pre" else f"layers.{last}.norm2"


def assert_same_logits(model, tolerance):
    config, parameters = without_bias(model.config, model.named_parameters())
    assert not config.output_bias
    assert not config.tie_embeddings
    twin = LLM(config, TOKENIZER)
    for name, value in twin.named_parameters().items():
        value[...] = parameters[name]
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    largest = np.abs(model.logits(ids)).max()
    np.testing.assert_allclose(twin.logits(ids), model.logits(ids), atol=tolerance * largest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_logits_are_the_same(norm, tied, dtype):
    model = model_of(norm=norm, tie_embeddings=tied, dtype=dtype)
    assert model.named_parameters()[f"layers.{len(model.layers) - 1}.bias"].any()
    assert_same_logits(model, 1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0, 30.0])
def test_whatever_the_last_norm_adds(bias):
    model = model_of(dtype="float64")
    values = model.named_parameters()
    weight = values[f"{norm_of(model)}.weight"]
    # The sum of c / w is 0, or so that taking w from it, or adding it, would give 0.
    values[f"{norm_of(model)}.bias"][...] = bias * weight
    weight[0] = 1e-3
    assert_same_logits(model, 1e-11)


def test_no_bias_changes_nothing():
    model = model_of(tie_embeddings=True)
    values = model.named_parameters()
    values[f"layers.{len(model.layers) - 1}.bias"][...] = 0
    config, found = without_bias(model.config, values)
    assert config.tie_embeddings
    assert not config.output_bias
    assert found.keys() == values.keys() - {f"layers.{len(model.layers) - 1}.bias"}
    assert all(found[name] is values[name] for name in found)


def test_what_cannot_take_up_the_bias_is_refused():
    model = model_of()
    model.named_parameters()[f"{norm_of(model)}.weight"][4] = 0
    with pytest.raises(CheckpointError, match="--no-output-bias"):
        without_bias(model.config, model.named_parameters())
    model = model_of(n_layers=0)
    with pytest.raises(CheckpointError, match="--no-output-bias"):
        without_bias(model.config, model.named_parameters())
