"""Tests of the shapes of models that have a name."""

import numpy as np
import pytest

from rustgpt import LLM, ConfigError, ModelConfig, Trainer
from rustgpt.config import TrainConfig
from rustgpt.layers.gpt import build_layers, named_parameters
from rustgpt.presets import PRESETS

# At a vocabulary of 533 words, and of GPT-2 and SmolLM2 at their own.
SIZES = {
    "rustgpt": (533, 493_973), "gpt2-tiny": (533, 894_336), "gpt2-small": (533, 10_950_528),
    "gpt2": (50_257, 124_439_808), "llama-tiny": (533, 794_368), "llama-small": (533, 9_646_848),
    "smollm2": (49_152, 134_515_008),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_the_sizes(name):
    vocab_size, expected = SIZES[name]
    layers = build_layers(ModelConfig.preset(name), vocab_size, initialise=False)
    assert sum(value.size for value in named_parameters(layers).values()) == expected


def test_changes_win():
    config = ModelConfig.preset("llama-tiny", n_layers=2, n_kv_heads=1)
    assert (config.n_layers, config.n_kv_heads, config.positions) == (2, 1, "rotary")


def test_an_unknown_name_or_a_wrong_change_is_told():
    with pytest.raises(ConfigError, match=r"preset must be one of rustgpt, .*'llama-huge'"):
        ModelConfig.preset("llama-huge")
    with pytest.raises(ConfigError, match="n_heads"):
        ModelConfig.preset("llama-tiny", n_heads=5)


@pytest.mark.parametrize("name", ["rustgpt", "gpt2-tiny", "llama-tiny"])
def test_it_learns_a_sentence_by_heart(letters, name):
    config = ModelConfig.preset(name, embedding_dim=32, hidden_dim=48, n_layers=2, max_seq_len=48)
    model = LLM(config, letters)
    trainer = Trainer(model, TrainConfig(pretrain_epochs=60, pretrain_rate=0.01, threads=2))
    trainer.pretrain(["the quick brown fox jumps over the lazy dog"] * 4)
    rest = " brown fox jumps over the lazy dog"
    assert model.generate("the quick", temperature=0.0, max_new_tokens=len(rest)) == rest
    assert np.isfinite(model.parameters).all()
