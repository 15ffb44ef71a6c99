"""Owns the tests of `rustgpt.formats.hf_rope`: rotary positions in every spelling, none ignored."""

import json

import pytest

from rustgpt import ModelConfig
from rustgpt.errors import CheckpointError
from rustgpt.formats.hf_config import read_config, read_fields
from rustgpt.formats.hf_rope import rope_settings, written_rope

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def read(tmp_path, **values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    return rope_settings(read_fields(tmp_path), 2048)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("spelling", ["type", "rope_type"])
def test_every_spelling(spelling, name, tmp_path):
    assert read(tmp_path, **{name: {spelling: "default"}}) == {}
    assert read(tmp_path, **{name: {spelling: "linear", "factor": 2}}, rope_theta=9.0) == {
        "rope_theta": 9.0, "rope_scaling": "linear", "rope_factor": 2.0,
    }  # fmt: skip
    assert read(tmp_path, **{name: {spelling: "llama3", **LLAMA3, "rope_theta": 5e5}}) == {
        "rope_theta": 5e5, "rope_scaling": "llama3", "rope_factor": 8.0,
        "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
        "rope_original_max_seq_len": 8192,
    }  # fmt: skip


def test_nothing_is_needed(tmp_path):
    assert read(tmp_path) == {}
    assert read(tmp_path, rope_scaling=None, rope_theta=None, rope_parameters={}) == {}
    same = {"rope_theta": 7, "type": "default", "rope_type": "default", "factor": None}
    assert read(tmp_path, rope_theta=7.0, rope_parameters=same) == {"rope_theta": 7.0}
    short = {name: LLAMA3[name] for name in LLAMA3 if "original" not in name}
    found = read(tmp_path, rope_scaling={"type": "llama3", **short})
    assert found["rope_original_max_seq_len"] == 0


@pytest.mark.parametrize(
    "kind", ["dynamic", "yarn", "longrope", "su", "proportional", "", "Linear"]
)
def test_every_other_scaling_is_refused_by_name(kind, tmp_path):
    for values in ({"type": kind}, {"rope_type": kind}, {"rope_type": kind, "factor": 2.0}):
        with pytest.raises(CheckpointError, match=f"rope_type '{kind}' cannot be expressed here"):
            read(tmp_path, rope_scaling=values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be of type float"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "factor must be of type float"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "llama3"}},
            "type is 'linear', but rope_",
        ),
        ({"rope_scaling": {"type": 3}}, "type must be of type str"),
        ({"rope_scaling": "linear"}, "rope_scaling must be of type dict"),
        ({"rope_scaling": [1]}, "rope_scaling must be of type dict"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "'llama3' needs 'low_freq_factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}, "has no 'beta_fast'"),
        ({"rope_scaling": {"type": "default", "factor": 2}}, "'default' has no 'factor'"),
        ({"rope_scaling": {"factor": 2}}, "'default' has no 'factor'"),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_theta is 6, but in"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}},
            "rope_scaling is .*, but rope_parameters is",
        ),
    ],
)
def test_what_is_wrong_is_told(values, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, **values)


def test_limits_are_those_of_the_configuration(tmp_path):
    for change in ({"factor": 0.5}, {"low_freq_factor": 4.0}, {"factor": float("inf")}):
        content = {"model_type": "llama", "rope_scaling": {"type": "llama3", **LLAMA3, **change}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="rope_"):
            read_config(read_fields(tmp_path), "float32")


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 50.0},
        {"rope_scaling": "linear", "rope_factor": 3.0},
        {"rope_scaling": "llama3", "rope_factor": 3.0, "rope_original_max_seq_len": 33},
        {"rope_scaling": "llama3", "rope_factor": 3.0, "rope_low_freq_factor": 0.5},
    ],
)
def test_what_is_written_is_read(settings, tmp_path):
    config = ModelConfig(positions="rotary", max_seq_len=2048, **settings)
    found = read(tmp_path, **written_rope(config))
    assert ModelConfig(positions="rotary", max_seq_len=2048, **found) == config
