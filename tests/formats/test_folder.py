"""Owns the tests of `rustgpt.formats.folder`: whole, or as it was."""

import functools
import os

import pytest

from rustgpt.errors import CheckpointError
from rustgpt.folder_lock import FolderLock
from rustgpt.formats.folder import write_folder

KNOWN = ("a.json", "b.bin", "old.json")
FILES = {"a.json": [b"{", b"}"], "b.bin": [b"12"]}


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


WRITTEN = {"a.json": b"{}", "b.bin": b"12"}


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_empty_folder_is_written(there, tmp_path):
    folder = tmp_path / "above" / "out"
    if there:
        folder.mkdir(parents=True)
    write_folder(folder, FILES, KNOWN)
    assert contents(tmp_path / "above") == {f"out/{name}": data for name, data in WRITTEN.items()}


def test_what_is_there_is_replaced_if_that_is_asked_for(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old.json").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="holds a model already"):
        write_folder(folder, FILES, KNOWN)
    assert contents(tmp_path) == {"out/old.json": b"old"}
    write_folder(folder, FILES, KNOWN, overwrite=True)
    assert contents(folder) == WRITTEN
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_else_is_never_replaced(overwrite, tmp_path):
    folder = tmp_path / "out"
    (folder / "a.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"holds something else, such as 'a.json'"):
        write_folder(folder, FILES, KNOWN, overwrite)
    (folder / "a.json").rmdir()
    (folder / "thesis.tex").write_bytes(b"years")
    with pytest.raises(CheckpointError, match=r"holds something else, such as 'thesis.tex'"):
        write_folder(folder, FILES, KNOWN, overwrite)
    assert contents(tmp_path) == {"out/thesis.tex": b"years"}
    with pytest.raises(CheckpointError, match="is a file"):
        write_folder(folder / "thesis.tex", FILES, KNOWN, overwrite)


def parts():
    yield b"1"
    raise OSError(28, "No space left on device")


def test_a_folder_that_could_not_be_written_is_as_it_was(tmp_path):
    folder = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left"):
            write_folder(folder, {"a.json": [b"new"], "b.bin": parts()}, KNOWN, overwrite)
        assert contents(tmp_path) == ({"out/a.json": b"old"} if overwrite else {})
        assert os.listdir(tmp_path) == ["out"] * overwrite
        folder.mkdir(exist_ok=True)
        (folder / "a.json").write_bytes(b"old")


def test_a_folder_whose_name_cannot_be_taken_is_as_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.json").write_bytes(b"old")
    real = os.rename

    def rename(source, target):
        if str(target) == str(folder) and str(source).endswith("new"):
            raise OSError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write_folder(folder, FILES, KNOWN, overwrite=True)
    assert contents(tmp_path) == {"out/a.json": b"old"}


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link", FILES, KNOWN)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == WRITTEN


def test_what_a_killed_process_has_left_is_put_right(tmp_path):
    folder, beside = tmp_path / "out", tmp_path / ".out.export"
    for state in ("new", "old"):
        (beside / state).mkdir(parents=True)
        (beside / state / "a.json").write_bytes(b"left")
    with pytest.raises(CheckpointError, match="holds a model already"):  # the old one, again
        write_folder(folder, FILES, KNOWN)
    assert contents(tmp_path) == {"out/a.json": b"left"}
    write_folder(folder, FILES, KNOWN, overwrite=True)
    assert contents(tmp_path) == {f"out/{name}": data for name, data in WRITTEN.items()}
    assert os.listdir(tmp_path) == ["out"]


def test_of_two_that_write_one_waits(tmp_path, monkeypatch):
    hasty = functools.partial(FolderLock, patience=0)
    monkeypatch.setattr("rustgpt.formats.folder.FolderLock", hasty)
    with (
        FolderLock(tmp_path / ".out.export"),
        pytest.raises(CheckpointError, match="process"),
    ):
        write_folder(tmp_path / "out", FILES, KNOWN)
    write_folder(tmp_path / "out", FILES, KNOWN)
    assert contents(tmp_path / "out") == WRITTEN
