"""What `load` refuses, and what is left when `save` is cut short at any moment."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rustgpt
from rustgpt import LLM, CheckpointError, ModelConfig, WordTokenizer, checkpoint

FILES = ["config.json", "model.safetensors", "tokenizer.json"]
SHAPES = {"first.weight": (3, 4), "second.bias": (5,), "second.scalar": (), "none": (0, 2)}
TINY = ModelConfig(embedding_dim=8, hidden_dim=12, n_layers=2, n_heads=2, max_seq_len=6)
TEXTS = ["User: what is red ? Assistant: a colour </s>", "User: what is it ? Assistant: it </s>"]


# Small models by number: parameters, configuration and vocabulary all tell which one it is


def tensors(number):
    return {name: np.full(shape, number, np.float32) for name, shape in SHAPES.items()}


@functools.cache
def tokenizer(number):
    return WordTokenizer.train([f"model {['one', 'two', 'three'][number - 1]}"])


def save(folder, number):
    config = ModelConfig(seed=number).to_dict()
    checkpoint.save(folder, config, tensors(number), tokenizer(number).to_json())


OPENED = []


def load(folder):
    """Open a model whose files are closed after the test."""
    OPENED.append(checkpoint.load(folder))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPENED:
        OPENED.pop().close()


def which(folder):
    """Load the model, see that its parts belong together, and return its number."""
    saved = load(folder)
    number = saved.model_config().seed
    arrays = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    saved.read_into(arrays)
    for name, value in tensors(number).items():
        np.testing.assert_array_equal(arrays[name], value)
    assert saved.tokenizer().vocab == tokenizer(number).vocab
    return number


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(path, content):
    """Write a file anew, which is many times faster than to write over the old one."""
    path.unlink()
    path.write_bytes(content)


def restore(folder, files):
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def reseal(folder, **changes):
    """Make config.json agree with the other files as they are now, as a forger would."""
    content = json.loads((folder / "config.json").read_text()) | changes
    del content["sha256"]
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    seal(folder, content)


def seal(folder, content):
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content = {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    put(folder / "config.json", json.dumps(content).encode())


def write_weights(folder, header, data=b"", length=None):
    """Write a safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)
    reseal(folder)


def refusal(folder, *named):
    """Return the message with which the model is refused; it names all of these."""
    with pytest.raises(CheckpointError) as caught:
        which(folder)
    message = str(caught.value)
    assert "\n" not in message
    for name in named:
        assert name in message
    return message


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Syncing takes most of the time and is of no use to a test; `os.fstat` fails like it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)


@pytest.fixture
def model(tmp_path):
    save(tmp_path / "model", 1)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def llm():
    return LLM(TINY, WordTokenizer.train(TEXTS))


# What is written


def test_a_saved_model_comes_back(model):
    assert which(model) == 1
    assert sorted(snapshot(model)) == FILES


def test_saving_over_a_model(model):
    save(model, 2)
    assert which(model) == 2
    assert sorted(snapshot(model)) == FILES


def test_the_files_are_what_their_names_say(model):
    from safetensors.numpy import load_file

    found = load_file(model / "model.safetensors")
    assert {name: value.shape for name, value in found.items()} == SHAPES
    assert all((value == 1).all() and value.dtype == np.float32 for value in found.values())
    content = json.loads((model / "config.json").read_text())
    assert content["format"] == "rustgpt"
    assert content["version"] == 1
    assert ModelConfig.from_dict(content["model"]) == ModelConfig(seed=1)
    WordTokenizer.from_json((model / "tokenizer.json").read_text("utf-8"))


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    save(tmp_path / "again", 1)
    assert snapshot(tmp_path / "again") == snapshot(model)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", ">f8"])
def test_arrays_of_any_layout(tmp_path, dtype):
    values = np.arange(24, dtype=dtype).reshape(4, 6)
    config = ModelConfig().to_dict()
    stored = {"columns": values.T, "every other": values[::2, ::3], "plain": values}
    checkpoint.save(tmp_path, config, stored, tokenizer(1).to_json())
    native = np.dtype(dtype).newbyteorder("=")
    arrays = {name: np.full(value.shape, np.nan, native) for name, value in stored.items()}
    load(tmp_path).read_into(arrays)
    for name, value in stored.items():
        np.testing.assert_array_equal(arrays[name], value)


