"""Tests of what may be set of a server."""

import secrets

import pytest

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError
from rustgpt.serve.config import Limits, ServeConfig, chunk_for, read_key, slots_for

KEY = secrets.token_hex(32)


def test_the_limits_are_those_of_the_documentation():
    limits = Limits()
    assert (limits.body_bytes, limits.head_bytes, limits.head_lines) == (2**20, 2**14, 100)
    assert (limits.messages, limits.characters) == (500, 32_000)
    assert (limits.n, limits.stops, limits.stop_characters, limits.logprobs) == (4, 4, 64, 20)
    assert (limits.connections, limits.queued) == (64, 64)
    assert (limits.head_seconds, limits.body_seconds, limits.generation_seconds) == (10, 30, 300)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ConfigError, match="--key-file"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, key=KEY).key == KEY


def test_an_address_of_this_machine_needs_none():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert ServeConfig(host=host).key == ""


def test_keys(tmp_path, monkeypatch):
    file = tmp_path / "key"
    monkeypatch.delenv("RUSTGPT_API_KEY", raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv("RUSTGPT_API_KEY", KEY)
    assert read_key(None) == KEY
    file.write_text(KEY[::-1] + "\n")
    assert read_key(str(file)) == KEY[::-1]
    for bad in ("", "short", "x" * 64, KEY[:42], KEY[:20] + " " + KEY[20:], "é" * 64):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="key"):
            read_key(str(file))
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_key(str(tmp_path / "none"))


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "https://", "https://x/y", "null"])
def test_origins(origin):
    with pytest.raises(ConfigError, match="origin"):
        ServeConfig(origins=(origin,))


def test_as_many_texts_as_memory_allows():
    config = ModelConfig(embedding_dim=64, n_heads=4, n_layers=2, max_seq_len=100)
    each = 2 * 2 * 64 * 100 * 4
    assert slots_for(config, free=4 * 3 * each) == 3
    assert slots_for(config, free=0) == 1
    assert slots_for(config, free=2**50) == 16
    fewer = ModelConfig(embedding_dim=64, n_heads=4, n_kv_heads=2, n_layers=2, max_seq_len=100)
    assert slots_for(fewer, free=4 * 3 * each) == 6
    assert slots_for(config) >= 1


def test_a_large_model_reads_prompts_in_smaller_parts():
    assert [chunk_for(n) for n in (1, 10**6, 124_000_000, 10**12)] == [512, 512, 69, 16]
