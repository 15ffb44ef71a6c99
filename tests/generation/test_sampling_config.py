"""Tests of the settings of generation: what is refused, and how some become others."""

import dataclasses
import math

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.generation.sampling_config import UNSET, SamplingConfig

HUGE = 10**400
WRONG = {
    "max_new_tokens": [-1, 2.5, True, None, "3", HUGE, math.nan, np.float64(2), 2**31],
    "seed": [-1, 2.5, True, None, "3", HUGE, 2**63],
    "temperature": [-1, -1e-300, math.nan, math.inf, -math.inf, True, HUGE, "1", None],
    "top_k": [-1, 0.5, True, None, HUGE],
    "top_p": [-0.1, 1.1, math.nan, math.inf, True, None, "x"],
    "min_p": [-0.1, 1.1, math.nan, None],
    "repetition_penalty": [0, -1, math.nan, math.inf, None],
    "presence_penalty": [math.nan, math.inf, None],
    "frequency_penalty": [math.nan, -math.inf, None],
    "no_repeat_ngram": [-1, 1.5, None],
    "logit_bias": [5, [1], {1: "x"}, {1: math.nan}, {1: math.inf}, {"x": 1}, {1.5: 1}, None],
    "stop": [5, [""], "", [1], None, {"a"}],
    "choices": [5, [""], [None], None],
    "n": [0, -1, 1.5, 1001],
    "logprobs": [-1, 1.5, "all", 1001],
    "num_beams": [0, 65, 1.5],
    "length_penalty": [math.nan, math.inf, 11, None],
    "json_schema": [5, "x", [1], {1j: 2}, {"a": math.nan}],
    "processors": [5, [1], None, {}.items],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_out_of_range_is_refused_by_its_name(name):
    for value in WRONG[name]:
        with pytest.raises(ConfigError, match=name):
            SamplingConfig(**{name: value})


def test_every_setting_is_tested():
    assert {field.name for field in dataclasses.fields(SamplingConfig)} == WRONG.keys()


@pytest.mark.parametrize("temperature", [0, 1, 0.0, 1e-30, 0.7, 1e9, np.float32(0.5)])
def test_right_settings_become_plain_values(temperature):
    config = SamplingConfig(
        np.int64(3), temperature, seed=np.uint8(4), stop="a", logit_bias={"5": 1, np.int32(6): 2}
    )
    assert config.temperature == pytest.approx(float(temperature))
    assert {type(config.max_new_tokens), type(config.seed)} == {int}
    assert config.stop == ("a",)
    assert config.logit_bias == {5: 1.0, 6: 2.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 2, "temperature": 0.5}, "num_beams 2 .* needs temperature 0, got 0.5"),
        ({"num_beams": 2, "n": 3}, "num_beams must be at least n, 3, got 2"),
        ({"choices": ["a"], "json_schema": {}}, "choices or a json_schema, not both"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SamplingConfig(**settings)


def test_settings_change_others():
    base = SamplingConfig(temperature=0.5, top_k=3)
    assert SamplingConfig.of(base, seed=UNSET) is base
    changed = SamplingConfig.of(base, temperature=0.0, seed=4)
    assert changed == SamplingConfig(temperature=0.0, top_k=3, seed=4)
    assert SamplingConfig.of(None, top_k=3) == SamplingConfig(top_k=3)


def test_an_unknown_setting_is_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"no setting 'top_q' of generation; .*top_k, top_p"):
        SamplingConfig.of(None, top_q=1)
    with pytest.raises(ConfigError, match="sampling must be a SamplingConfig, got 5"):
        SamplingConfig.of(5)


def test_it_is_frozen_and_what_it_was_given_may_change():
    schema, stop = {"type": "object"}, ["a"]
    config = SamplingConfig(json_schema=schema, stop=stop)
    schema["type"], stop[0] = "string", "b"
    assert config.json_schema == {"type": "object"}
    assert config.stop == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 4
