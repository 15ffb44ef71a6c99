"""What `load` refuses of what the files say, and whole models."""

import contextlib
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustgpt import LLM, CheckpointError, ModelConfig, WordTokenizer, checkpoint

from .conftest import (
    SHAPES,
    TEXTS,
    TINY,
    load,
    put,
    refusal,
    reseal,
    save,
    seal,
    tensors,
    tokenizer,
    which,
    write_weights,
)

# What is refused: config.json


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": "rustgpt", "version": ' + b"1" * 5000 + b"}",
        b"\xff\xfe{}",
        b'{"format": "rustgpt", "version": NaN}',
        b'{"format": "rustgpt", "version": 1, "sha256": "\\ud800"}',
        '{"format": "rustgpt"}'.encode("utf-16"),
        b'{"architectures": ["GPT2LMHeadModel"]}',
    ],
)
def test_config_of_another_form(model, content):
    (model / "config.json").write_bytes(content)
    refusal(model, "config.json")


def test_deep_nesting_of_every_depth(model):
    for depth in range(50, 5000, 37):
        nested = "[" * depth + "]" * depth
        (model / "config.json").write_text(f'{{"format": "rustgpt", "version": 1, "a": {nested}}}')
        refusal(model, "config.json")
    save(model, 2)  # and one can save over it
    assert which(model) == 2


def test_a_config_too_large_to_be_one(model):
    with open(model / "config.json", "ab") as file:
        file.truncate(2**40)
    refusal(model, "config.json", "bytes")


def test_a_future_version(model):
    reseal(model, version=2)
    assert "upgrade" in refusal(model, "config.json", "newer")
    reseal(model, version=10**4000)
    assert len(refusal(model, "config.json", "newer", "upgrade")) < 1000


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5, [1]])
def test_an_impossible_version(model, version):
    reseal(model, version=version)
    refusal(model, "config.json")


