"""What is written, and what `load` refuses of the files as such."""

import errno
import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rustgpt import CheckpointError, ModelConfig, WordTokenizer, checkpoint, file_set

from .conftest import (
    FILES,
    SHAPES,
    TINY,
    load,
    put,
    refusal,
    reseal,
    save,
    snapshot,
    tokenizer,
    which,
)

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

    monkeypatch.setattr(file_set, "open", denied(open), raising=False)
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
