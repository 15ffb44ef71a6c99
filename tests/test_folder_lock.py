"""Tests of the lock of a folder: within a process, between processes, and after a death."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import rustgpt
from rustgpt.errors import CheckpointError
from rustgpt.folder_lock import LOCK_FILE, FolderLock

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
HOLD = """
import sys, time
from rustgpt.folder_lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def other_process(script, folder):
    package = str(Path(rustgpt.__file__).parents[1])
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


def test_it_is_a_path(tmp_path):
    with FolderLock(tmp_path) as lock:
        assert os.fspath(lock) == str(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_FILE]
    assert list(tmp_path.iterdir()) == []


def test_within_a_process_too_there_is_one_owner(tmp_path):
    with FolderLock(tmp_path):
        with (
            pytest.raises(CheckpointError, match="is in use by this process"),
            FolderLock(tmp_path, 0.05),
        ):
            pass
        assert (tmp_path / LOCK_FILE).exists()
    with FolderLock(tmp_path, 0):
        pass


def test_the_second_waits_a_moment(tmp_path):
    first, second = FolderLock(tmp_path), []

    def enter():
        with FolderLock(tmp_path):
            second.append(released.is_set())

    released = threading.Event()
    with first:
        thread = threading.Thread(target=enter)
        thread.start()
        time.sleep(0.05)
        assert second == []
        released.set()
    thread.join()
    assert second == [True]


def test_another_process_is_named_and_its_death_releases(tmp_path):
    with other_process(HOLD, tmp_path) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError) as caught, FolderLock(tmp_path, 0.05):
            pass
        assert f"{tmp_path} is in use by process {child.pid} on " in str(caught.value)
        child.kill()
    assert (tmp_path / LOCK_FILE).exists()  # what it has left behind keeps nobody out
    with FolderLock(tmp_path, 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_that_nothing_came_into_are_removed_again(tmp_path):
    deep = tmp_path / "a" / "b"
    with FolderLock(deep):
        assert deep.is_dir()
    assert list(tmp_path.iterdir()) == []
    with FolderLock(deep):
        (deep / "file").touch()
    assert [file.name for file in deep.iterdir()] == ["file"]
    (tmp_path / "there").mkdir()
    with FolderLock(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


def test_after_an_error_it_is_released(tmp_path):
    with pytest.raises(RuntimeError), FolderLock(tmp_path):
        raise RuntimeError
    with FolderLock(tmp_path, 0):
        pass


def test_a_folder_that_was_exchanged_is_not_unlocked_for_its_new_owner(tmp_path):
    first, second = FolderLock(tmp_path / "a"), FolderLock(tmp_path / "a")
    with first:
        (tmp_path / "a").rename(tmp_path / "b")
        with second:
            first.__exit__()
            assert (tmp_path / "a" / LOCK_FILE).exists()
            with pytest.raises(CheckpointError), FolderLock(tmp_path / "a", 0.02):
                pass


@posix
def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"), FolderLock(tmp_path / "folder"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


FORK = """
import os, sys, time
from rustgpt.folder_lock import FolderLock
with FolderLock(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


@posix
def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path):
    with other_process(FORK, tmp_path) as parent:
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(CheckpointError), FolderLock(tmp_path, 0.05):
                pass
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it is still there
            with FolderLock(tmp_path, 5):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_who_gives_up_waiting_leaves_the_owner_its_file(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    with FolderLock(tmp_path):
        monkeypatch.setattr("rustgpt.folder_lock._read_note", interrupted)
        with pytest.raises(KeyboardInterrupt), FolderLock(tmp_path, 0):
            pass
        monkeypatch.undo()
        with pytest.raises(CheckpointError), FolderLock(tmp_path, 0.02):
            pass


@posix
def test_where_no_file_can_be_made_it_does_not_wait_for_ever():
    with pytest.raises(OSError, match="No such file"), FolderLock("/proc", 0.05):
        pass


def test_one_that_is_not_entered_is_not_held(tmp_path):
    lock = FolderLock(tmp_path / "a")
    assert not lock.is_held()
    with lock:
        assert lock.is_held()
        (tmp_path / "a").rename(tmp_path / "b")
        assert not lock.is_held()
    assert not lock.is_held()


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_what_another_users_killed_process_left_keeps_nobody_out(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777)
    with FolderLock(tmp_path):
        (tmp_path / LOCK_FILE).chmod(0o644)
        child = os.fork()
        if child == 0:  # another user
            status = 1
            try:
                os.setuid(65534)
                FolderLock(tmp_path, 0.02).__enter__()
            except CheckpointError as error:
                status = 0 if f"process {os.getppid()} on" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (tmp_path / LOCK_FILE).touch(0o644)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            FolderLock(tmp_path, 0).__enter__()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
