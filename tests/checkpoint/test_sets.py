"""Any set of files beside a model, exchanged with it at once."""

import errno
import os

import pytest

from rustgpt import CheckpointError, ModelConfig, checkpoint, file_set

from .conftest import FILES, load, put, refusal, snapshot, tensors, tokenizer, which
from .faults import Faults, Killed

# Which files lie beside model 1, 2 and 3.
MORE = {1: ("state.json", "moments.bin"), 2: ("state.json",), 3: ("other.state-2.json",)}


def save(folder, number):
    more = {name: [b"%d " % number, name.encode()] for name in MORE[number]}
    config = ModelConfig(seed=number).to_dict()
    checkpoint.save(folder, config, tensors(number), tokenizer(number).to_json(), more)


def whole(folder):
    """See that the model and all that lies beside it belong together; return its number."""
    number = which(folder)
    saved = load(folder)
    for name in {name for names in MORE.values() for name in names}:
        if name in MORE[number]:
            assert saved.file(name).read() == b"%d %s" % (number, name.encode())
            assert saved.file(name).read(1) == b"%d" % number  # from its beginning again
        else:
            assert name not in saved
    return number


@pytest.fixture
def model(tmp_path):
    save(tmp_path / "model", 1)
    return tmp_path / "model"


def test_other_files_lie_beside_the_model(model):
    assert whole(model) == 1
    assert sorted(snapshot(model)) == sorted([*FILES, *MORE[1]])


@pytest.mark.parametrize("number", [2, 3])
def test_what_the_new_set_has_not_goes(model, number):
    (model / "notes.txt").write_text("not ours")
    save(model, number)
    assert whole(model) == number
    assert sorted(snapshot(model)) == sorted([*FILES, *MORE[number], "notes.txt"])


@pytest.mark.parametrize("number", [2, 3])
def test_killed_at_every_step(model, tmp_path, number):
    before, seen = snapshot(model), []
    with Faults() as faults:
        save(model, number)
    for k in range(1, faults.count + 1):
        for path in model.iterdir():
            path.unlink()
        for name, content in before.items():
            (model / name).write_bytes(content)
        with pytest.raises(Killed), Faults(k, Killed(), forever=True):
            save(model, number)
        seen.append(whole(model))
        save(model, 1)
        assert whole(model) == 1
    assert seen == sorted(seen)
    assert set(seen) == {1, number}


def test_an_error_leaves_the_set_that_was_there(model):
    before = snapshot(model)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for k in range(1, 8):
        with pytest.raises(CheckpointError), Faults(k, full, only=("write",), forever=True):
            save(model, 2)
        assert snapshot(model) == before


@pytest.mark.parametrize("name", MORE[1])
def test_a_damaged_file_does_not_keep_the_model_from_being_read(model, name):
    content = (model / name).read_bytes()
    for broken in (b"", content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:]):
        put(model / name, broken)
        assert which(model) == 1
        with pytest.raises(CheckpointError, match=f"{name} is damaged or from another save"):
            load(model).file(name)
    (model / name).unlink()
    assert which(model) == 1
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(model).file(name)


def test_a_save_in_between_takes_nothing_away(model):
    saved = load(model)
    save(model, 2)
    save(model, 3)
    assert saved.file("moments.bin").read() == b"1 moments.bin"


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "A.json", "config.json", "x", ".x", "a.new", "a\n.b", "a" * 300, 5]
)
def test_a_name_that_leaves_the_folder_or_hides(model, name):
    before = snapshot(model)
    with pytest.raises(CheckpointError):
        file_set.save(model, {}, {name: [b"x"]})
    assert snapshot(model) == before


def test_a_name_in_config_json_is_a_claim(model):
    (model.parent / "secret").write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(file_set, "_check_name", lambda *_: None)
        patched.setattr(file_set, "_write", lambda path, _: "0" * 64)
        content = file_set._read_config(model)
    content["files"]["../secret"] = "0" * 64
    content["sha256"] = file_set._content_digest(content)
    put(model / "config.json", file_set.json.dumps(content).encode())
    refusal(model, "config.json", "'../secret'")


def test_a_set_without_a_model(tmp_path):
    file_set.save(tmp_path, {"what": "else"}, {"a.txt": [b"one"], "b.txt": []})
    with file_set.OpenFiles.load(tmp_path, ["a.txt"]) as files:
        assert files.content["what"] == "else"
        assert files.file("a.txt").read() == b"one"
        assert files.file("b.txt").read() == b""
        assert "c.txt" not in files
    refusal(tmp_path, "model.safetensors")