def test_reading_goes_into_views(model):
    flat = np.full(40, np.nan, np.float32)
    begin, views = 0, {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        views[name] = flat[begin : begin + size].reshape(shape)
        begin += size
    load(model).read_into(views)
    assert (flat[:begin] == 1).all()
    assert np.isnan(flat[begin:]).all()


def test_missing_folders_are_made(tmp_path):
    save(tmp_path / "a" / "b" / "c", 3)
    assert which(tmp_path / "a" / "b" / "c") == 3


def test_text_of_every_kind_in_the_vocabulary(tmp_path):
    words = WordTokenizer.train(['naïve 山 🙂 \u2028 \x00 <a> \\ "'])
    checkpoint.save(tmp_path, TINY.to_dict(), {}, words.to_json())
    assert load(tmp_path).tokenizer().vocab == words.vocab


def test_memory_of_saving_and_loading(tmp_path):
    values = {f"t{i}": np.full((512, 512), i, np.float32) for i in range(8)}  # 8 times 1 MB
    checkpoint.save(tmp_path, TINY.to_dict(), {"warm": np.ones(1)}, tokenizer(1).to_json())
    tracemalloc.start()
    try:
        checkpoint.save(tmp_path, TINY.to_dict(), values, tokenizer(1).to_json())
        saving = tracemalloc.get_traced_memory()[1]
        saved = load(tmp_path)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        saved.read_into(values)
        reading = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert saving < 2**21
    assert reading < 3 * 2**20


# What is refused: the files as such


def test_no_model(tmp_path):
    assert "there is no model in" in refusal(tmp_path, str(tmp_path), "rustgpt train")
    refusal(tmp_path / "nowhere", "nowhere", "rustgpt train")


def test_a_file_instead_of_a_folder(model):
    refusal(model / "model.safetensors", "model.safetensors")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file(model, name):
    (model / name).unlink()
    assert "missing" in refusal(model, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_instead_of_a_file(model, name):
    (model / name).unlink()
    (model / name).mkdir()
    refusal(model, name)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation(model, name):
    content = (model / name).read_bytes()
    step = 1 if len(content) < 1000 else 41
    end = len(content) - (name == "config.json")  # its last byte is a line feed
    for size in range(0, end, step):
        put(model / name, content[:size])
        refusal(model, name)
    put(model / name, content)
    assert which(model) == 1


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit(model, name):
    content = (model / name).read_bytes()
    step = 7 if len(content) < 1000 else 97  # neither divides 8: every bit of a byte has its turn
    for bit in range(0, 8 * len(content), step):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        put(model / name, broken)
        refusal(model, name)


@pytest.mark.parametrize("name", FILES)
def test_appended_bytes(model, name):
    with open(model / name, "ab") as file:
        file.write(b"\0")
    refusal(model, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_save(model, tmp_path, name):
    save(tmp_path / "other", 2)
    (model / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "from another save" in refusal(model)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("resealed", [False, True])
def test_a_pickle_or_zip_with_another_name(model, name, resealed, tmp_path):
    (tmp_path / "x").write_text("x")
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.write(tmp_path / "x")
    for content in (pickle.dumps({"weight": [1.0]}), (tmp_path / "zip").read_bytes()):
        (model / name).write_bytes(content)
        if resealed and name != "config.json":
            reseal(model)
        refusal(model, name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_permission(model, name):
    (model / name).chmod(0)
    refusal(model, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(model, name, monkeypatch):
    def denied(function):
        def opened(path, *args):
            if Path(path).name == name:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args)

        return opened

    monkeypatch.setattr(checkpoint, "open", denied(open), raising=False)
    refusal(model, name, "Permission denied")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_without_permission(model):
    model.chmod(0)
    try:
        assert "Permission denied" in refusal(model)
    finally:
        model.chmod(0o700)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.new"])
def test_a_file_that_cannot_be_looked_at_is_not_taken_for_a_missing_one(model, name, monkeypatch):
    (model / "model.safetensors").rename(model / name)  # with .new: a save was killed
    before, look = snapshot(model), os.stat

    def stat(path, **how):
        if Path(path) == model / name:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return look(path, **how)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        refusal(model, name, "Input/output error")
        if name.endswith(".new"):
            with pytest.raises(CheckpointError, match="Input/output error"):
                save(model, 2)
    assert snapshot(model) == before


def test_impossible_paths(model):
    for path in ("a\0b", "x" * 5000, "", "  ", None, 5, b"bytes"):
        with pytest.raises(CheckpointError):
            load(path)
        with pytest.raises(CheckpointError):
            save(path, 1)


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


# Saving that fails


def test_a_model_with_nan_is_not_saved(model):
    before = snapshot(model)
    broken = tensors(2) | {"second.bias": np.array([0, 0, np.nan, 0, 0], np.float32)}
    with pytest.raises(CheckpointError, match=r"not saved.*second\.bias"):
        checkpoint.save(model, ModelConfig().to_dict(), broken, tokenizer(2).to_json())
    assert snapshot(model) == before


def test_a_tokenizer_too_large_to_be_loaded_is_not_saved(model, monkeypatch):
    before = snapshot(model)
    monkeypatch.setattr(checkpoint, "LARGEST_JSON", 10_000)
    with pytest.raises(CheckpointError, match="its tokenizer has more than 10,000 bytes"):
        checkpoint.save(model, TINY.to_dict(), {}, " " * 10_001)
    assert snapshot(model) == before


def test_the_folder_is_a_file(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match=r"file: it is a file"):
        save(tmp_path / "file", 1)
    with pytest.raises(CheckpointError, match="cannot save a model in"):
        save(tmp_path / "file" / "below", 1)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_is_read_only(model):
    before = snapshot(model)
    model.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(model, 2)
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(model / "below", 2)
    finally:
        model.chmod(0o700)
    assert snapshot(model) == before


def test_stale_files_are_swept(model):
    for name in FILES:
        (model / (name + ".new")).write_bytes(b"left by a process that is dead")
    (model / "notes.txt").write_text("not ours")
    assert which(model) == 1
    save(model, 2)
    assert which(model) == 2
    assert sorted(snapshot(model)) == sorted([*FILES, "notes.txt"])


class Killed(BaseException):
    """The process ends here: nothing catches this, and nothing works after it."""


class Faults:
    """Counts what is done to files, and lets the k-th of it fail.

    Parameters
    ----------
    at
        k, from 1.
    error
        What is raised then; after Killed, whatever is tried next fails as well.
    only
        Which actions count; default: all.
    forever
        Whether all later ones fail, too.
    """

    def __init__(self, at=0, error=None, only=(), forever=False):
        self.at, self.error, self.only, self.forever = at, error, only, forever
        self.count = 0

    def step(self, action):
        if self.only and action not in self.only:
            return
        self.count += 1
        if self.at and (self.count == self.at or (self.forever and self.count > self.at)):
            raise self.error

    def wrap(self, function, name=None):
        def wrapped(*args, **kwargs):
            self.step(name or function.__name__)
            return function(*args, **kwargs)

        return wrapped

    def open(self, path, mode="r"):
        self.step("open")
        return Disk(open(path, mode), self)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in ("replace", "fsync", "unlink"):
            self.patch.setattr(os, name, self.wrap(getattr(os, name), name))
        self.patch.setattr(os, "open", self.wrap(os.open, "open folder"))
        self.patch.setattr(checkpoint, "open", self.open, raising=False)
        return self

    def __exit__(self, *_):
        self.patch.undo()


class Disk:
    """A file that may fail, of which half a part is then written."""

    def __init__(self, file, faults):
        self.file, self.faults = file, faults

    def write(self, part):
        try:
            self.faults.step("write")
        except BaseException:
            self.file.write(bytes(part)[: len(bytes(part)) // 2])
            self.file.flush()
            raise
        self.file.write(part)

    def read(self, *size):
        self.faults.step("read")
        return self.file.read(*size)

    def readinto(self, buffer):
        self.faults.step("read")
        return self.file.readinto(buffer)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def steps_of_a_save(model):
    with Faults() as faults:
        save(model, 2)
    assert faults.count > 20
    return range(1, faults.count + 1)


def test_killed_at_every_step(model, tmp_path):
    before = snapshot(model)
    seen = []
    for k in steps_of_a_save(model):
        restore(model, before)
        with pytest.raises(Killed), Faults(k, Killed(), forever=True):
            save(model, 2)
        seen.append(which(model))
        save(model, 3)
        assert which(model) == 3
        assert sorted(snapshot(model)) == FILES
    assert seen == sorted(seen)  # the old one up to some moment, and the new one from then on
    assert set(seen) == {1, 2}


def test_killed_twice(model):
    before, states = snapshot(model), []
    for first in steps_of_a_save(model):
        restore(model, before)
        with pytest.raises(Killed), Faults(first, Killed(), forever=True):
            save(model, 2)
        between, old = snapshot(model), which(model)
        if between in states:
            continue
        states.append(between)
        for second in itertools.count(1):
            restore(model, between)
            try:
                with Faults(second, Killed(), forever=True):
                    save(model, 3)
                break
            except Killed:
                assert which(model) in (old, 3)
        assert which(model) == 3


def test_killed_when_there_was_no_model(tmp_path):
    folder = tmp_path / "new"
    for k in itertools.count(1):
        restore(folder, {})
        try:
            with Faults(k, Killed(), forever=True):
                save(folder, 2)
            break
        except Killed:
            if (folder / "config.json").exists():
                assert which(folder) == 2
            else:
                refusal(folder, "there is no model in")
    assert k > 20


def failure(model, k, error, only=()):
    """Save model 2, let the k-th step fail, and return the message, or None if it still worked."""
    try:
        with Faults(k, error, only):
            save(model, 2)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EACCES])
def test_an_error_at_every_step(model, code):
    before = snapshot(model)
    for k in steps_of_a_save(model):
        restore(model, before)
        message = failure(model, k, OSError(code, os.strerror(code)))
        if message is None:
            assert which(model) == 2
        elif which(model) == 1:
            assert snapshot(model) == before
        else:
            assert sorted(snapshot(model)) == FILES
        assert message is None or (os.strerror(code) in message and str(model) in message)
        save(model, 3)
        assert sorted(snapshot(model)) == FILES


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(
    ("error", "only"),
    [
        (OSError(errno.EMFILE, "Too many open files"), ()),
        (MemoryError(), ("open", "read", "write")),
        (OSError(errno.EIO, "Input/output error"), ("read", "write")),
        (MemoryError(), ("read", "write")),
    ],
)
def test_an_error_while_finishing_what_was_cut_short(model, error, only, forever):
    """A new file that config.json means is the only copy there is."""
    before = snapshot(model)
    with pytest.raises(Killed), Faults(2, Killed(), only=("replace",), forever=True):
        save(model, 2)
    between = snapshot(model)
    assert between["model.safetensors"] == before["model.safetensors"]
    for k in range(1, 60):
        restore(model, between)
        try:
            with Faults(k, error, only, forever):
                save(model, 3)
        except CheckpointError:
            assert which(model) in (2, 3)
        else:
            assert which(model) == 3


@pytest.mark.parametrize("k", range(1, 6))
def test_a_full_disk(model, k):
    before = snapshot(model)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for only in (("write",), ("fsync",), ("write", "fsync", "replace")):
        with (
            pytest.raises(CheckpointError, match=os.strerror(errno.ENOSPC)),
            Faults(min(k, 3) if only == ("fsync",) else k, full, only, forever=True),
        ):
            save(model, 2)
        assert snapshot(model) == before


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_disk_that_is_really_full(model, monkeypatch):
    before = snapshot(model)

    def opened(path, mode):
        return open("/dev/full" if "x" in mode else path, mode.replace("x", "w"))

    monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    with pytest.raises(CheckpointError, match="No space left"):
        save(model, 2)
    assert snapshot(model) == before


def test_memory_runs_out(model):
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="MemoryError"), Faults(3, MemoryError()):
        save(model, 2)
    assert snapshot(model) == before
    with Faults(1, MemoryError(), only=("read",), forever=True):
        refusal(model, "MemoryError")


def test_the_error_says_which_model_is_on_disk(model):
    """The last `fsync` comes when the new model is already in place."""
    before, seen = snapshot(model), set()
    with Faults(only=("fsync",)) as faults:
        save(model, 2)
    for k in range(1, faults.count + 1):
        restore(model, before)
        message = failure(model, k, OSError(errno.EIO, os.strerror(errno.EIO)), only=("fsync",))
        if message is not None:
            number = which(model)
            seen.add(number)
            said = {1: f"{model}, which still holds the one before: ", 2: "the new model is in"}
            assert said[number] in message
            assert said[3 - number] not in message
    assert seen == {1, 2}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_cannot_sync_folders(model, monkeypatch, code):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    save(model, 2)
    assert which(model) == 2


# Power cuts


class Journal:
    """Follows what `save` does to a folder, and tells what a power cut may leave of it.

    A file's contents are on the disk once it was synced; before, it may be empty. A change to the
    folder is on the disk once the folder was synced; of those before, any may be there or not.
    """

    def __init__(self, folder):
        self.folder = folder
        self.contents = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self.names = {path.name: path.stat().st_ino for path in folder.iterdir()}
        self.pending = []
        self.possible = set()
        self.kept = []  # inodes stay in use, so that their numbers are not given twice

    def note(self):
        """Add what a power cut right now could leave."""
        for done in itertools.product([False, True], repeat=len(self.pending)):
            names = dict(self.names)
            for change in itertools.compress(self.pending, done):
                self.apply(names, change)
            left = {name: self.contents.get(inode, b"") for name, inode in names.items()}
            self.possible.add(tuple(sorted(left.items())))

    def apply(self, names, change):
        inode, old, new = change
        if old:
            names.pop(old, None)
        if new:
            names[new] = inode

    def change(self, inode, old, new):
        self.pending.append((inode, old, new))
        self.note()

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        replace, unlink, fsync = os.replace, os.unlink, os.fsync

        def opened(path, mode="r"):
            file = open(path, mode)  # noqa: SIM115
            if "x" in mode:
                inode = os.fstat(file.fileno()).st_ino
                self.kept.append(open(path, "rb"))  # noqa: SIM115
                self.change(inode, None, Path(path).name)
            return file

        def replaced(old, new):
            self.kept.append(open(new, "rb"))  # noqa: SIM115
            inode = os.stat(old).st_ino
            replace(old, new)
            self.change(inode, Path(old).name, Path(new).name)

        def unlinked(path):
            if os.path.exists(path):
                self.kept.append(open(path, "rb"))  # noqa: SIM115
                self.change(None, Path(path).name, None)
            unlink(path)

        def synced(descriptor):
            fsync(descriptor)
            inode = os.fstat(descriptor).st_ino
            if inode == self.folder.stat().st_ino:
                for change in self.pending:
                    self.apply(self.names, change)
                self.pending = []
            else:
                path = next(p for p in self.folder.iterdir() if p.stat().st_ino == inode)
                self.contents[inode] = path.read_bytes()
            self.note()

        self.patch.setattr(checkpoint, "open", opened, raising=False)
        self.patch.setattr(os, "replace", replaced)
        self.patch.setattr(os, "unlink", unlinked)
        self.patch.setattr(os, "fsync", synced)
        return self

    def __exit__(self, *_):
        self.patch.undo()
        for file in self.kept:
            file.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no way to sync a folder")
def test_a_power_cut_at_any_moment(model, tmp_path):
    before = snapshot(model)
    starts = {1: before}
    with pytest.raises(Killed), Faults(2, Killed(), only=("replace",), forever=True):
        save(model, 2)
    starts[2] = snapshot(model)  # config.json is new, the others wait to be renamed
    for old, start in starts.items():
        restore(model, start)
        with Journal(model) as journal:
            save(model, 3)
        found = set()
        for files in journal.possible:
            restore(tmp_path / "after", dict(files))
            found.add(which(tmp_path / "after"))
        assert found == {old, 3}
        assert len(journal.possible) > 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no way to sync a folder")
def test_a_power_cut_after_a_kill(model, tmp_path):
    """The process was killed before it could sync its new config.json."""
    before = snapshot(model)
    with pytest.raises(Killed), Faults(2, Killed(), only=("replace",), forever=True):
        save(model, 2)
    between = snapshot(model)
    restore(model, before | {name: text for name, text in between.items() if "new" in name})
    with Journal(model) as journal:
        (model / "config.json.new").write_bytes(between["config.json"])
        inode = (model / "config.json.new").stat().st_ino
        journal.contents[inode] = between["config.json"]
        os.replace(model / "config.json.new", model / "config.json")
        save(model, 3)
    for files in journal.possible:
        restore(tmp_path / "after", dict(files))
        assert which(tmp_path / "after") in (1, 2, 3)


# Other processes and threads

SAVE_FOREVER = """
import sys, numpy as np
from rustgpt import checkpoint, ModelConfig, WordTokenizer
words = [WordTokenizer.train([f"model {n}"]).to_json() for n in ("one", "two")]
number = 0
while True:
    tensors = {"a": np.full(100_000, number + 1, np.float32)}
    checkpoint.save(sys.argv[1], ModelConfig(seed=number + 1).to_dict(), tensors, words[number])
    print(flush=True)
    number = 1 - number
"""


def read_large(folder):
    saved = load(folder)
    array = np.zeros(100_000, np.float32)
    saved.read_into({"a": array})
    number = saved.model_config().seed
    assert (array == number).all()
    assert saved.tokenizer().vocab == tokenizer(2 - number % 2).vocab
    return number


def test_killed_for_real(tmp_path):
    rng = np.random.default_rng(0)
    path = os.pathsep.join(
        [str(Path(rustgpt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    unfinished = 0
    for _ in range(20):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        ) as process:
            assert process.stdout.readline() == b"\n"
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        assert read_large(tmp_path) in (1, 2)
        unfinished += any(name.endswith(".new") for name in snapshot(tmp_path))
    assert unfinished  # otherwise this test shows nothing


@pytest.mark.parametrize("moment", range(1, 11))
def test_a_save_while_the_files_are_checked(model, moment, monkeypatch):
    looks = itertools.count(1)

    def look(function):
        def looked(path, *args, **how):
            if next(looks) == moment:
                with monkeypatch.context() as alone:
                    alone.setattr(os, "stat", stat_of)
                    alone.setattr(checkpoint, "open", open, raising=False)
                    save(model, 2)
            return function(path, *args, **how)

        return looked

    stat_of = os.stat
    monkeypatch.setattr(os, "stat", look(os.stat))
    monkeypatch.setattr(checkpoint, "open", look(open), raising=False)
    assert which(model) in (1, 2)
    assert next(looks) > moment
    monkeypatch.undo()
    assert which(model) == 2


def test_a_save_between_loading_and_reading(model):
    saved = load(model)
    save(model, 2)
    save(model, 3)
    arrays = {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES.items()}
    saved.read_into(arrays)  # the file that was opened is still there, without a name
    assert (arrays["first.weight"] == 1).all()
    assert saved.tokenizer().vocab == tokenizer(1).vocab
    assert which(model) == 3


def test_reading_while_another_saves(tmp_path):
    words = [tokenizer(number).to_json() for number in (2, 1)]
    end = threading.Event()
    failed = []

    def save_many():
        try:
            for number in itertools.count(1):  # a training does not come back to an old model
                arrays = {"a": np.full(100_000, number, np.float32)}
                config = ModelConfig(seed=number).to_dict()
                checkpoint.save(tmp_path, config, arrays, words[number % 2])
                if end.is_set():
                    return
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=save_many)
    thread.start()
    seen = set()
    until = time.monotonic() + 60  # of a disk that is slow to write
    while not (tmp_path / "config.json").exists():
        time.sleep(0.001)
    while len(seen) < 20 and time.monotonic() < until and thread.is_alive():
        seen.add(read_large(tmp_path))
    end.set()
    thread.join()
    assert not failed
    assert read_large(tmp_path) >= max(seen)
    assert len(seen) > 3
