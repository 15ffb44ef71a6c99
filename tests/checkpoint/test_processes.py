"""Several processes at one folder: whoever saves, it holds a whole model."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rustgpt
from rustgpt import ModelConfig, WordTokenizer, checkpoint
from rustgpt.folder_lock import FolderLock

SIZE = 20_000  # numbers
WORDS = {n: WordTokenizer.train([f"model {'abc'[n - 1] * 3}"]) for n in (1, 2, 3)}
# Saves model N of the first argument whenever it is told to.
SAVE_WHEN_TOLD = f"""
import sys, numpy as np
from rustgpt import checkpoint, CheckpointError, ModelConfig, WordTokenizer
from rustgpt.folder_lock import FolderLock
folder, n = sys.argv[1], int(sys.argv[2])
FolderLock.__init__.__defaults__ = (float(sys.argv[3]),)  # its patience
words = WordTokenizer.train([f"model {{'abc'[n - 1] * 3}}"]).to_json()
tensors = {{"a": np.full({SIZE}, n, np.float32)}}
print("ready", flush=True)
for line in sys.stdin:
    try:
        checkpoint.save(folder, ModelConfig(seed=n).to_dict(), tensors, words)
        print("saved", flush=True)
    except CheckpointError as error:
        print("failed:", error, flush=True)
"""


def start(folder, number, patience):
    package = str(Path(rustgpt.__file__).parents[1])
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, "-c", SAVE_WHEN_TOLD, str(folder), str(number), str(patience)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.fixture
def writers(tmp_path):
    """Two processes that save models 1 and 2 when they are told to."""
    children = [start(tmp_path / "model", number, 10) for number in (1, 2)]
    yield children
    for child in children:
        with child:
            child.kill()


def tell(child):
    child.stdin.write("go\n")
    child.stdin.flush()


def read(folder):
    """Return the number of the model in a folder, all of whose parts belong together."""
    with checkpoint.load(folder) as saved:
        array = np.zeros(SIZE, np.float32)
        saved.read_into({"a": array})
        number = saved.model_config().seed
        assert saved.tokenizer().vocab == WORDS[number].vocab
    assert (array == number).all()
    return number


@pytest.mark.slow
def test_two_that_save_at_the_same_moment(writers, tmp_path):
    seen = set()
    for _ in range(100):
        for child in writers:
            tell(child)
        assert [child.stdout.readline() for child in writers] == ["saved\n"] * 2
        seen.add(read(tmp_path / "model"))
        assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
            "config.json", "model.safetensors", "tokenizer.json",
        ]  # fmt: skip
    assert seen <= {1, 2}


def test_a_reader_beside_two_writers_always_reads_a_whole_model(writers, tmp_path):
    for child in writers:
        tell(child)
        assert child.stdout.readline() == "saved\n"
    end, answers = threading.Event(), []

    def keep_saving(child):
        while not end.is_set():
            tell(child)
            answers.append(child.stdout.readline())

    threads = [threading.Thread(target=keep_saving, args=(child,)) for child in writers]
    for thread in threads:
        thread.start()
    try:
        seen = [read(tmp_path / "model") for _ in range(300)]
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {"saved\n"}
    assert set(seen) == {1, 2}


def test_a_folder_that_is_taken_says_by_whom(tmp_path):
    folder = tmp_path / "model"
    with start(folder, 1, 0.2) as child:
        with FolderLock(folder):
            tell(child)
            answer = child.stdout.readline()
            assert answer.startswith(f"failed: {folder} is in use by process {os.getpid()} on ")
        tell(child)
        assert child.stdout.readline() == "saved\n"
        child.kill()


def test_who_has_the_folder_saves_into_it(tmp_path):
    tensors = {"a": np.full(SIZE, 3, np.float32)}
    with FolderLock(tmp_path / "model") as lock:
        for _ in range(2):
            checkpoint.save(lock, ModelConfig(seed=3).to_dict(), tensors, WORDS[3].to_json())
            assert read(tmp_path / "model") == 3
    assert read(tmp_path / "model") == 3


def test_a_lock_that_is_not_held_is_taken(tmp_path):
    """One that was never entered, or whose folder is another one now."""
    tensors, config = {"a": np.full(SIZE, 3, np.float32)}, ModelConfig(seed=3).to_dict()
    lock = FolderLock(tmp_path / "model")
    checkpoint.save(lock, config, tensors, WORDS[3].to_json())
    with lock:
        (tmp_path / "model").rename(tmp_path / "old")
        checkpoint.save(lock, config, tensors, WORDS[3].to_json())
        assert not (tmp_path / "model" / ".lock").exists()
        assert read(tmp_path / "model") == read(tmp_path / "old") == 3
