"""Owns what the tests of a checkpoint share: small models, and ways to break them."""

import functools
import hashlib
import json
import os

import numpy as np
import pytest

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
