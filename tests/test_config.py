"""Tests of the configuration of models and trainings."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError

BOTH = [ModelConfig, TrainConfig]


def test_the_default_model_has_the_sizes_of_the_design():
    config = ModelConfig()
    assert (config.embedding_dim, config.hidden_dim, config.n_layers) == (128, 256, 3)
    assert (config.n_heads, config.max_seq_len) == (4, 80)
    assert (config.activation, config.norm, config.dtype) == ("relu", "post", "float32")
    assert (config.output_bias, config.tie_embeddings) == (True, False)


@pytest.mark.parametrize("kind", BOTH)
def test_a_configuration_goes_to_plain_values_and_back(kind):
    config = kind(seed=7)
    values = config.to_dict()
    assert values["seed"] == 7
    assert all(type(value) in (int, float, str, bool, list) for value in values.values())
    assert json.loads(json.dumps(values)) == values
    assert kind.from_dict(values) == config
    assert kind.from_dict({}) == kind()


@pytest.mark.parametrize("kind", BOTH)
def test_a_configuration_cannot_be_changed(kind):
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().seed = 3


@pytest.mark.parametrize("kind", BOTH)
def test_an_unknown_field_is_named(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} has no field 'colour'.*seed"):
        kind.from_dict({"colour": 1})


WRONG = [
    (ModelConfig, name, value)
    for name in ("embedding_dim", "hidden_dim", "n_heads")
    for value in (0, -1, 2**20 + 1, 1.5, "8", None, True, math.nan)
]
WRONG += [(ModelConfig, "n_layers", value) for value in (-1, 10_001, 2.0, False)]
WRONG += [(ModelConfig, "max_seq_len", value) for value in (1, 0, 2**20 + 1)]
WRONG += [(ModelConfig, "activation", value) for value in ("swish", "", None, "ReLU")]
WRONG += [(ModelConfig, "norm", "both"), (ModelConfig, "dtype", "float16")]
WRONG += [
    (ModelConfig, name, value)
    for name in ("attention_projection", "attention_bias", "output_bias", "tie_embeddings")
    for value in (1, 0, "yes", None)
]
WRONG += [(kind, "seed", value) for kind in BOTH for value in (-1, 2**63, 0.5)]
WRONG += [
    (TrainConfig, name, value)
    for name in ("pretrain_epochs", "tune_epochs", "warmup_steps", "eval_every", "patience")
    for value in (-1, 10**9 + 1, 1.0)
]
WRONG += [(TrainConfig, "batch_size", value) for value in (0, -1, 10**6 + 1, True)]
WRONG += [
    (TrainConfig, name, value)
    for name in ("pretrain_rate", "tune_rate", "weight_decay")
    for value in (-1e-9, 1001, math.nan, math.inf, "0.1", True)
]
WRONG += [(TrainConfig, "max_grad_norm", value) for value in (0, -1.0, math.nan)]
WRONG += [(TrainConfig, "epsilon", value) for value in (0, -1e-8, 1.5, math.nan)]
WRONG += [
    (TrainConfig, name, value)
    for name in ("beta1", "beta2", "dropout")
    for value in (1, 1.0, -0.1, math.nan)
]
WRONG += [(TrainConfig, "final_rate", value) for value in (-0.1, 1.1, math.nan)]
WRONG += [(TrainConfig, "schedule", "step"), (TrainConfig, "threads", -1)]
WRONG += [(TrainConfig, "precision", value) for value in ("float16", "bf16", "", None, True)]
WRONG += [(TrainConfig, "threads", 1025)]
WRONG += [(TrainConfig, "loss_on", value) for value in ("user", "", None, True)]
WRONG += [
    (TrainConfig, name, value)
    for name in ("max_steps", "max_tokens", "batch_tokens")
    for value in (-1, 10**16, 1.5, True, "10")
]
WRONG += [(TrainConfig, "max_time", value) for value in (-1, math.nan, math.inf, "10m", True)]
WRONG += [(TrainConfig, "validation_share", value) for value in (-0.1, 0.6, math.nan, "0.1")]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_a_wrong_value_is_named(kind, name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        kind(**{name: value})
    with pytest.raises(ConfigError, match=name):
        kind.from_dict({name: value})


def test_limits_themselves_are_right():
    assert ModelConfig(embedding_dim=1, hidden_dim=1, n_heads=1, n_layers=0, max_seq_len=2)
    assert TrainConfig(max_grad_norm=math.inf, beta1=0, beta2=0.0, epsilon=1, warmup_steps=0)
    assert TrainConfig(pretrain_rate=0, tune_rate=1, batch_size=1, seed=2**63 - 1)


def test_heads_must_divide_the_dimension():
    with pytest.raises(ConfigError, match=r"n_heads.*5.*128"):
        ModelConfig(n_heads=5)
    assert ModelConfig(embedding_dim=15, n_heads=5).n_heads == 5


def test_key_heads_are_as_many_as_heads_or_divide_them():
    assert ModelConfig(n_heads=8).n_kv_heads == 8
    assert ModelConfig(n_heads=8, n_kv_heads=2).n_kv_heads == 2
    with pytest.raises(ConfigError, match="n_kv_heads must divide n_heads: 3 does not divide 8"):
        ModelConfig(n_heads=8, n_kv_heads=3)
    with pytest.raises(ConfigError, match="n_kv_heads must be from 1"):
        ModelConfig(n_kv_heads=0)


def test_rotary_positions_turn_pairs():
    assert ModelConfig(embedding_dim=6, n_heads=3, positions="rotary").positions == "rotary"
    with pytest.raises(ConfigError, match="embedding_dim / n_heads must be even, got 3"):
        ModelConfig(embedding_dim=6, n_heads=2, positions="rotary")


LINEAR = {"positions": "rotary", "rope_scaling": "linear", "rope_factor": 2.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rope_theta": 5.0}, "rope_theta 5.0 is for rotary positions, not learned"),
        ({"rope_scaling": "linear"}, "rope_scaling linear is for rotary positions"),
        ({"positions": "rotary", "rope_factor": 2.0}, "rope_factor 2.0 is for rope_scaling linear"),
        (LINEAR | {"rope_low_freq_factor": 2.0}, "is for rope_scaling llama3, not linear"),
        (LINEAR | {"rope_original_max_seq_len": 9}, "is for rope_scaling llama3, not linear"),
        (
            LINEAR | {"rope_scaling": "llama3", "rope_low_freq_factor": 4.0},
            "rope_low_freq_factor must be below rope_high_freq_factor, got 4 and 4",
        ),
    ],
)
def test_a_setting_of_rotary_positions_without_effect_is_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**settings)
    assert words in str(caught.value)
    assert ModelConfig(**LINEAR | {"rope_theta": 5.0}).rope_factor == 2.0


def test_numbers_of_numpy_are_taken():
    config = TrainConfig(
        batch_size=np.int64(4), pretrain_rate=np.float32(0.5), seed=np.uint8(3), beta1=np.float64(0)
    )
    assert config == TrainConfig(batch_size=4, pretrain_rate=0.5, seed=3, beta1=0)
    assert {type(value) for value in config.to_dict().values()} == {int, float, str}
    model = ModelConfig(embedding_dim=np.int32(8), n_heads=np.int16(2), tie_embeddings=np.True_)
    assert model == ModelConfig(embedding_dim=8, n_heads=2, tie_embeddings=True)
    assert model.to_dict()["tie_embeddings"] is True
    json.dumps([config.to_dict(), model.to_dict()])


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (TrainConfig, {"beta1": 1.0}, "beta1 must be from 0 to below 1, got 1.0"),
        (ModelConfig, {"embedding_dim": 2**20 + 1}, "from 1 to 1,048,576, got 1048577"),
        (ModelConfig, {"activation": np.array(["relu", "gelu"])}, "activation must be one of"),
        (TrainConfig, {"batch_size": np.float64(4)}, "batch_size must be of type int"),
        (TrainConfig, {"batch_size": np.True_}, "batch_size must be of type int"),
        (ModelConfig, {"tie_embeddings": np.int64(1)}, "tie_embeddings must be of type bool"),
        (TrainConfig, {"pretrain_rate": Fraction(10**400)}, "pretrain_rate must be from 0"),
    ],
)
def test_a_limit_is_told_as_it_is(kind, settings, words):
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert words in str(caught.value)


def test_token_ids_are_a_list_of_whole_numbers():
    assert ModelConfig(end_token_ids=[2, np.int64(0)]).end_token_ids == (2, 0)
    for wrong in (2, "2", [1.5], [-1], [True], [2**31]):
        with pytest.raises(ConfigError, match="end_token_ids must be"):
            ModelConfig(end_token_ids=wrong)
