"""What is left when `save` is cut short at any moment."""

import errno
import itertools
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from rustgpt import CheckpointError, ModelConfig, checkpoint, file_set

from .conftest import FILES, TINY, refusal, restore, save, snapshot, tensors, tokenizer, which
from .faults import Faults, Killed

pytestmark = pytest.mark.grid  # every case of what may go wrong, or be divided

# Saving that fails


@pytest.mark.parametrize("at_once", [2, 1 << 20])
def test_a_model_with_nan_is_not_saved(at_once, model, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKED_AT_ONCE", at_once)
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

    monkeypatch.setattr(file_set, "open", opened, raising=False)
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
