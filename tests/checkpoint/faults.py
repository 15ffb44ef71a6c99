"""Owns a disk that fails: at any step, for once or for ever."""

import os

import pytest

from rustgpt import file_set


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
        self.patch.setattr(file_set, "open", self.open, raising=False)
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
