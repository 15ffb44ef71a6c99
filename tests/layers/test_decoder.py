"""Tests of how texts go on in a cache: in one kernel call, or layer after layer."""

import copy

import pytest

from rustgpt.backend import ops
from rustgpt.layers.cache import Cache
from rustgpt.layers.decoder import ROWS_AT_MOST, Decoder
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.transformer import TransformerBlock

from ..models import VARIANTS, V, make_model

TEXT = [1, 5, 0, 3, 2, 6, 4, 1, 1]


@pytest.fixture
def build(small, tokenizer_of):
    """build(variant, ...): a small model whose parameters all matter."""
    return lambda *args, **options: make_model(small, tokenizer_of(V), *args, **options)


@pytest.fixture
def calls(backend, monkeypatch):
    """The kernels that are called, by name, in order."""
    found = []

    def counted(name, kernel):
        def call(*args, **kwargs):
            found.append(name)
            return kernel(*args, **kwargs)

        return call

    for name in ("decoder_forward", "block_forward", "linear_forward", "attention_decode"):
        monkeypatch.setitem(vars(ops), name, counted(name, getattr(ops, name)))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_few_rows_are_one_call(calls, build, variant):
    model, cache = build(variant), Cache(12, slots=2)
    model.decode_batch([TEXT[:5], TEXT[:4]], cache)
    model.decode([3], cache)
    assert calls == ["decoder_forward"] * 2


def test_many_rows_go_layer_after_layer(calls, build, close):
    model, cache = build("GPT-2", max_seq_len=40), Cache(40, slots=3)
    long = (TEXT * 4)[: ROWS_AT_MOST + 1]
    found = model.decode(long, cache)
    assert "decoder_forward" not in calls
    close(found, model.logits(long)[-1], 10)
    close(model.decode([2], cache), model.logits([*long, 2])[-1], 10)
    assert calls.count("decoder_forward") == 1


CHANGES = {
    "by parts": lambda model: setattr(model.layers[2], "by_parts", True),
    "a norm's epsilon": lambda model: setattr(model.layers[1].norm2, "epsilon", 0.5),
    "another inner layer": lambda model: setattr(
        model.layers[1], "norm1", copy.deepcopy(model.layers[1].norm2)
    ),
    "one layer less": lambda model: model.layers.pop(1),
    "another order": lambda model: model.layers.insert(1, model.layers.pop(2)),
    "a layer twice": lambda model: model.layers.insert(1, model.layers[1]),
    "a last norm's epsilon": lambda model: setattr(model.layers[3], "epsilon", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_decodes_as_it_is(backend, build, close, change):
    model = build("GPT-2")
    model.decode(TEXT, Cache(12))
    CHANGES[change](model)
    expected, cache = model.logits(TEXT), Cache(12)
    close(model.decode(TEXT[:4], cache), expected[3], 10)
    close(model.decode(TEXT[4:], cache), expected[-1], 10)


def test_a_cache_serves_both_ways_in_turn(calls, build, close):
    model, cache = build("GPT-2"), Cache(12, slots=2)
    expected = model.logits(TEXT)
    calls.clear()
    for t, token in enumerate(TEXT):
        model.layers[1].by_parts = t % 4 in (0, 3)
        found = model.decode_batch([[token]], cache, [1])
        close(found[0], expected[t], 10)
    assert calls.count("decoder_forward") == 4


def test_a_cache_is_one_array_from_the_first_prompt_on(build):
    model, cache = build("GPT-2", max_seq_len=40), Cache(40)
    model.decode([1] * (ROWS_AT_MOST + 1), cache)
    before = {key: rows.ctypes.data for key, rows in cache._rows.items()}
    model.decode([1], cache)
    assert {key: rows.ctypes.data for key, rows in cache._rows.items()} == before


def test_copies_of_a_cache_go_on_in_both_ways(backend, build, close):
    model, cache = build(), Cache(12)
    model.decode(TEXT[:3], cache)
    twin = copy.deepcopy(cache)
    model.decode([0], cache)
    for block in model.layers[1:3]:
        block.by_parts = True
    close(model.decode(TEXT[3:5], twin), model.logits(TEXT[:5])[-1], 10)
    for block in model.layers[1:3]:
        block.by_parts = False
    close(model.decode(TEXT[5:], twin), model.logits(TEXT)[-1], 10)


class Own(LayerNorm):
    """A layer that nobody knows."""


class OwnBlock(TransformerBlock):
    """The same of a block."""


class OwnOutput(OutputProjection):
    """The same of an output projection."""


def test_layers_that_nobody_knows_run_by_themselves(calls, build, close):
    def norm(config):
        found = build_layers(config, V)
        return [*found[:-1], Own(6, dtype="float64"), found[-1]]

    def block(config):
        return [
            OwnBlock(config, None) if i == 1 else x for i, x in enumerate(build_layers(config, V))
        ]

    def output(config):
        return [*build_layers(config, V)[:-1], OwnOutput(6, V, None, dtype="float64")]

    for layers in (norm, block, output):
        model, cache = build(layers=layers), Cache(12)
        calls.clear()
        close(model.decode(TEXT, cache), model.logits(TEXT)[-1], 10)
        assert "decoder_forward" not in calls


def test_a_norm_at_the_end_is_known(calls, build, close):
    def layers(config):
        found = build_layers(config, V)
        return [*found[:-1], LayerNorm(6, 0.3, "float64"), found[-1]]

    model, cache = build(layers=layers), Cache(12)
    close(model.decode(TEXT, cache), model.logits(TEXT)[-1], 10)
    assert calls.count("decoder_forward") == 1


def test_parameters_elsewhere_are_not_decoded(build):
    model = build()
    assert Decoder(model.layers, model.parameters).fused
    assert not Decoder(model.layers, model.parameters.copy()).fused
    assert not Decoder(model.layers, model.parameters[:-1]).fused
