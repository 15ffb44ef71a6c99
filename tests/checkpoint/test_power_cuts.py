"""What a power cut may leave, and what other threads and a kill do."""

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import rustgpt
from rustgpt import ModelConfig, checkpoint, file_set

from .conftest import (
    SHAPES,
    load,
    restore,
    save,
    snapshot,
    tokenizer,
    which,
)
from .faults import Faults, Killed

pytestmark = pytest.mark.grid  # every case of what may go wrong, or be divided

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

        self.patch.setattr(file_set, "open", opened, raising=False)
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
                    alone.setattr(file_set, "open", open, raising=False)
                    save(model, 2)
            return function(path, *args, **how)

        return looked

    stat_of = os.stat
    monkeypatch.setattr(os, "stat", look(os.stat))
    monkeypatch.setattr(file_set, "open", look(open), raising=False)
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