def test_an_edited_config(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"n_heads": 4', '"n_heads": 2'))
    refusal(model, "config.json", "edited")


@pytest.mark.parametrize("change", [{"n_heads": 3}, {"n_heads": "4"}, {"wings": 2}, {"dtype": []}])
def test_an_invalid_configuration(model, change):
    reseal(model, model=ModelConfig().to_dict() | change)
    refusal(model, "config.json", *change)


@pytest.mark.parametrize("change", [{"model": []}, {"files": []}, {"files": {}}, {"model": None}])
def test_a_config_that_lacks_something(model, change):
    content = json.loads((model / "config.json").read_text()) | change
    del content["sha256"]
    seal(model, content)
    refusal(model, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = ["format", "version", "model", "files", "sha256"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.booleans())
def test_any_json_as_config(tmp_path_factory, changes, resealed):
    folder = tmp_path_factory.getbasetemp() / "any json"
    save(folder, 1)
    content = json.loads((folder / "config.json").read_text())
    changed = content | changes
    if resealed:
        del changed["sha256"]
        seal(folder, changed)
        with contextlib.suppress(CheckpointError):  # another seed, say, is a sound configuration
            load(folder).model_config()
    else:
        put(folder / "config.json", json.dumps(changed).encode())
        same = json.dumps(changed) == json.dumps(content)  # True == 1, but not in JSON
        with contextlib.nullcontext() if same else pytest.raises(CheckpointError):
            which(folder)
    save(folder, 2)  # and one can save over it
    assert which(folder) == 2


# What is refused: tokenizer.json and model.safetensors


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"tokens": ["a"]}', b"\xff\xfe"])
def test_a_tokenizer_of_another_form(model, content):
    (model / "tokenizer.json").write_bytes(content)
    reseal(model)
    with pytest.raises(CheckpointError):
        load(model).tokenizer()


@pytest.mark.parametrize("length", [0, 1, 7, 4096, 100_000_000, 100_000_001, 2**63, 2**64 - 1])
def test_the_length_of_the_header(model, length):
    content = (model / "model.safetensors").read_bytes()
    write_weights(model, content[8:], length=length)
    refusal(model, "model.safetensors")


def test_every_truncation_of_the_weights_with_a_matching_digest(model):
    content = (model / "model.safetensors").read_bytes()
    for size in range(len(content)):
        put(model / "model.safetensors", content[:size])
        reseal(model)
        refusal(model, "model.safetensors")


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"\xff" * 16,
        b"[]",
        {"a": []},
        {"a": {**ENTRY, "shape": [2**40]}},
        {"a": {**ENTRY, "shape": [2**32, 2**32]}},
        {"a": {**ENTRY, "shape": [-1]}},
        {"a": {**ENTRY, "dtype": "F99"}},
        {"a": {**ENTRY, "dtype": "\x1b[2J\nF32"}},
        {"a": {**ENTRY, "shape": [1] * 100_000}},
        {"a": {**ENTRY, "data_offsets": [4, 0]}},
        {"a": {**ENTRY, "data_offsets": [0, 2**63]}},
        {"a": {**ENTRY, "data_offsets": [2**64 - 4, 2**64]}},
        {"a": ENTRY, "b": ENTRY},
    ],
)
def test_headers_of_another_form(model, header):
    write_weights(model, header, b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        load(model).check_shapes({"a": ((1,), np.float32)})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(JSON | st.dictionaries(st.text(), st.fixed_dictionaries(dict.fromkeys(ENTRY, JSON))))
def test_any_json_as_header(tmp_path_factory, header):
    folder = tmp_path_factory.getbasetemp() / "any header"
    save(folder, 1)
    write_weights(folder, header, b"\0" * 4)
    with pytest.raises(CheckpointError):
        load(folder).check_shapes({"a": ((1,), np.float32)})


def test_a_missing_tensor(model):
    expected = {name: (shape, np.float32) for name, shape in SHAPES.items()}
    expected["third.weight"] = ((7, 2), "float64")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*third\.weight.*F64 \(7, 2\)"):
        load(model).check_shapes(expected)


def test_a_tensor_of_another_shape(model):
    expected = {name: (shape, np.float32) for name, shape in SHAPES.items()}
    for shape in [(4, 3), (12,), (), (3, 4, 1), (1, 4)]:
        expected["first.weight"] = (shape, np.float32)
        with pytest.raises(CheckpointError) as caught:
            load(model).check_shapes(expected)
        for part in ("first.weight", "F32 (3, 4)", f"F32 {shape}"):
            assert part in str(caught.value)


def test_one_number_is_not_spread_over_an_array(model):
    arrays = tensors(1)
    arrays["second.scalar"] = np.zeros((2, 3), np.float32)
    with pytest.raises(CheckpointError, match=r"second\.scalar"):
        load(model).read_into(arrays)


@pytest.mark.parametrize("code", ["F64", "F16", "BF16", "I32", "I8", "BOOL", "F8_E4M3"])
def test_a_tensor_of_another_type(model, code):
    size = {"F64": 8, "I32": 4, "F16": 2, "BF16": 2}.get(code, 1)
    write_weights(model, {"a": {**ENTRY, "dtype": code, "data_offsets": [0, size]}}, b"\1" * size)
    with pytest.raises(CheckpointError) as caught:
        load(model).read_into({"a": np.zeros(1, np.float32)})
    for part in ("'a'", "F32 (1,)", f"{code} (1,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "a\n\x1b[2J", "x" * 10_000])
def test_a_tensor_too_many(model, name):
    write_weights(model, {"a": ENTRY, name: {**ENTRY, "data_offsets": [4, 8]}}, b"\0" * 8)
    with pytest.raises(CheckpointError) as caught:
        load(model).read_into({"a": np.zeros(1, np.float32)})
    message = str(caught.value)
    assert repr(name)[:40] in message
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(model, value):
    data = np.array([1, value], "<f4").tobytes()
    write_weights(model, {"a": {**ENTRY, "shape": [2], "data_offsets": [0, 8]}}, data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*'a'.*NaN"):
        load(model).read_into({"a": np.zeros(2, np.float32)})


def test_the_header_is_checked_before_memory_is_taken(model):
    checkpoint.save(
        model, TINY.to_dict(), {"a": np.ones(2**22, np.float32)}, tokenizer(1).to_json()
    )
    saved = load(model)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="'a'"):
            saved.check_shapes({"a": ((2**60, 2**60), np.float32)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


# Whole models


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True},
        {"dtype": "float64", "attention_projection": False, "output_bias": False, "n_layers": 0},
    ],
)
def test_a_model_comes_back(tmp_path, options):
    config = ModelConfig(**{**TINY.to_dict(), **options, "seed": 5})
    model = LLM(config, WordTokenizer.train(TEXTS))
    model.parameters += (
        np.random.default_rng(0).normal(size=model.n_parameters).astype(config.dtype)
    )
    model.save(tmp_path)
    loaded = LLM.load(tmp_path)
    assert loaded.parameters.tobytes() == model.parameters.tobytes()
    assert loaded.config == config
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    for temperature in (0.0, 1.0):
        assert loaded.generate("what is", 20, temperature) == model.generate(
            "what is", 20, temperature
        )


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({"n_layers": 3}, "layers.3."),
        ({"n_layers": 1}, "layers."),
        ({"embedding_dim": 16}, "layers.0.tokens"),
        ({"hidden_dim": 13}, "layers.1.feed_forward."),
        ({"max_seq_len": 7}, "layers.0.places"),
        ({"max_seq_len": 2**20}, "layers.0.places"),
        ({"hidden_dim": 2**20}, "layers.1.feed_forward."),
        ({"embedding_dim": 2**20, "hidden_dim": 2**20}, ""),  # terabytes
        ({"dtype": "float64"}, "layers.0."),
        ({"attention_projection": False}, "layers.1.attention.projection_weight"),
        ({"tie_embeddings": True}, "layers.3.weight"),
    ],
)
def test_weights_of_another_configuration(llm, tmp_path, change, tensor):
    llm.save(tmp_path)
    reseal(tmp_path, model=TINY.to_dict() | change)
    with pytest.raises(CheckpointError) as caught:
        LLM.load(tmp_path)
    assert tensor in str(caught.value)


def test_a_model_from_before_a_text_began_with_the_end_token(llm, tmp_path):
    llm.save(tmp_path)
    assert LLM.load(tmp_path).config.add_bos_token
    before = TINY.to_dict()
    del before["add_bos_token"]
    reseal(tmp_path, model=before)
    assert not LLM.load(tmp_path).config.add_bos_token


def test_a_vocabulary_that_the_weights_do_not_fit(llm, tmp_path):
    llm.save(tmp_path)
    larger = WordTokenizer.train([*TEXTS, "extraordinary"])
    (tmp_path / "tokenizer.json").write_text(larger.to_json(), "utf-8")
    reseal(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        LLM.load(tmp_path)
    for part in (
        "layers.0.tokens",
        f"({llm.tokenizer.vocab_size}, 8)",
        f"({larger.vocab_size}, 8)",
    ):
        assert part in str(caught.value)
